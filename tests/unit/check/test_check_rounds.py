"""Rounds and verdicts: sides take turns, each round is judged, and what ran otherwise fails whatever the numbers."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from checked import candidate

from kvray.analysis.comparison import ComparedMetric, Verdict
from kvray.candidate import CacheStrategy, Candidate, DeviceType
from kvray.check.judge import default_margins, is_hopeless, more_rounds, overall, side_differences
from kvray.check.measured import measured_side, samples_of
from kvray.check.outputs.wording import rounds_text
from kvray.check.result import CheckedCandidate, CheckMode, SideInfo
from kvray.check.rounds import RoundPlan, Rounds
from kvray.check.side_request import SideRequest
from kvray.engines.base import ModelRequest
from kvray.record import Run, TrialRecord, TrialResult, TrialStatus
from kvray.trial.spec import ReferenceSpec
from kvray.workload import WorkloadProfile

PROFILE = WorkloadProfile(
    name="tiny",
    context_lengths=(8,),
    output_lengths=(4,),
    weight_ttft=0.5,
    weight_throughput=0.5,
    weight_memory=0.0,
)
AT = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)


@dataclass
class FakeSide:
    """Measures what it is told to, and notes what it was asked."""

    ttft_ms: float = 10.0
    status: TrialStatus = TrialStatus.OK
    facts: dict[str, Any] = field(default_factory=dict)
    asked: list[SideRequest] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    name: str = ""
    spread: float = 0.002
    disturbed_rounds: tuple[int, ...] = ()

    def measure(self, request: SideRequest) -> TrialResult:
        self.asked.append(request)
        self.calls.append(self.name)
        noise = float(np.exp(np.random.default_rng([len(self.asked), len(self.name)]).normal() * self.spread))
        record = TrialRecord.of(
            request.candidate,
            run_id=request.run_id,
            trial_id=request.trial_id,
            role=request.spec.role,
            confirm_round=request.round_number,
            model_id=request.model.model_id,
            profile=request.profile.name,
            status=self.status,
            **{"rung": 1, "started_at": AT, "kernel_decode": "sdpa", "threads": 2, **self.facts},
        )
        if self.status is not TrialStatus.OK:
            return TrialResult(record=record.with_(rung=None))
        run = Run(
            run_id=request.run_id,
            trial_id=request.trial_id,
            candidate_id=request.candidate.candidate_id,
            context_tokens=8,
            output_tokens=4,
            batch_size=1,
            rung=1,
            repeat=0,
            ttft_ms=self.ttft_ms * noise,
            itl_ms=(1.0,) * 3,
            decode_tok_s=100.0 * noise,
            peak_mib=64.0,
            started_at=AT,
            disturbed=request.round_number in self.disturbed_rounds,
        )
        return TrialResult(record=record, runs=(run,))


def rounds_of(
    *sides: FakeSide,
    candidates: tuple[Candidate, ...] = (candidate(),),
    clock: Callable[[], float] = time.monotonic,
    **changes: Any,
) -> Rounds:
    calls: list[str] = []
    names = ("A", "B") if len(sides) == 2 else ("baseline", "now")
    for name, side in zip(names[-len(sides) :], sides, strict=True):
        side.name, side.calls = name, calls
    values: dict[str, Any] = {
        "run_id": "r1",
        "names": names,
        "candidates": candidates,
        "requests": {"fake": ModelRequest(model_id="fake:ok")},
        "profile": PROFILE,
        "device": DeviceType.CPU,
        "margins": default_margins(PROFILE, CheckMode.A_B),
        "timeout_s": 60.0,
        "budget_s": 600.0,
        "reference": ReferenceSpec(candidate=candidate(), model_revision="1"),
    }
    return Rounds(RoundPlan(**{**values, **changes}), sides, keep=lambda _: None, clock=clock)


def measured(rounds: Rounds, most: int = 20) -> CheckedCandidate:
    """The first candidate after as many rounds as it takes."""
    while not rounds.is_over and rounds.number < most:
        rounds.measure()
    return rounds.checked[0]


def test_sides_take_turns_and_the_first_alternates() -> None:
    a, b = FakeSide(spread=0.5), FakeSide(spread=0.5)
    rounds = rounds_of(a, b)
    for _ in range(3):
        rounds.measure()
    assert a.calls == ["A", "B", "B", "A", "A", "B"]
    assert [one.round_number for one in b.asked] == [1, 2, 3]
    assert [one.with_quality for one in b.asked] == [True, False, False]
    assert len({one.trial_id for one in (*a.asked, *b.asked)}) == 6


def test_the_same_is_a_pass_and_slower_is_a_fail() -> None:
    assert measured(rounds_of(FakeSide(), FakeSide())).verdict is Verdict.PASS
    slower = measured(rounds_of(FakeSide(), FakeSide(ttft_ms=13.0)))
    assert slower.verdict is Verdict.FAIL
    (ttft,) = (one for one in slower.metrics if one.metric is ComparedMetric.TTFT)
    assert ttft.verdict is Verdict.FAIL
    assert ttft.change is not None
    assert 0.05 < ttft.change.low < 0.3 < ttft.change.high
    faster = measured(rounds_of(FakeSide(), FakeSide(ttft_ms=8.0)))
    assert faster.verdict is Verdict.PASS


def test_a_record_is_compared_with_what_is_measured_now() -> None:
    record = measured_side([FakeSide().measure(request(number)) for number in range(1, 6)], PROFILE)
    assert {one.session for one in record.processes} == {"before"}
    recorded = {candidate().candidate_id: record}
    slow = rounds_of(FakeSide(ttft_ms=15.0), recorded=recorded)
    assert measured(slow).verdict is Verdict.FAIL
    assert measured(slow).before == record


def test_no_round_is_spent_on_what_a_record_can_never_show() -> None:
    record = measured_side([FakeSide().measure(request(number)) for number in range(1, 6)], PROFILE)
    rounds = rounds_of(FakeSide(ttft_ms=10.1), recorded={candidate().candidate_id: record})
    assert measured(rounds).verdict is Verdict.INCONCLUSIVE, "two sessions differ by more than 5 % may tell"
    assert (rounds.number, rounds.is_over) == (8, True)
    assert is_hopeless(rounds.checked[0]), "so the check says what would help"
    lenient = default_margins(PROFILE, CheckMode.RECORD)
    assert lenient[ComparedMetric.TTFT] == 0.25
    rounds = rounds_of(FakeSide(ttft_ms=10.1), recorded={candidate().candidate_id: record}, margins=lenient)
    assert (measured(rounds).verdict, rounds.number) == (Verdict.PASS, 3)


def request(number: int) -> SideRequest:
    return SideRequest(
        run_id="before",
        trial_id=f"t{number}",
        round_number=number,
        candidate=candidate(),
        model=ModelRequest(model_id="fake:ok"),
        profile=PROFILE,
        device=DeviceType.CPU,
    )


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"kernel_decode": "math"}, "another kernel ran in decode: sdpa → math"),
        ({"cache_class": "Other"}, None),
        ({"kv_dtype": "int8"}, None),
    ],
)
def test_another_kernel_fails_whatever_the_numbers(facts: dict[str, str], told: str | None) -> None:
    """A fact that one side does not tell is no difference."""
    one = measured(rounds_of(FakeSide(), FakeSide(ttft_ms=5.0, facts=facts)))
    assert one.reasons == (() if told is None else (told,))
    assert one.verdict is (Verdict.PASS if told is None else Verdict.FAIL)


@pytest.mark.parametrize("name", ["kernel_prefill", "kernel_decode", "cache_class", "cache_layers", "kv_dtype"])
def test_each_of_what_ran_must_be_the_same(name: str) -> None:
    one = measured(rounds_of(FakeSide(facts={name: "one"}), FakeSide(facts={name: "two"})))
    assert one.verdict is Verdict.FAIL
    assert "one → two" in one.reasons[0]


def test_what_the_engine_made_of_the_configuration_is_told_and_decides_nothing() -> None:
    a = FakeSide(facts={"resolved": '{"n_batch": 512, "n_ctx": 8, "threads": 2}', "kl_mean": 0.0})
    b = FakeSide(facts={"resolved": '{"n_batch": 256, "n_ctx": 8, "threads": 1}', "threads": 1, "kl_mean": 0.01})
    one = measured(rounds_of(a, b))
    assert one.differences == (
        "threads: 2 → 1",
        "loss of quality (KL): 0.0000 → 0.0100 nats per token",
        "n_batch: 512 → 256",
    )
    assert one.verdict is Verdict.PASS


def test_what_libraries_files_take_is_told_where_it_differs_and_kept() -> None:
    sides = [FakeSide(facts={"library_mib": mib}) for mib in (140.0, 104.2, 141.0)]
    one = measured(rounds_of(sides[0], sides[1]))
    assert one.differences == ("libraries' files in memory: 140 → 104 MiB, which the system decides: not compared",)
    assert {process.library_mib for process in one.now.processes} == {104.2}
    assert np.array_equal(np.array(samples_of(one.now).library_mib), [104.2] * one.rounds)
    assert measured(rounds_of(sides[0], sides[2])).differences == ()


def test_of_two_builds_only_the_instructions_that_one_lacks_are_told() -> None:
    every = "SSE3 = 1 | AVX = 1 | AVX2 = 1 | AVX512 = 1 | AMX_INT8 = 1 | OPENMP = 1"
    fewer = "SSE3 = 1 | AVX = 1 | AVX2 = 1 | LLAMAFILE = 1 | OPENMP = 1"
    least = "SSE3 = 1 | AVX = 1 | AVX2 = 1 | AVX512 = 1 | OPENMP = 1"
    sides = [FakeSide(facts={"resolved": f'{{"build": "{build}"}}'}) for build in (every, fewer, least)]
    assert measured(rounds_of(sides[0], sides[1])).differences == ("build: AVX512 = 1 | AMX_INT8 = 1 → LLAMAFILE = 1",)
    assert measured(rounds_of(sides[0], sides[2])).differences == ("build: AMX_INT8 = 1 → without that",)


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (TrialStatus.QUALITY, "B: the quality fell below the limit: why"),
        (TrialStatus.SUBSTITUTED, "B: something else than what was asked for ran: why"),
        (TrialStatus.CRASHED, "B: it crashed: why"),
        (TrialStatus.ERROR, "B: it ended with an error: why"),
    ],
)
def test_a_failed_trial_fails_the_check_with_its_message_after_one_round(status: TrialStatus, told: str) -> None:
    rounds = rounds_of(FakeSide(), FakeSide(status=status, facts={"message": "why"}))
    one = measured(rounds)
    assert (one.verdict, one.reasons, one.failed_trials, rounds.number) == (Verdict.FAIL, (told,), 1, 1)


def test_what_cannot_be_measured_before_is_no_fail_of_what_is_now() -> None:
    rounds = rounds_of(FakeSide(status=TrialStatus.OOM), FakeSide())
    one = measured(rounds)
    assert (one.verdict, rounds.number) == (Verdict.INCONCLUSIVE, 1)
    assert one.reasons == ("A: it ran out of memory",)


def test_rounds_that_were_disturbed_are_counted_apart() -> None:
    rounds = rounds_of(FakeSide(disturbed_rounds=(2,)), FakeSide(disturbed_rounds=(2, 4)))
    for _ in range(5):
        rounds.measure()
    one = rounds.checked[0]
    assert (one.measured_rounds, one.disturbed_rounds) == (5, 2)
    assert one.rounds == 3
    assert rounds_text(one) == "5 rounds, 2 of them set aside because other programs disturbed them"


def test_a_side_that_was_always_disturbed_sets_no_round_aside() -> None:
    rounds = rounds_of(FakeSide(disturbed_rounds=(1, 2, 3)), FakeSide())
    for _ in range(3):
        rounds.measure()
    one = rounds.checked[0]
    assert (one.rounds, one.measured_rounds, one.disturbed_rounds) == (3, 3, 0)


def test_a_records_own_disturbed_processes_are_no_rounds_of_this_check() -> None:
    record = measured_side([FakeSide(disturbed_rounds=(1,)).measure(request(number)) for number in (1, 2, 3)], PROFILE)
    rounds = rounds_of(FakeSide(disturbed_rounds=(2,)), run_id="r2", recorded={candidate().candidate_id: record})
    for _ in range(4):
        rounds.measure()
    one = rounds.checked[0]
    assert (one.measured_rounds, one.disturbed_rounds) == (4, 1)


def test_a_record_that_was_disturbed_throughout_is_named() -> None:
    record = measured_side([FakeSide().measure(request(number)) for number in range(1, 4)], PROFILE)
    noisy = record.model_copy(
        update={"processes": tuple(one.model_copy(update={"disturbed": True}) for one in record.processes)}
    )
    one = measured(rounds_of(FakeSide(), recorded={candidate().candidate_id: noisy}))
    assert one.differences == (
        "baseline: other programs disturbed every process, so its figures may be too low or too high",
    )


def test_noise_leaves_it_open_and_says_what_it_would_take() -> None:
    rounds = rounds_of(FakeSide(spread=0.06), FakeSide(spread=0.06, ttft_ms=10.2))
    one = measured(rounds, most=3)
    assert one.verdict is Verdict.INCONCLUSIVE
    assert more_rounds([one]) == one.more_rounds
    assert not rounds.is_over


def test_a_candidate_with_a_verdict_is_not_measured_again() -> None:
    class OneSlow(FakeSide):
        def measure(self, request: SideRequest) -> TrialResult:
            self.spread = 0.3 if request.candidate.cache is CacheStrategy.STATIC else 0.002
            self.ttft_ms = 20.0 if request.candidate.cache is CacheStrategy.DYNAMIC else 10.0
            return super().measure(request)

    both = (candidate(), candidate(CacheStrategy.STATIC))
    b = OneSlow()
    rounds = rounds_of(FakeSide(spread=0.002), b, candidates=both)
    measured(rounds, most=6)
    asked = [one.candidate.cache.value for one in b.asked]
    assert asked.count("dynamic") < asked.count("static")
    assert overall(rounds.checked) is Verdict.FAIL


def test_the_budget_ends_a_round_of_many_candidates_and_what_was_not_measured_is_inconclusive() -> None:
    instants = iter(range(0, 10_000, 100))
    both = (candidate(), candidate(CacheStrategy.STATIC))
    side = FakeSide()
    rounds = rounds_of(FakeSide(), side, candidates=both, budget_s=50.0, clock=lambda: float(next(instants)))
    rounds.measure()
    assert [one.candidate for one in side.asked] == [candidate()]
    assert rounds.checked[1].verdict is Verdict.INCONCLUSIVE
    assert not rounds.has_time


def test_an_interrupted_round_keeps_what_it_measured() -> None:
    class Interrupted(FakeSide):
        def measure(self, request: SideRequest) -> TrialResult:
            if request.round_number == 2:
                raise KeyboardInterrupt
            return super().measure(request)

    rounds = rounds_of(FakeSide(spread=0.3), Interrupted(spread=0.3))
    rounds.measure()
    rounds_before = rounds.number
    with pytest.raises(KeyboardInterrupt):
        rounds.measure()
    assert rounds.number == rounds_before == 1
    assert len(rounds.checked[0].before.processes) == 1, "B was first in round 2"


def test_what_does_not_count_in_the_profile_is_not_judged() -> None:
    assert set(default_margins(PROFILE, CheckMode.A_B)) == {ComparedMetric.TTFT, ComparedMetric.DECODE}


def test_sides_differ_in_what_both_tell() -> None:
    before = SideInfo(name="A", kvray_version="0.1.0", engine_versions={"torch": "2.12", "x": "1"}, cpus=2)
    now = SideInfo(name="B", kvray_version="0.2.0", engine_versions={"torch": "2.13"}, driver_version="570")
    assert side_differences(before, now) == ("kvray: 0.1.0 → 0.2.0", "torch: 2.12 → 2.13")
    told = side_differences(
        before, before, before_variables={"OMP_NUM_THREADS": "2"}, now_variables={"OMP_NUM_THREADS": "1", "TOKEN": "s"}
    )
    assert told == ("OMP_NUM_THREADS: 2 → 1", "TOKEN: not set → set")
    hidden = side_differences(before, before, before_variables={"TOKEN": "a"}, now_variables={"TOKEN": "b"})
    assert hidden == ("TOKEN has another value",)


def verdicts(*some: Verdict) -> list[CheckedCandidate]:
    return [CheckedCandidate(label=str(place), verdict=one) for place, one in enumerate(some)]


@pytest.mark.parametrize(
    ("some", "whole"),
    [
        ((Verdict.PASS, Verdict.PASS), Verdict.PASS),
        ((Verdict.PASS, Verdict.INCONCLUSIVE), Verdict.INCONCLUSIVE),
        ((Verdict.INCONCLUSIVE, Verdict.FAIL), Verdict.FAIL),
        ((), Verdict.INCONCLUSIVE),
    ],
)
def test_the_worst_candidate_decides(some: tuple[Verdict, ...], whole: Verdict) -> None:
    assert overall(verdicts(*some)) is whole
