"""What becomes of trials when they are weighed."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from analysis_samples import make_candidate, make_profile, make_result

from kvray.analysis.evidence import DECODE, PEAK, TTFT, confirm_trial_id, gather_evidence, rounds_by_device
from kvray.analysis.intervals import paired_rounds
from kvray.candidate import Candidate
from kvray.record import Role, TrialResult, TrialStatus
from kvray.workload import Limits

PROFILE = make_profile()
ONE, OTHER = make_candidate(1), make_candidate(2)


def confirming(candidate: Candidate, number: int) -> TrialResult:
    return make_result(
        candidate,
        PROFILE,
        repeats=1,
        role=Role.CONFIRM,
        trial_id=confirm_trial_id(number, candidate.candidate_id),
    )


def test_a_process_is_the_mean_over_cells_of_the_median_of_its_runs() -> None:
    trial = make_result(
        ONE,
        PROFILE,
        repeats=2,
        ttft_factor=lambda cell, repeat: (1.0 if cell.context_tokens == 128 else 4.0) * (1.0 + repeat / 100),
    )

    evidence = gather_evidence([trial], PROFILE)

    assert evidence.logs[0, TTFT] == pytest.approx(math.log(200.0) + math.log(1.01) / 2)
    assert evidence.logs[0, [DECODE, PEAK]] == pytest.approx(np.log([50.0, 1000.0]))


def test_runs_that_differ_leave_variance_and_more_runs_leave_less() -> None:
    def within(repeats: int) -> float:
        trial = make_result(ONE, PROFILE, repeats=repeats, ttft_factor=lambda cell, repeat: 1.0 + 0.1 * (repeat % 2))
        return float(gather_evidence([trial], PROFILE).within[0, TTFT])

    assert within(2) > within(8) > 0


def test_a_confirming_trial_belongs_to_the_round_in_its_id() -> None:
    results = [make_result(ONE, PROFILE), confirming(ONE, 2), confirming(ONE, 10)]

    assert sorted(gather_evidence(results, PROFILE).rounds.tolist()) == [0, 2, 10]


@pytest.mark.parametrize(
    ("devices", "rounds"),
    [
        ([None, None, None, None], [0, 1, 1, 1]),
        (["a", "b", "b", "b"], [0, 1, 1, 1]),
        (["a", "a", "b", "b"], [0, 1, 2, 2]),
        ([None, "a", None, "a"], [0, 1, 1, 1]),
        ([None, "a", "b,a", "b"], [0, 1, 1, 1]),
        ([None, "a", "b,c", "b"], [0, 2, 1, 1]),
        ([None, "c", "b", "a"], [0, 3, 2, 1]),
    ],
    ids=["old", "one", "two", "half-old", "within-several", "beside-several", "all-unlike"],
)
def test_processes_of_a_round_on_unlike_devices_are_told_apart(devices: list[str | None], rounds: list[int]) -> None:
    assert rounds_by_device([0, 1, 1, 1], devices) == rounds
    backwards = rounds_by_device([1, 1, 1, 0], devices[::-1])
    assert backwards == rounds[::-1], "whatever the order"


def test_a_number_of_another_round_is_never_taken_for_a_part_of_one() -> None:
    assert rounds_by_device([1, 1, 2], ["a", "b", "a"]) == [1, 3, 2]


def test_a_round_on_unlike_devices_is_no_pair_and_counts_as_measurements() -> None:
    def on(device: str, candidate: Candidate, number: int) -> TrialResult:
        result = confirming(candidate, number)
        return replace(result, record=result.record.with_(device_uuid=device))

    search = [make_result(ONE, PROFILE), make_result(OTHER, PROFILE)]
    mixed = [on("GPU-a", ONE, 1), on("GPU-b", OTHER, 1), on("GPU-b", ONE, 2), on("GPU-b", OTHER, 2)]
    evidence = gather_evidence([*search, *mixed], PROFILE)
    assert len(evidence.rounds) == 6
    assert paired_rounds(evidence, ONE.candidate_id, OTHER.candidate_id) == [2]


def test_a_candidate_stopped_after_every_cell_was_measured_contends() -> None:
    stopped = make_result(ONE, PROFILE, repeats=1, status=TrialStatus.STOPPED)
    early = make_result(OTHER, PROFILE, cells=(), status=TrialStatus.STOPPED)

    evidence = gather_evidence([stopped, early], PROFILE)
    assert evidence.ids == (ONE.candidate_id,)
    assert evidence.contenders == {ONE.candidate_id}
    assert sorted(gather_evidence([stopped, confirming(ONE, 1)], PROFILE).rounds.tolist()) == [0, 1]


def test_one_that_misses_a_limit_is_compared_with_and_cannot_win() -> None:
    limited = make_profile(limits=Limits(max_ttft_ms=120.0))
    results = [make_result(ONE, limited, ttft_ms=150.0), make_result(OTHER, limited)]

    evidence = gather_evidence(results, limited)

    assert set(evidence.ids) == {ONE.candidate_id, OTHER.candidate_id}
    assert evidence.contenders == {OTHER.candidate_id}


def test_a_disturbed_process_counts_only_where_there_is_no_better_one() -> None:
    calm = make_result(ONE, PROFILE)
    disturbed = replace(calm, runs=tuple(replace(run, ttft_ms=900.0, disturbed=True) for run in calm.runs))
    again = TrialResult(record=disturbed.record.with_(trial_id="again"), runs=disturbed.runs)

    assert gather_evidence([disturbed], PROFILE).disturbed.tolist() == [True]
    assert gather_evidence([calm, again], PROFILE).disturbed.tolist() == [False]
    assert gather_evidence([calm, again], PROFILE).logs[:, TTFT] == pytest.approx(math.log(100.0))


def test_the_order_of_the_results_does_not_matter() -> None:
    results = [make_result(ONE, PROFILE), make_result(OTHER, PROFILE, ttft_ms=90.0), confirming(OTHER, 1)]
    shuffled = list(results)
    random.Random(1).shuffle(shuffled)

    one, other = gather_evidence(results, PROFILE), gather_evidence(shuffled, PROFILE)

    assert (one.ids, one.owner.tolist(), one.logs.tolist()) == (other.ids, other.owner.tolist(), other.logs.tolist())


def test_evidence_can_be_restricted_to_some_candidates() -> None:
    results = [make_result(ONE, PROFILE), make_result(OTHER, PROFILE, ttft_ms=90.0)]

    only = gather_evidence(results, PROFILE).restricted([OTHER.candidate_id])

    assert (only.ids, only.owner.tolist()) == ((OTHER.candidate_id,), [0])
    assert only.logs[0, TTFT] == pytest.approx(math.log(90.0))
