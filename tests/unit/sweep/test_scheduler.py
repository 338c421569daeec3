from __future__ import annotations

import datetime as dt
from typing import Any

from ray.tune.schedulers import TrialScheduler

from kvray.analysis.score import utility
from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DType
from kvray.record import Role, Run, TrialRecord, TrialResult, TrialStatus
from kvray.sweep.recording import rung_metrics
from kvray.sweep.scheduler import SparingHalving
from kvray.sweep.slot import FIDELITY, KEEPS_LIMITS, REDUCTION_FACTOR, RESULT, UTILITY
from kvray.workload import get_profile

PROFILE = get_profile("ci-micro")
CANDIDATE = Candidate(engine="fake", cache=CacheStrategy.DYNAMIC, attention=AttentionBackend.SDPA, dtype=DType.FLOAT32)


class FakeTrial:
    """What the base scheduler asks of a Tune trial."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def report(
    ttft_ms: float,
    tok_s: float,
    peak_mib: float,
    *,
    rung: int = 0,
    role: Role = Role.SEARCH,
    keeps_limits: bool = True,
) -> dict[str, Any]:
    run = Run(
        run_id="r",
        trial_id="t",
        candidate_id="c",
        context_tokens=512,
        output_tokens=16,
        batch_size=1,
        rung=rung,
        repeat=0,
        ttft_ms=ttft_ms,
        itl_ms=(1.0,),
        decode_tok_s=tok_s,
        peak_mib=peak_mib,
        started_at=dt.datetime.now(dt.UTC),
    )
    record = TrialRecord.of(
        CANDIDATE,
        run_id="r",
        trial_id="t",
        role=role,
        model_id="m",
        profile=PROFILE.name,
        status=TrialStatus.STOPPED,
        rung=rung,
    )
    metrics = rung_metrics((run,), rung)
    assert metrics is not None
    return {
        RESULT: TrialResult(record=record, runs=(run,)),
        UTILITY: utility(metrics, PROFILE),
        KEEPS_LIMITS: keeps_limits,
        FIDELITY: REDUCTION_FACTOR**rung,
        "done": False,
    }


def verdicts(*reports: dict[str, Any]) -> list[bool]:
    """Whether each trial, reporting in turn, may go on."""
    scheduler = SparingHalving()
    answers = []
    for number, one in enumerate(reports):
        trial = FakeTrial(str(number))
        scheduler.on_trial_add(None, trial)
        answers.append(scheduler.on_trial_result(None, trial, one) == TrialScheduler.CONTINUE)
    return answers


GOOD = report(100, 50, 500)


def test_a_trial_that_is_worse_in_everything_is_stopped() -> None:
    assert verdicts(GOOD, GOOD, report(200, 25, 600)) == [True, True, False]


def test_the_baseline_is_never_stopped() -> None:
    assert verdicts(GOOD, GOOD, report(400, 10, 900, role=Role.BASELINE))[-1]


def test_whoever_is_leanest_goes_on_however_slow() -> None:
    assert verdicts(GOOD, GOOD, report(400, 10, 499))[-1]


def test_what_a_single_run_cannot_tell_apart_from_the_best_goes_on() -> None:
    assert verdicts(GOOD, GOOD, GOOD, report(105, 49, 501))[-1]
    assert not verdicts(GOOD, GOOD, GOOD, report(125, 45, 501))[-1]


def test_rungs_are_compared_with_their_own_kind() -> None:
    slower_at_full_length = report(150, 30, 550, rung=1)
    assert verdicts(GOOD, GOOD, slower_at_full_length)[-1], "the first of its rung"


def test_the_best_of_those_that_keep_the_limits_goes_on_beside_better_ones_that_do_not() -> None:
    beyond = report(100, 50, 500, keeps_limits=False)
    assert verdicts(beyond, beyond, report(200, 25, 600)) == [True, True, True]
    assert verdicts(beyond, beyond, report(200, 25, 600), report(400, 12, 600))[-1] is False


def test_whoever_misses_a_limit_gets_no_favour_from_it() -> None:
    assert verdicts(GOOD, GOOD, report(200, 25, 600, keeps_limits=False))[-1] is False
