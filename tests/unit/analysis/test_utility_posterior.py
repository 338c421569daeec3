"""Who leads, and how surely, given fresh processes."""

from __future__ import annotations

import numpy as np
import pytest
from evidence_samples import UTILITY_IS_THROUGHPUT, of_throughputs

from kvray.analysis.evidence import Evidence
from kvray.analysis.utility_posterior import UtilityPosterior, draw_utilities


def stand(evidence: Evidence, *ids: str, seed: int = 0) -> UtilityPosterior:
    return draw_utilities(evidence, ids or evidence.ids, UTILITY_IS_THROUGHPUT, seed=seed, draws=4000)


def test_the_best_of_many_is_believed_to_be_less_good_than_measured() -> None:
    measured = {key: [50.0] for key in "abcdefghijkl"} | {"lucky": [52.0]}
    posterior = stand(of_throughputs(measured))

    assert posterior.leader == "lucky"
    assert posterior.means["lucky"] - posterior.means["a"] < np.log(52.0 / 50.0) / 2


def test_confirming_rounds_overrule_the_search() -> None:
    evidence = of_throughputs({"lucky": [55.0, 50.0, 50.1, 49.9], "steady": [53.0, 53.0, 53.1, 52.9], "other": [40.0]})

    posterior = stand(evidence)

    assert posterior.leader == "steady"
    assert posterior.lead_shares["steady"] > 0.9


def test_a_slow_round_does_not_count_against_those_that_ran_in_it() -> None:
    # Everything ran at 0.8 of its speed in both rounds; `left` was not among them.
    evidence = of_throughputs({"best": [50.0, 40.1, 40.0], "close": [48.0, 38.4, 38.5], "left": [44.0]})

    assert stand(evidence).leader == "best"


def test_shares_add_up_and_ties_are_those_that_lead_often() -> None:
    posterior = stand(of_throughputs({"a": [50.0], "b": [50.0], "far": [30.0]}))

    assert sum(posterior.lead_shares.values()) == pytest.approx(1.0)
    assert posterior.ties("a") == ("b",)
    assert posterior.near_share("a") > posterior.lead_shares["a"]


def test_only_the_named_contend_and_all_tell_of_the_noise() -> None:
    processes = {"a": [50.0], "b": [48.0], "calm": [30.0, 30.0, 30.0, 30.0, 30.0]}
    torn = processes | {"calm": [30.0, 20.0, 33.0, 26.0, 37.0]}

    calm = stand(of_throughputs(processes, confirmed=False), "a", "b")

    assert set(calm.ids) == {"a", "b"}
    assert calm.lead_shares["a"] > stand(of_throughputs(torn, confirmed=False), "a", "b").lead_shares["a"] + 0.1


def test_the_same_seed_gives_the_same_draws() -> None:
    evidence = of_throughputs({"a": [50.0, 49.0], "b": [48.0, 50.5]})

    assert np.array_equal(stand(evidence, seed=3).utilities, stand(evidence, seed=3).utilities)
    assert not np.array_equal(stand(evidence, seed=3).utilities, stand(evidence, seed=4).utilities)


def test_the_ratio_of_each_score_is_that_of_its_draws() -> None:
    posterior = stand(of_throughputs({"a": [50.0], "b": [52.0], "c": [49.0]}))
    ratios, ahead = posterior.score_ratios("a"), posterior.utilities - posterior.utilities[:, :1]
    lows, highs = np.exp(np.quantile(ahead, (0.025, 0.975), axis=0))
    for place, key in enumerate(posterior.ids):
        ratio = ratios[key]
        assert (ratio.low, ratio.value, ratio.high) == (lows[place], np.exp(ahead[:, place].mean()), highs[place])
