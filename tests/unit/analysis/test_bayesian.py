"""What the search launches, without a process: every launch is answered by the sample space's own metrics."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from search_samples import BEST, METRICS, SPACE, candidate_at

from kvray.analysis.aggregate import Metrics
from kvray.analysis.bayesian import BayesianSampler
from kvray.analysis.sampler import ENUMERATED, EveryCandidate
from kvray.candidate import AttentionBackend, Candidate
from kvray.workload import Limits, WorkloadProfile, create_custom_profile

PROFILE = create_custom_profile(
    "sample", context_lengths=(64,), output_lengths=(8,), weight_ttft=0.4, weight_throughput=0.4, weight_memory=0.2
)


def make_search(
    *,
    profile: WorkloadProfile = PROFILE,
    forecasts: dict[str, Metrics] | None = None,
    seed: int = 0,
    space: list[Candidate] = SPACE,
) -> BayesianSampler:
    return BayesianSampler(space, profile=profile, forecasts=forecasts, seed=seed)


def launch(
    search: BayesianSampler,
    candidate: Candidate,
    *,
    noise: float = 0.0,
    failed: bool = False,
    peak_limit_mib: float = math.inf,
) -> None:
    """A trial from beginning to end."""
    key = candidate.candidate_id
    search.launched(key)
    if not failed:
        metrics = METRICS[key]
        keeps_limits = (metrics.peak_mib or 0.0) <= peak_limit_mib
        search.measured(key, 0, metrics, may_keep_limits=keeps_limits)
        noisy = replace(metrics, ttft_ms=metrics.ttft_ms * float(np.exp(noise)))
        search.measured(key, 1, noisy, may_keep_limits=keeps_limits)
    search.ended(key, failed=failed, seconds=10.0)


def run(
    search: BayesianSampler, *, at_most: int = 100, noise: float = 0.02, peak_limit_mib: float = math.inf
) -> list[Candidate]:
    """Everything that it launches, one after another."""
    generator, launched = np.random.default_rng(5), list[Candidate]()
    while len(launched) < at_most and (candidate := search.proposal()) is not None:
        launch(search, candidate, noise=noise * generator.standard_normal(), peak_limit_mib=peak_limit_mib)
        launched.append(candidate)
    return launched


def test_the_baseline_is_launched_first() -> None:
    assert make_search().proposal() == SPACE[0]


def test_the_best_is_found_without_launching_all() -> None:
    search = make_search()
    launched = run(search)
    assert BEST in launched
    assert len(launched) < len(SPACE)
    assert search.contenders()[0] == BEST.candidate_id


def test_nothing_is_launched_twice() -> None:
    launched = run(make_search())
    assert len(set(launched)) == len(launched)


def test_a_forecast_that_knows_saves_launches() -> None:
    assert len(run(make_search(forecasts=METRICS))) < len(run(make_search()))


def test_the_forecasts_favourite_follows_the_baseline_where_nothing_is_measured_yet() -> None:
    search = make_search(forecasts=METRICS)
    search.launched(SPACE[0].candidate_id)
    assert search.proposal() == BEST


def test_the_same_seed_and_measurements_give_the_same_launches() -> None:
    assert run(make_search(seed=3)) == run(make_search(seed=3))


def test_a_space_of_a_dozen_is_launched_as_a_whole() -> None:
    assert len(run(make_search(space=SPACE[:ENUMERATED]))) == ENUMERATED
    assert len(run(make_search(space=SPACE[:ENUMERATED], forecasts=METRICS))) == ENUMERATED


def test_a_running_candidate_is_not_proposed_again_and_counts_as_predicted() -> None:
    search = make_search(forecasts=METRICS)
    for candidate in (SPACE[0], candidate_at(0, 0, 1), candidate_at(1, 0, 0)):
        launch(search, candidate)
    first = search.proposal()
    assert first is not None
    search.launched(first.candidate_id)
    second = search.proposal()
    assert second is not None
    assert second != first


def test_what_always_fails_is_tried_last() -> None:
    search = make_search()
    launch(search, SPACE[0])
    for cache in range(3):
        launch(search, candidate_at(cache, 1, 1), failed=True)
    nexts = run(search, at_most=6)
    assert not any(one.attention is AttentionBackend.EAGER for one in nexts)


def test_a_failed_candidate_is_no_contender() -> None:
    search = make_search()
    launch(search, SPACE[0])
    search.measured(BEST.candidate_id, 0, METRICS[BEST.candidate_id])
    search.ended(BEST.candidate_id, failed=True, seconds=1.0)
    assert BEST.candidate_id not in search.contenders()


def test_whoever_misses_a_limit_is_not_the_one_to_beat() -> None:
    lean = PROFILE.model_copy(update={"limits": Limits(max_peak_mib=850.0)})
    search = make_search(profile=lean)
    for candidate in (SPACE[0], BEST):
        launch(search, candidate, peak_limit_mib=850.0)
    assert not search.contenders()
    launched = run(search, peak_limit_mib=850.0)
    assert search.contenders()
    assert {METRICS[key].peak_mib for key in search.contenders()} <= {700.0, 800.0}
    assert len(launched) < len(SPACE)


def test_the_leanest_are_launched_though_they_cannot_win() -> None:
    fast = PROFILE.model_copy(update={"weight_ttft": 0.5, "weight_throughput": 0.5, "weight_memory": 0.0})
    launched = run(make_search(profile=fast, forecasts=METRICS))
    assert min(METRICS[one.candidate_id].peak_mib or 0.0 for one in launched) == 700.0


def test_a_clearly_worse_candidate_has_no_chance_and_the_best_has_the_highest() -> None:
    search = make_search()
    for candidate in (SPACE[0], BEST, candidate_at(3, 1, 0), candidate_at(0, 0, 1)):
        launch(search, candidate)
    assert search.win_chance(candidate_at(3, 1, 0).candidate_id) < 0.01
    assert search.win_chance(BEST.candidate_id) > 0.5


def test_a_candidate_without_rivals_is_never_without_a_chance() -> None:
    search = make_search()
    launch(search, SPACE[0])
    assert search.win_chance(SPACE[0].candidate_id) == 1.0


def test_predictions_are_of_those_not_launched_the_likeliest_to_win_first() -> None:
    search = make_search()
    launched = run(search)
    predictions = search.predictions()
    assert {one.candidate for one in predictions} == set(SPACE) - set(launched)
    assert [one.chance for one in predictions] == sorted((one.chance for one in predictions), reverse=True)
    assert all(one.low < one.high for one in predictions)
    for one in predictions:
        truth = METRICS[one.candidate.candidate_id]
        assert one.ttft_ms == pytest.approx(truth.ttft_ms, rel=0.35)
        assert one.decode_tok_s == pytest.approx(truth.decode_tok_s, rel=0.35)


def test_a_prediction_says_what_it_expects_and_how_improbable_a_win_is() -> None:
    search = make_search()
    run(search)
    text = search.predictions()[-1].text
    assert text.startswith("predicted TTFT ")
    assert text.endswith("chance that it is more than 2 % better: below 0.1 %")


def test_a_search_that_is_often_surprised_launches_more() -> None:
    """Three-way interactions that no effect of axes or pairs explains."""

    def launched_at(wildness: float) -> int:
        generator, search, count = np.random.default_rng(1), make_search(), 0
        while (candidate := search.proposal()) is not None:
            key, count = candidate.candidate_id, count + 1
            factor = float(np.exp(wildness * generator.standard_normal()))
            metrics = replace(METRICS[key], ttft_ms=METRICS[key].ttft_ms * factor)
            search.launched(key)
            search.measured(key, 0, metrics)
            search.measured(key, 1, metrics)
            search.ended(key, failed=False, seconds=10.0)
        return count

    assert launched_at(0.5) > launched_at(0.02) + 4


def test_nothing_is_predicted_before_anything_is_measured() -> None:
    assert make_search().predictions() == ()
    assert make_search().contenders() == ()


def test_a_space_without_memory_figures_is_searched_by_speed() -> None:
    search = make_search()
    for candidate in (SPACE[0], BEST, candidate_at(3, 1, 0)):
        key = candidate.candidate_id
        search.launched(key)
        search.measured(key, 1, replace(METRICS[key], peak_mib=None))
        search.ended(key, failed=False, seconds=1.0)
    assert search.proposal() is not None
    assert all(one.peak_mib is None for one in search.predictions())


def test_every_candidate_is_launched_in_order_by_the_plain_search() -> None:
    plain = EveryCandidate(SPACE)
    order = []
    while (candidate := plain.proposal()) is not None:
        plain.launched(candidate.candidate_id)
        order.append(candidate)
    assert order == SPACE


def test_after_the_baseline_alone_others_are_expected_to_differ_from_it_as_forecast() -> None:
    """The forecast may be wrong by a factor that all share."""
    forecasts = {key: replace(one, ttft_ms=one.ttft_ms / 3) for key, one in METRICS.items()}
    search = make_search(forecasts=forecasts)
    launch(search, SPACE[0])
    expected = {one.candidate.candidate_id: one.ttft_ms for one in search.predictions()}
    for candidate in (BEST, candidate_at(3, 1, 0)):
        key = candidate.candidate_id
        assert expected[key] == pytest.approx(METRICS[key].ttft_ms, rel=0.05)


def slowed(metrics: Metrics, factor: float) -> Metrics:
    return replace(metrics, ttft_ms=metrics.ttft_ms * factor, decode_tok_s=metrics.decode_tok_s / factor)


def after_a_disturbance(*, is_disturbed: bool) -> BayesianSampler:
    """Some of the space as it is, and the best of all by runs that took 1.7 times as long."""
    search = make_search()
    for candidate in SPACE[::3]:
        if candidate != BEST:
            launch(search, candidate)
    search.launched(BEST.candidate_id)
    search.measured(BEST.candidate_id, 0, slowed(METRICS[BEST.candidate_id], 1.7), is_disturbed=is_disturbed)
    return search


def test_what_disturbed_runs_alone_have_shown_costs_nobody_its_chance() -> None:
    chance = after_a_disturbance(is_disturbed=True).win_chance(BEST.candidate_id)
    assert chance > 0.05
    assert chance > 2 * after_a_disturbance(is_disturbed=False).win_chance(BEST.candidate_id)


def test_a_disturbed_rung_does_not_replace_what_an_earlier_one_has_shown() -> None:
    search, plain = make_search(), make_search()
    for one in (search, plain):
        for candidate in SPACE[:3]:
            launch(one, candidate)
    key = SPACE[0].candidate_id
    search.measured(key, 2, slowed(METRICS[key], 4.0), is_disturbed=True)
    assert search.predictions() == plain.predictions()
