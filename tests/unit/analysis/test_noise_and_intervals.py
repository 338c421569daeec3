"""What is believed of the noise, and the intervals that follow."""

from __future__ import annotations

import math

import numpy as np
import pytest
from evidence_samples import UTILITY_IS_THROUGHPUT, make_evidence, of_throughputs

from kvray.analysis.evidence import DECODE, TTFT, Evidence
from kvray.analysis.intervals import gain_interval, metric_interval, paired_rounds
from kvray.analysis.noise import PROCESS_SD, half_width_95, process_variances


def typical_sd(evidence: Evidence, *, paired: bool = True) -> float:
    return float(np.sqrt(np.median(process_variances(evidence, UTILITY_IS_THROUGHPUT, paired=paired).own)))


def test_single_processes_leave_what_is_known_beforehand() -> None:
    assert typical_sd(of_throughputs({"a": [50.0], "b": [30.0]})) == pytest.approx(PROCESS_SD[DECODE], rel=0.1)


def test_repeated_processes_correct_it_in_either_direction() -> None:
    generator = np.random.default_rng(2)

    def seen(sd: float) -> float:
        values = {key: list(50.0 * np.exp(generator.normal(0, sd, 4))) for key in "abcd"}
        return typical_sd(of_throughputs(values, confirmed=False))

    assert seen(0.05) == pytest.approx(0.05, rel=0.35)
    assert seen(0.004) == pytest.approx(0.004, rel=0.5)


def test_what_a_round_has_in_common_is_no_noise_of_a_comparison() -> None:
    slower = [1.0, 0.8, 1.2, 0.9]
    evidence = of_throughputs({key: [level * one for one in slower] for key, level in (("a", 50.0), ("b", 40.0))})

    assert typical_sd(evidence) < 0.3 * typical_sd(evidence, paired=False)


def test_the_half_width_of_a_known_variance_is_196_standard_deviations() -> None:
    assert half_width_95(np.full(16, 4.0)) == pytest.approx(1.96 * 2, rel=0.01)


def test_a_gain_pairs_the_processes_of_a_round() -> None:
    # Round 2 was twice as slow for both; the search and the unpaired round 3 say something else entirely.
    evidence = make_evidence(
        {
            "winner": [(0, 10.0, 90.0, 1.0), (1, 50.0, 60.0, 1.0), (2, 100.0, 30.0, 1.0), (3, 10.0, 90.0, 1.0)],
            "baseline": [(0, 100.0, 40.0, 1.0), (1, 100.0, 40.0, 1.0), (2, 200.0, 20.0, 1.0)],
        }
    )

    assert paired_rounds(evidence, "winner", "baseline") == [1, 2]
    assert gain_interval(evidence, "winner", "baseline", DECODE).as_gain().value == pytest.approx(0.5)
    assert gain_interval(evidence, "winner", "baseline", TTFT).negated().as_gain().value == pytest.approx(1.0)


def test_without_rounds_a_gain_rests_on_all_processes() -> None:
    evidence = of_throughputs({"winner": [60.0, 54.0], "baseline": [40.0]}, confirmed=False)

    gain = gain_interval(evidence, "winner", "baseline", DECODE)

    assert gain.value == pytest.approx(math.log(math.sqrt(60 * 54) / 40))
    assert gain.half_width > 0


def test_the_baseline_gains_exactly_nothing_over_itself() -> None:
    gain = gain_interval(of_throughputs({"a": [50.0]}), "a", "a", DECODE).as_gain()

    assert (gain.low, gain.value, gain.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_an_interval_holds_the_true_mean_in_95_of_100(processes: int) -> None:
    generator = np.random.default_rng(processes)
    held = []
    for _ in range(600):
        sd = PROCESS_SD[DECODE] * math.exp(generator.normal(0, 0.5))
        values = {key: list(50.0 * np.exp(generator.normal(0, sd, processes))) for key in ("a", "b")}
        interval = metric_interval(of_throughputs(values, confirmed=False), "a", DECODE).as_factor()
        held.append(interval.low <= 50.0 <= interval.high)

    assert np.mean(held) == pytest.approx(0.95, abs=0.025)


PAIRS = {"winner": [(1, 30.5), (2, 29.3), (3, 30.1)], "baseline": [(1, 71.5), (2, 72.9), (3, 68.2)]}
"""Rounds and TTFT in ms."""
PLAIN = 0.118
"""Half the t interval of their three logarithmic ratios."""


def gain_of_ttft(third: list[tuple[int, float]], *, disturbed: tuple[str, ...] = ()) -> float:
    """Half width of the winner's gain beside a third candidate with these rounds and times."""
    processes = {
        key: [(place, ttft, 50.0, 1.0) for place, ttft in of] for key, of in (PAIRS | {"third": third}).items()
    }
    return gain_interval(make_evidence(processes, disturbed=disturbed), "winner", "baseline", TTFT).half_width


def test_an_outlying_process_of_a_third_candidate_hardly_widens_a_gain() -> None:
    alone = gain_of_ttft([(0, 40.0)])
    torn = gain_of_ttft([(1, 40.0), (2, 80.0), (3, 40.4)])

    assert torn < 1.35 * alone
    assert torn < PLAIN


def test_disturbed_processes_of_others_tell_nothing_about_a_gain() -> None:
    alone = gain_of_ttft([(0, 40.0)])

    assert gain_of_ttft([(0, 40.0), (0, 80.0), (0, 35.0)], disturbed=("third",)) == pytest.approx(alone, rel=1e-3)
    assert gain_of_ttft([(1, 40.0), (2, 80.0), (3, 35.0)], disturbed=("third",)) < 1.1 * alone


def test_an_outlying_process_of_its_own_widens_an_interval() -> None:
    calm, torn = (
        metric_interval(of_throughputs({"a": values, "b": [40.0, 40.2, 39.9, 40.1]}, confirmed=False), "a", DECODE)
        for values in ([50.0, 50.3, 49.8, 50.1], [50.0, 50.3, 35.0, 50.1])
    )

    assert torn.half_width > 4 * calm.half_width
