"""Engines of unlike noise in one sweep: each has a spread of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from analysis_samples import make_candidate, make_profile, make_result
from evidence_samples import UTILITY_IS_THROUGHPUT, make_evidence, of_throughputs

from kvray.analysis.confirming import next_round
from kvray.analysis.engine_noise import run_variances
from kvray.analysis.evidence import DECODE, TTFT, Evidence, gather_evidence
from kvray.analysis.intervals import gain_interval, metric_interval
from kvray.analysis.noise import process_variances
from kvray.analysis.utility_posterior import draw_utilities

QUIET, NOISY = "abcd", "efgh"
ENGINES = dict.fromkeys(QUIET, "quiet") | dict.fromkeys(NOISY, "noisy")


def spread_out(quiet: float = 0.01, noisy: float = 0.06, **lone: float) -> dict[str, list[float]]:
    """Four processes of each of eight candidates, and one of each lone one."""
    generator = np.random.default_rng(4)
    deviations = dict.fromkeys(QUIET, quiet) | dict.fromkeys(NOISY, noisy)
    processes = {key: list(50.0 * np.exp(generator.normal(0, sd, 4))) for key, sd in deviations.items()}
    return processes | {key: [value] for key, value in lone.items()}


def half_width(evidence: Evidence, key: str) -> float:
    return metric_interval(evidence, key, DECODE).half_width


def test_each_engine_has_a_spread_of_its_own() -> None:
    evidence = of_throughputs(spread_out(), confirmed=False, engines=ENGINES)

    spreads = np.sqrt(np.median(process_variances(evidence, UTILITY_IS_THROUGHPUT).own, axis=0))

    assert np.median(spreads[:4]) == pytest.approx(0.01, rel=0.35)
    assert np.median(spreads[4:]) == pytest.approx(0.06, rel=0.35)


def test_figures_of_one_engine_are_what_they_were_before_engines_were_told_apart() -> None:
    processes = {"a": [50.0, 51.2, 49.1, 50.4], "b": [48.0, 49.9, 47.2, 48.8], "c": [30.0], "d": [44.0, 44.9]}
    for engines in (None, dict.fromkeys(processes, "quiet")):
        evidence = of_throughputs(processes, engines=engines)
        posterior = draw_utilities(evidence, evidence.ids, UTILITY_IS_THROUGHPUT, seed=7, draws=2000)

        assert posterior.lead_shares == {"a": 0.9995, "b": 0.0005, "c": 0.0, "d": 0.0}
        assert posterior.utilities.sum() == pytest.approx(29956.430371210525, rel=1e-12)
        assert gain_interval(evidence, "b", "a", DECODE).half_width == pytest.approx(0.01747607126270839, rel=2e-4)
        assert half_width(evidence, "a") == pytest.approx(0.021347460508423406, rel=2e-4)
        assert half_width(evidence, "c") == pytest.approx(0.0483635844117867, rel=2e-4)


def test_a_single_process_of_an_engine_is_neither_certain_nor_worthless() -> None:
    def lone(engine: str, **spreads: float) -> float:
        processes = spread_out(**spreads, lone=55.0)
        return half_width(of_throughputs(processes, confirmed=False, engines=ENGINES | {"lone": engine}), "lone")

    third, nowhere_else = lone("third"), half_width(of_throughputs({"lone": [55.0], "other": [40.0]}), "lone")

    assert lone("quiet") < third < lone("noisy")
    assert nowhere_else / 2 < third < 5 * nowhere_else
    # An engine of which nothing else is known is believed to be more like those that were measured.
    assert lone("third", quiet=0.004, noisy=0.004) < nowhere_else < lone("third", quiet=0.06, noisy=0.06)


def test_a_noisy_engine_widens_no_gain_between_two_quiet_candidates() -> None:
    def gain(noisy: float) -> float:
        evidence = of_throughputs(spread_out(noisy=noisy), engines=ENGINES)
        return gain_interval(evidence, "a", "b", DECODE).half_width

    assert gain(0.06) < 1.1 * gain(0.01)


def test_confirming_ends_when_enough_is_known_of_a_quiet_engine_however_noisy_the_other_is() -> None:
    def goes_on(engines: dict[str, str] | None) -> bool:
        quiet = {"a": [60.0, 60.2, 59.9], "b": [50.0, 50.1, 49.9], "c": [45.0, 45.1], "d": [44.0, 44.2]}
        noisy = {"e": [30.0, 34.0, 27.0], "f": [29.0, 25.0, 32.0], "g": [28.0, 31.0], "h": [27.0, 23.0]}
        evidence = of_throughputs(quiet | noisy, engines=engines)
        return bool(next_round(evidence, baseline_id="b", round_number=3, most_rounds=5, weights=UTILITY_IS_THROUGHPUT))

    assert goes_on(None)
    assert not goes_on(ENGINES)


def test_luck_is_measured_against_candidates_of_the_same_engine() -> None:
    crowd = {key: [50.0] for key in "abcdefghijkl"} | {"lucky": [52.0]}
    far = {key: [speed] for key, speed in (("p", 148.0), ("q", 150.0), ("r", 152.0))}
    engines = dict.fromkeys(crowd, "slow") | dict.fromkeys(far, "fast")

    def ahead(evidence: Evidence) -> float:
        means = draw_utilities(evidence, evidence.ids, UTILITY_IS_THROUGHPUT, seed=0, draws=4000).means
        return means["lucky"] - means["a"]

    beside_others = ahead(of_throughputs(crowd | far, engines=engines))

    assert beside_others == pytest.approx(ahead(of_throughputs(crowd)), rel=0.4)
    assert ahead(of_throughputs(crowd | far)) > 1.5 * beside_others, "as if all were of one engine"


def test_the_only_candidate_of_an_engine_is_not_drawn_to_the_others() -> None:
    crowd = {key: [50.0] for key in "abcdefghijkl"}
    engines = dict.fromkeys(crowd, "slow") | {"lone": "fast"}
    evidence = of_throughputs(crowd | {"lone": [55.0]}, engines=engines)

    posterior = draw_utilities(evidence, evidence.ids, UTILITY_IS_THROUGHPUT, seed=0, draws=4000)

    assert posterior.means["lone"] == pytest.approx(np.log(55.0), abs=0.01)
    ratio = posterior.score_ratios("a")["lone"]
    assert 0.98 < ratio.low < 1.08
    assert 1.12 < ratio.high < 1.24


def test_rounds_are_compared_across_engines() -> None:
    # Everything ran at 0.8 of its speed in both rounds.
    processes = {"a": [50.0, 40.1, 40.0], "e": [48.0, 38.4, 38.5], "b": [44.0], "f": [43.0]}
    evidence = of_throughputs(processes, engines={key: ENGINES[key] for key in processes})

    assert draw_utilities(evidence, evidence.ids, UTILITY_IS_THROUGHPUT, seed=0, draws=2000).leader == "a"


def test_runs_of_an_engine_tell_how_much_its_own_runs_differ() -> None:
    profile, one, other = make_profile(), make_candidate(1), replace(make_candidate(2), engine="other")
    results = [
        make_result(one, profile, repeats=8, ttft_factor=lambda cell, repeat: 1.0 + 0.1 * (repeat % 2)),
        make_result(other, profile, repeats=8, ttft_factor=lambda cell, repeat: 1.0 + 0.01 * (repeat % 2)),
    ]

    evidence = gather_evidence(results, profile)
    noisy, quiet = (
        evidence.within[evidence.owner == evidence.place_of[key.candidate_id], TTFT] for key in (one, other)
    )

    assert evidence.engines[evidence.place_of[one.candidate_id]] == "fake"
    assert 7 < np.sqrt(noisy / quiet).item() < 10, "drawn towards each other a little"
    assert evidence.restricted([other.candidate_id]).engines == ("other",)


def test_run_variances_are_an_engines_own_as_far_as_it_was_measured() -> None:
    squares = np.array([[0.0004 * 50], [0.0001 * 50], [0.0]])

    found = run_variances(squares, np.array([50.0, 50.0, 0.0]))[:, 0]

    assert found[:2] == pytest.approx([0.0004, 0.0001], rel=0.05)
    assert found[2] == pytest.approx(0.0002, rel=0.05), "the engine without repeats has what the others have in common"
    assert run_variances(squares[:1], np.array([50.0])).item() == squares[0, 0] / 50
    assert run_variances(squares, np.zeros(3)).tolist() == [[0.0]] * 3


def test_a_few_runs_that_agree_by_chance_do_not_make_an_engine_exact() -> None:
    found = run_variances(np.array([[1e-7], [0.0004 * 50]]), np.array([1.0, 50.0]))

    assert 1e-6 < found[0, 0] < 0.0004


def test_the_variance_within_a_process_stays_with_its_engine() -> None:
    processes = {key: [(0, 100.0, 50.0, 1.0)] for key in "ae"}
    evidence = make_evidence(processes, engines={"a": "quiet", "e": "noisy"})
    within = evidence.within.copy()
    within[1, DECODE] = 0.1**2

    evidence = replace(evidence, within=within)

    assert half_width(evidence, "e") > 0.19 > 2 * half_width(evidence, "a")
