"""What is claimed, and what it rests on."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from analysis_samples import make_candidate, make_profile, make_record, make_result

from kvray.analysis import Analysis, analyse
from kvray.analysis.choice import Reason
from kvray.analysis.confidence import Confidence, estimate_confidence
from kvray.analysis.ranking import rank
from kvray.candidate import Candidate
from kvray.record import Role, TrialResult, TrialStatus
from kvray.workload import WorkloadProfile

PROFILE = make_profile()
BASELINE, RIVAL, WINNER = make_candidate(0), make_candidate(1), make_candidate(2)


def estimate(
    *results: TrialResult, profile: WorkloadProfile = PROFILE, seed: int = 0, replicates: int = 400
) -> Confidence:
    confidence = estimate_confidence(rank(results, profile), results, profile, seed=seed, replicates=replicates)
    assert confidence is not None
    return confidence


def noisy_trials(
    candidate: Candidate,
    generator: np.random.Generator,
    *,
    processes: int,
    ttft_ms: float = 100.0,
    decode_tok_s: float = 50.0,
    process_sd: tuple[float, float] = (0.06, 0.015),
) -> list[TrialResult]:
    """Fresh processes that differ by `process_sd` (TTFT, decode), with runs that differ by a third of that."""
    trials = []
    for _ in range(processes):
        shift = generator.normal(0.0, process_sd)
        trials.append(
            make_result(
                candidate,
                PROFILE,
                ttft_ms=ttft_ms * float(np.exp(shift[0])),
                decode_tok_s=decode_tok_s * float(np.exp(shift[1])),
                ttft_factor=lambda cell, repeat: float(np.exp(generator.normal(0.0, process_sd[0] / 3))),
                decode_factor=lambda cell, repeat: float(np.exp(generator.normal(0.0, process_sd[1] / 3))),
            )
        )
    return trials


def test_nothing_ranked_has_no_confidence() -> None:
    results = [TrialResult(record=make_record(WINNER, status=TrialStatus.OOM))]

    assert estimate_confidence(rank(results, PROFILE), results, PROFILE, seed=0) is None


def test_a_single_candidate_is_always_first() -> None:
    confidence = estimate(make_result(WINNER, PROFILE))

    assert (confidence.winner_share, confidence.ties) == (1.0, ())


def test_a_winner_far_ahead_is_certain_and_has_no_ties() -> None:
    confidence = estimate(make_result(RIVAL, PROFILE), make_result(WINNER, PROFILE, ttft_ms=30.0))

    assert (confidence.winner_share, confidence.ties) == (1.0, ())


def test_equal_candidates_are_ties_and_share_the_lead() -> None:
    third = make_candidate(3)
    confidence = estimate(*(make_result(one, PROFILE) for one in (RIVAL, WINNER, third)))

    assert confidence.winner_share == pytest.approx(1 / 3, abs=0.1)
    assert {confidence.choice.candidate_id, *confidence.ties} == {one.candidate_id for one in (RIVAL, WINNER, third)}


def test_one_process_each_assumes_the_noise_between_processes() -> None:
    confidence = estimate(
        make_result(BASELINE, PROFILE, role=Role.BASELINE), make_result(WINNER, PROFILE, ttft_ms=50.0)
    )

    assert (confidence.processes, confidence.runs, confidence.assumed_process_noise) == (1, 3, True)


def test_confirmed_candidates_rest_on_their_own_processes() -> None:
    results = [
        *(make_result(BASELINE, PROFILE, role=role) for role in (Role.BASELINE, Role.CONFIRM, Role.CONFIRM)),
        *(make_result(WINNER, PROFILE, ttft_ms=60.0, role=role) for role in (Role.SEARCH, Role.CONFIRM)),
        make_result(RIVAL, PROFILE, ttft_ms=400.0),
    ]

    confidence = estimate(*results)

    assert (confidence.processes, confidence.runs, confidence.assumed_process_noise) == (2, 6, False)


def test_unequal_numbers_of_runs_per_process_are_all_used() -> None:
    generator = np.random.default_rng(1)
    results = [
        make_result(WINNER, PROFILE, repeats=repeats, ttft_factor=lambda *_: float(generator.uniform(0.9, 1.1)))
        for repeats in (1, 4, 2)
    ]

    confidence = estimate(*results)

    assert (confidence.processes, confidence.runs) == (3, 7)
    assert confidence.winner_share == 1.0


def with_disturbed_runs(result: TrialResult, *, slower: float, of: int) -> TrialResult:
    """`result` with the first `of` of its runs disturbed and that much slower."""
    runs = [
        replace(run, ttft_ms=run.ttft_ms * slower, decode_tok_s=run.decode_tok_s / slower, disturbed=True)
        for run in result.runs[:of]
    ]
    return replace(result, runs=(*runs, *result.runs[of:]))


@pytest.mark.parametrize("of", [1, 6], ids=["some runs of a process", "all runs of a process"])
def test_disturbed_runs_cannot_shake_a_winner_that_has_calm_ones(of: int) -> None:
    rivals = [make_result(RIVAL, PROFILE) for _ in range(3)]
    winner = [make_result(WINNER, PROFILE, ttft_ms=50.0, decode_tok_s=80.0) for _ in range(3)]
    disturbed = with_disturbed_runs(winner[0], slower=10.0, of=of)
    assert estimate(*rivals, disturbed, *winner[1:]).winner_share == 1.0


def test_no_more_than_a_coin_is_claimed_when_over_a_fifth_of_the_runs_were_disturbed() -> None:
    results = [make_result(RIVAL, PROFILE), make_result(WINNER, PROFILE, ttft_ms=30.0)]
    assert estimate(*results).winner_share == 1.0

    disturbed = estimate(results[0], with_disturbed_runs(results[1], slower=1.0, of=3))

    assert (disturbed.is_disturbed, disturbed.winner_share, disturbed.near_share) == (True, 0.5, 0.5)


def test_the_runs_behind_a_confidence_are_the_calm_ones() -> None:
    only = make_result(WINNER, PROFILE)
    assert estimate(only).runs == 3
    assert estimate(with_disturbed_runs(only, slower=2.0, of=2)).runs == 1


def test_candidates_without_peaks_can_be_compared() -> None:
    confidence = estimate(make_result(RIVAL, PROFILE, peak_mib=None), make_result(WINNER, PROFILE, peak_mib=None))

    assert 0.3 < confidence.winner_share < 0.7


def test_the_answer_depends_on_the_seed_and_not_on_the_order() -> None:
    generator = np.random.default_rng(3)
    results = [trial for one in (RIVAL, WINNER, BASELINE) for trial in noisy_trials(one, generator, processes=2)]
    shuffled = list(results)
    random.Random(5).shuffle(shuffled)

    assert estimate(*results, seed=1) == estimate(*shuffled, seed=1)
    assert estimate(*results, seed=1) != estimate(*results, seed=2)


@pytest.mark.parametrize("processes", [1, *(pytest.param(more, marks=pytest.mark.slow) for more in (2, 4))])
def test_the_share_is_right_as_often_as_it_says(processes: int) -> None:
    """Simulated sweeps of four close candidates: mean stated share ≈ how often the true best is named."""
    generator = np.random.default_rng(processes)
    candidates = [make_candidate(name) for name in range(4)]
    stated, right, confident = [], [], []
    for _ in range(250):
        truth = generator.normal(0.0, 0.06, size=len(candidates))
        trials = [
            noisy_trials(one, generator, processes=processes, ttft_ms=100.0 * float(np.exp(-gain)))
            for one, gain in zip(candidates, truth, strict=True)
        ]
        results = list(itertools.chain.from_iterable(trials))
        ranking = rank(results, PROFILE)
        confidence = estimate_confidence(ranking, results, PROFILE, seed=0)
        assert confidence is not None
        best = candidates[int(np.argmax(truth))].candidate_id
        stated.append(confidence.winner_share)
        right.append(ranking.winner.record.candidate_id == best)
        if confidence.winner_share > 0.85:
            confident.append(right[-1])

    assert np.mean(stated) == pytest.approx(np.mean(right), abs=0.08)
    assert np.mean(confident) > 0.8


def test_analyse_gathers_ranking_confidence_and_fallbacks() -> None:
    results = [
        make_result(BASELINE, PROFILE, role=Role.BASELINE, peak_mib=500.0),
        make_result(WINNER, PROFILE, ttft_ms=20.0),
    ]

    analysis = analyse(results, PROFILE, seed=4)

    assert isinstance(analysis, Analysis)
    assert analysis.ranking == rank(results, PROFILE)
    assert analysis.confidence is not None
    assert analysis.confidence.choice.reason is Reason.BEST
    assert analysis.confidence == estimate_confidence(analysis.ranking, results, PROFILE, seed=4)
    assert [one.record.candidate_id for one in analysis.fallbacks] == [BASELINE.candidate_id]


def test_a_leaner_tie_goes_first_although_another_measured_better() -> None:
    results = [
        *[make_result(RIVAL, PROFILE, ttft_ms=92.0)] * 3,
        *[make_result(WINNER, PROFILE, peak_mib=900.0)] * 3,
    ]
    assert rank(results, PROFILE).winner.record.candidate_id == RIVAL.candidate_id

    analysis = analyse(results, PROFILE)

    assert [entry.record.candidate_id for entry in analysis.ranking.entries] == [
        WINNER.candidate_id,
        RIVAL.candidate_id,
    ]
    assert [entry.rank for entry in analysis.ranking.entries] == [1, 2]
    assert analysis.confidence is not None
    assert analysis.confidence.choice.candidate_id == WINNER.candidate_id
    assert analysis.confidence.ties == (RIVAL.candidate_id,)


def test_a_sweep_in_which_all_failed_can_be_analysed() -> None:
    analysis = analyse([TrialResult(record=make_record(WINNER, status=TrialStatus.CRASHED))], PROFILE)

    assert (analysis.confidence, analysis.fallbacks, len(analysis.ranking.unranked)) == (None, (), 1)
