"""What to try when the winner does not fit."""

from __future__ import annotations

from typing import Any

import pytest
from analysis_samples import make_candidate, make_profile, make_record, make_result

from kvray.analysis.fallback import Fallback, fallback_chain
from kvray.analysis.ranking import rank
from kvray.candidate import Candidate
from kvray.record import TrialResult, TrialStatus
from kvray.workload import Limits

PROFILE = make_profile()


def result(name: int, *, ttft_ms: float, peak_mib: float | None, batch_size: int = 1, **values: Any) -> TrialResult:
    candidate = make_candidate(name, batch_size=batch_size)
    return make_result(candidate, PROFILE, ttft_ms=ttft_ms, peak_mib=peak_mib, **values)


def chain_of(*results: TrialResult) -> list[str]:
    return [one.record.candidate_id for one in fallback_chain(rank(results, PROFILE))]


def ids(*names: int) -> list[str]:
    return [make_candidate(name).candidate_id for name in names]


def test_each_fallback_is_the_best_of_those_that_need_less() -> None:
    winner = result(0, ttft_ms=10.0, peak_mib=1000.0)
    middle, slower_middle = result(1, ttft_ms=50.0, peak_mib=800.0), result(2, ttft_ms=70.0, peak_mib=800.0)
    leanest = result(3, ttft_ms=400.0, peak_mib=600.0)

    assert chain_of(leanest, slower_middle, middle, winner) == ids(1, 3)


def test_less_than_2_percent_less_memory_is_no_fallback() -> None:
    winner = result(0, ttft_ms=10.0, peak_mib=1000.0)

    assert chain_of(winner, result(1, ttft_ms=50.0, peak_mib=981.0)) == []
    assert chain_of(winner, result(1, ttft_ms=50.0, peak_mib=979.0)) == ids(1)


def test_a_long_chain_keeps_its_first_two_and_the_leanest() -> None:
    steps = [result(name, ttft_ms=10.0 * 4**name, peak_mib=1000.0 - 100.0 * name) for name in range(6)]

    assert chain_of(*steps) == ids(1, 2, 5)


def test_a_candidate_that_misses_a_limit_is_a_fallback() -> None:
    profile = make_profile(limits=Limits(max_ttft_ms=100.0))
    results = [result(0, ttft_ms=10.0, peak_mib=1000.0), result(1, ttft_ms=500.0, peak_mib=500.0)]

    chain = fallback_chain(rank(results, profile))

    assert [one.record.candidate_id for one in chain] == ids(1)


def test_a_candidate_stopped_after_every_cell_is_a_fallback() -> None:
    late = result(1, ttft_ms=500.0, peak_mib=500.0, repeats=1, status=TrialStatus.STOPPED, rung=1)

    assert chain_of(result(0, ttft_ms=10.0, peak_mib=1000.0), late) == ids(1)


@pytest.mark.parametrize("status", [status for status in TrialStatus if status.is_failure])
def test_failures_are_no_fallbacks(status: TrialStatus) -> None:
    failed = result(1, ttft_ms=500.0, peak_mib=500.0, status=status)

    assert chain_of(result(0, ttft_ms=10.0, peak_mib=1000.0), failed) == []


def test_what_fits_is_judged_by_the_hungriest_cell() -> None:
    def with_peaks(candidate: Candidate, ttft_ms: float, small: float, large: float) -> TrialResult:
        whole = make_result(candidate, PROFILE, ttft_ms=ttft_ms)
        runs = [
            run.__class__(**{**vars(run), "peak_mib": small if run.context_tokens == 128 else large})
            for run in whole.runs
        ]
        return TrialResult(record=whole.record, runs=tuple(runs))

    # The second needs less on average and more where it counts.
    winner = with_peaks(make_candidate(0), 10.0, 900.0, 1000.0)
    spiky = with_peaks(make_candidate(1), 500.0, 100.0, 1100.0)

    assert chain_of(winner, spiky) == []


def test_a_fallback_has_the_winners_batch_size() -> None:
    both = make_profile(batch_sizes=(1, 4))
    results = [
        make_result(make_candidate(0, batch_size=4), both, ttft_ms=10.0, decode_tok_s=200.0),
        make_result(make_candidate(1), both, ttft_ms=50.0, peak_mib=500.0),
        make_result(make_candidate(2, batch_size=4), both, ttft_ms=500.0, peak_mib=600.0),
    ]

    chain = fallback_chain(rank(results, both))

    assert [one.record.candidate_id for one in chain] == [make_candidate(2, batch_size=4).candidate_id]


def test_the_reason_has_the_numbers() -> None:
    results = [result(0, ttft_ms=10.0, peak_mib=1000.0), result(1, ttft_ms=50.0, peak_mib=750.0)]

    (fallback,) = fallback_chain(rank(results, PROFILE))

    assert isinstance(fallback, Fallback)
    assert fallback.peak_mib == 750.0
    assert fallback.reason == (
        f"Peaks at 750 MiB, 25 % less memory than {make_candidate(0).label}; TTFT 50.0 ms, 50.0 tok/s."
    )


def test_without_memory_figures_or_a_winner_the_chain_is_empty() -> None:
    failed = TrialResult(record=make_record(make_candidate(1), status=TrialStatus.OOM))

    assert chain_of(result(0, ttft_ms=10.0, peak_mib=None), result(1, ttft_ms=50.0, peak_mib=None)) == []
    assert chain_of(failed) == []
