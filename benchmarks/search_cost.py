"""What a search costs and misses: kvray and others on landscapes with known truth, in shares of the exhaustive seconds.

Landscapes are made up (ordinary and hard, 24 to 400 candidates, with numbers on two axes), or recorded: real exhaustive
sweeps, replayed with the noise between and within processes that they showed. Every method sees the same noise. Regret
is what the chosen candidate's true score lacks of the best. `random` and `optuna` may spend what kvray spent in the
same replay; `grid`, `asha` and `dominance` run to their own end; `asha_equal` is ASHA cut at kvray's seconds;
`kvray_names` takes numbers for names. All but grid, one run of everything, end with the same confirming rounds.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from landscapes import HARD, ORDINARY, QUIET, Kind, Landscape, make_landscape, recorded_landscapes
from number_landscapes import NUMBERS, make_number_landscape
from output import Figure, make_parser, print_table, write_figures
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from replay import Outcome, replay

from kvray.analysis.aggregate import Metrics
from kvray.analysis.axis_values import number_axes
from kvray.analysis.bayesian import BayesianSampler
from kvray.analysis.sampler import EveryCandidate
from kvray.config import CONFIRM_ROUNDS
from kvray.measuring.recording import rung_metrics
from kvray.record import Role, TrialResult
from kvray.sweep.optuna import OptunaSampler
from kvray.sweep.scheduler import RUNGS
from kvray.sweep.slot import FIDELITY, RESULT, UTILITY
from kvray.sweep.trial_queue import SweepQueue

NAMES = "kvray_names"
"""kvray that takes every number for a name, on the landscapes with two axes of numbers."""
METHODS = ("kvray", NAMES, "grid", "asha", "asha_equal", "random", "optuna", "dominance")
WORSE = 1.05
"""What dominance pruning stops: worse by 5 % in all three metrics than a finished candidate."""


class PlainHalving(AsyncHyperBandScheduler):
    """ASHA as Tune has it, but for the baseline, which every method measures completely."""

    def __init__(self, queue: SweepQueue) -> None:
        super().__init__(**RUNGS)
        self._queue = queue

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """STOP or CONTINUE."""
        verdict = str(super().on_trial_result(tune_controller, trial, result))
        is_searching = result[RESULT].record.role is Role.SEARCH
        if is_searching and self._queue.is_out_of_time():
            return str(TrialScheduler.STOP)
        return verdict if is_searching else str(TrialScheduler.CONTINUE)


class DominancePruning(AsyncHyperBandScheduler):
    """Stops a trial that is clearly worse in everything than one that has got as far."""

    def __init__(self, queue: SweepQueue) -> None:
        super().__init__(time_attr=FIDELITY, metric=UTILITY, mode="max")
        self._seen: defaultdict[int, list[Metrics]] = defaultdict(list)
        del queue

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """STOP or CONTINUE."""
        del tune_controller, trial
        measured: TrialResult = result[RESULT]
        metrics = rung_metrics(measured.runs, measured.record.rung)
        if metrics is None or measured.record.role is not Role.SEARCH:
            return str(TrialScheduler.CONTINUE)
        peers = self._seen[measured.record.rung or 0]
        is_beaten = any(_beats(other, metrics) for other in peers)
        peers.append(metrics)
        return str(TrialScheduler.STOP if is_beaten else TrialScheduler.CONTINUE)


def _beats(other: Metrics, one: Metrics) -> bool:
    return (
        one.ttft_ms > WORSE * other.ttft_ms
        and one.decode_tok_s * WORSE < other.decode_tok_s
        and (one.peak_mib or 0.0) > WORSE * (other.peak_mib or 0.0)
    )


def run_method(method: str, landscape: Landscape, seed: int, seconds: float | None) -> Outcome:
    """One replay of one method; `seconds` are those of kvray."""
    shuffled = _shuffled(landscape, seed)
    common: dict[str, Any] = {"seed": seed, "confirm_rounds": CONFIRM_ROUNDS}
    match method:
        case "kvray" | "kvray_names":
            sampler = BayesianSampler(
                landscape.candidates,
                profile=landscape.profile,
                forecasts=landscape.forecasts(),
                numbers=number_axes(landscape.candidates) if method == "kvray" else (),
                seed=seed,
            )
            return replay(landscape, sampler, repeats_apart=True, **common)
        case "grid":
            return replay(landscape, shuffled, stops_early=False, seed=seed, confirm_rounds=0)
        case "asha":
            return replay(landscape, shuffled, make_scheduler=PlainHalving, **common)
        case "asha_equal":
            return replay(landscape, shuffled, make_scheduler=PlainHalving, seconds=seconds, **common)
        case "random":
            return replay(landscape, shuffled, stops_early=False, seconds=seconds, **common)
        case "optuna":
            optuna = OptunaSampler(landscape.candidates, profile=landscape.profile, seed=seed)
            return replay(landscape, optuna, make_scheduler=PlainHalving, seconds=seconds, **common)
        case "dominance":
            return replay(landscape, shuffled, make_scheduler=DominancePruning, **common)
    raise ValueError(method)


def _shuffled(landscape: Landscape, seed: int) -> EveryCandidate:
    baseline, *others = landscape.candidates
    order = np.random.default_rng([seed, 3]).permutation(len(others))
    return EveryCandidate([baseline, *(others[place] for place in order)])


def run_kind(landscapes: Sequence[Landscape], methods: Sequence[str]) -> dict[str, list[Outcome]]:
    """All methods on the same landscapes."""
    found: defaultdict[str, list[Outcome]] = defaultdict(list)
    for seed, landscape in enumerate(landscapes):
        seconds: float | None = None
        for method in methods:
            if method == NAMES and len(number_axes(landscape.candidates)) < 2:
                continue
            outcome = run_method(method, landscape, seed, seconds)
            seconds = outcome.seconds if method == "kvray" else seconds
            found[method].append(outcome)
    return dict(found)


def figures_of(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Means and percentiles; regret as a share of the best score."""
    regrets = 1 - np.exp([-one.regret for one in outcomes])
    return {
        "share": statistics.fmean(one.share for one in outcomes),
        "share_p95": float(np.percentile([one.share for one in outcomes], 95)),
        "regret_p50": float(np.percentile(regrets, 50)),
        "regret_p95": float(np.percentile(regrets, 95)),
        "within_2pct": float(np.mean(regrets <= 0.02)),
        "launched": statistics.fmean(one.launched for one in outcomes),
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--replays", type=int, default=100, help="of the ordinary landscapes; fewer of the others")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--only", metavar="NAMES", help="of the sets of landscapes, separated by commas")
    arguments = parser.parse_args()
    methods = arguments.methods.split(",")
    replays = 8 if arguments.quick else arguments.replays
    figures: dict[str, Figure] = {"replays": replays}
    only = arguments.only and arguments.only.split(",")
    for name, landscapes in _sets(replays):
        if only and name not in only:
            continue
        started = time.monotonic()
        by_method = {method: figures_of(found) for method, found in run_kind(landscapes, methods).items()}
        _print(f"{name}: {len(landscapes)} replays, {time.monotonic() - started:.0f} s", by_method)
        prefix = "" if name == ORDINARY.name else f"{name.replace(' ', '_').replace('-', '_')}_"
        for method, numbers in by_method.items():
            figures.update({f"{prefix}{method}_{key}": round(value, 4) for key, value in numbers.items()})
    write_figures(arguments.json, figures, quick=arguments.quick)


def _sets(replays: int) -> list[tuple[str, list[Landscape]]]:
    """Names and landscapes: 100 candidates ordinary and hard, other sizes, two number axes, and the recorded sweeps."""
    half, fifth = max(4, replays // 2), max(4, replays // 5)
    sets = [_made(ORDINARY, replays, make_landscape)]
    sets += [_made(kind, half, make_landscape) for kind in (QUIET, *HARD)]
    sets += [_made(Kind(name=f"{size} candidates", size=size), fifth, make_landscape) for size in (24, 50, 200, 400)]
    sets += [_made(kind, fifth, make_number_landscape) for kind in NUMBERS]
    return [*sets, *((landscape.name, [landscape] * fifth) for landscape in recorded_landscapes())]


def _made(kind: Kind, count: int, make: Callable[[Kind, int], Landscape]) -> tuple[str, list[Landscape]]:
    return kind.name, [make(kind, seed) for seed in range(count)]


def _print(title: str, by_method: Mapping[str, Mapping[str, float]]) -> None:
    heads = ("method", "share", "p95", "regret p50", "p95", "within 2 %", "launched")
    print_table(title, heads, [(method, *numbers.values()) for method, numbers in by_method.items()])


if __name__ == "__main__":
    main()
