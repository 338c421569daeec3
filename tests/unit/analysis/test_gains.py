"""What a candidate gains over the baseline, and by which processes."""

from __future__ import annotations

import numpy as np
import pytest
from analysis_samples import make_candidate, make_profile, make_result

from kvray.analysis.evidence import confirm_trial_id
from kvray.analysis.ranking import Gain, rank
from kvray.candidate import Candidate
from kvray.record import Role, TrialResult

PROFILE = make_profile()
BASELINE, RIVAL, WINNER = make_candidate(0), make_candidate(1), make_candidate(2)


def gains(*results: TrialResult) -> dict[str, Gain]:
    found = {entry.record.candidate_id: entry.gain for entry in rank(results, PROFILE).entries}
    return {key: gain for key, gain in found.items() if gain is not None}


def gain_of(candidate: Candidate, *results: TrialResult) -> Gain:
    return gains(*results)[candidate.candidate_id]


def confirmed(candidate: Candidate, role: Role, searched_ms: float, confirmed_ms: float) -> list[TrialResult]:
    """A search trial, and three rounds on a machine that is slower in the second one."""
    rounds = [
        make_result(
            candidate,
            PROFILE,
            ttft_ms=confirmed_ms * slower,
            role=Role.CONFIRM,
            trial_id=confirm_trial_id(number, candidate.candidate_id),
        )
        for number, slower in ((1, 1.0), (2, 1.5), (3, 0.9))
    ]
    return [make_result(candidate, PROFILE, ttft_ms=searched_ms, role=role), *rounds]


def test_gains_rest_on_pairs_of_one_confirming_round_where_there_are_any() -> None:
    results = [
        *confirmed(BASELINE, Role.BASELINE, 100.0, 100.0),
        *confirmed(WINNER, Role.SEARCH, 25.0, 50.0),
        make_result(RIVAL, PROFILE, ttft_ms=80.0),
    ]

    found = gains(*results)

    assert found[WINNER.candidate_id].ttft == pytest.approx(1.0), "without the lucky search trial"
    assert found[WINNER.candidate_id].throughput == pytest.approx(0.0)
    assert {key: gain.pairs for key, gain in found.items()} == {
        WINNER.candidate_id: 3,
        RIVAL.candidate_id: 0,
        BASELINE.candidate_id: 0,
    }


def test_every_gain_lies_within_its_interval() -> None:
    found = gains(
        *confirmed(BASELINE, Role.BASELINE, 100.0, 100.0),
        *confirmed(WINNER, Role.SEARCH, 25.0, 50.0),
        make_result(RIVAL, PROFILE, ttft_ms=80.0),
    )

    for gain in found.values():
        assert gain.ttft_interval is not None
        assert gain.ttft == gain.ttft_interval.value
        assert gain.ttft_interval.low <= gain.ttft <= gain.ttft_interval.high


def test_one_process_each_assumes_the_noise_between_processes() -> None:
    gain = gain_of(
        WINNER, make_result(BASELINE, PROFILE, role=Role.BASELINE), make_result(WINNER, PROFILE, ttft_ms=50.0)
    )

    assert gain.ttft_interval is not None
    assert gain.throughput_interval is not None
    # sd of a ratio of two: about 6.5 %·√2 = 9 % of a ratio of 2, and 2.2 %·√2 = 3.0 %; the interval is ± 1.96 of them.
    assert gain.ttft_interval.high - gain.ttft_interval.low == pytest.approx(0.75, abs=0.1)
    assert gain.throughput_interval.high - gain.throughput_interval.low == pytest.approx(0.12, abs=0.015)


def test_more_processes_narrow_the_interval() -> None:
    def width(processes: int) -> float:
        generator = np.random.default_rng(7)

        def trials(candidate: Candidate, first: Role, ttft_ms: float) -> list[TrialResult]:
            factors = np.exp(generator.normal(0.0, 0.06, processes)).tolist()
            roles = [first, *[Role.SEARCH] * (processes - 1)]
            return [
                make_result(candidate, PROFILE, ttft_ms=ttft_ms * factor, role=role)
                for factor, role in zip(factors, roles, strict=True)
            ]

        interval = gain_of(
            WINNER, *trials(BASELINE, Role.BASELINE, 100.0), *trials(WINNER, Role.SEARCH, 60.0)
        ).ttft_interval
        assert interval is not None
        return interval.high - interval.low

    assert width(8) < width(1) * 0.6


def test_the_baseline_gains_exactly_nothing() -> None:
    gain = gain_of(BASELINE, make_result(BASELINE, PROFILE, role=Role.BASELINE))

    assert (gain.ttft, gain.throughput, gain.memory, gain.is_measurable) == (0.0, 0.0, 0.0, False)


@pytest.mark.parametrize(
    ("changes", "measurable"),
    [
        ({"ttft_ms": 105.0, "decode_tok_s": 51.0}, False),
        ({"ttft_ms": 60.0, "decode_tok_s": 20.0}, True),
        ({"decode_tok_s": 60.0}, True),
        ({"peak_mib": 970.0}, True),
        ({"peak_mib": 990.0}, False),
    ],
)
def test_a_gain_is_measurable_where_one_interval_excludes_none_or_memory_is_saved(
    changes: dict[str, float], measurable: bool
) -> None:
    baseline = make_result(BASELINE, PROFILE, role=Role.BASELINE)

    assert gain_of(WINNER, baseline, make_result(WINNER, PROFILE, **changes)).is_measurable is measurable  # type: ignore[arg-type]


def test_without_memory_figures_none_is_saved() -> None:
    results = (
        make_result(one, PROFILE, peak_mib=None, role=role)
        for one, role in ((BASELINE, Role.BASELINE), (WINNER, Role.SEARCH))
    )

    assert not gain_of(WINNER, *results).saves_memory
