"""How sure the ranking is: bootstrap over processes, then over the runs within each."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvray.analysis.aggregate import runs_at_rung, undisturbed
from kvray.analysis.pooling import FULL_RUNG, pool_complete_trials
from kvray.analysis.ranking import Ranking
from kvray.record import Run, TrialResult
from kvray.workload import Cell, WorkloadProfile

TIE_SHARE = 0.05
PROCESS_SD_TTFT = 0.06
PROCESS_SD_DECODE = 0.015
"""Relative standard deviation between fresh processes of one candidate, measured on a shared 2-core CPU: "TTFT spreads
± 10 % (standard deviation about 6 %), decode ± 3 % (about 1.5 %)" (FACTS)."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A two-sided 95 % interval; bounds are relative gains like those of `Gain`."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """Share of bootstrap replicates in which the winner stays first, and what that rests on.

    Attributes:
        winner_share: 0 to 1.
        processes: fewest fresh processes behind the winner, a tie, or the baseline.
        runs: fewest undisturbed runs of one cell behind them, over all their processes.
        ties: candidate ids that cannot be told apart from the winner (they lead in more than 5 % of replicates).
        ttft_gain, throughput_gain: the winner's gain over the baseline; `None` without a baseline.
        assumed_process_noise: whether one of them ran in a single process (`processes` is 1), so that its spread
            between processes is assumed (see `estimate_confidence`) and not seen in its own data. Every text that shows
            the share or an interval must then say so.
    """

    winner_share: float
    replicates: int
    processes: int
    runs: int
    ties: tuple[str, ...]
    ttft_gain: Interval | None
    throughput_gain: Interval | None
    assumed_process_noise: bool = False


def estimate_confidence(
    ranking: Ranking,
    results: Sequence[TrialResult],
    profile: WorkloadProfile,
    *,
    seed: int,
    replicates: int = 2000,
) -> Confidence | None:
    """Resample each ranked candidate's processes, then the runs of each cell in each process, and rank again.

    Resampling P processes shows only (P - 1)/P of the variance between processes: nothing at all for one. The missing
    part is added from a prior: every replicate multiplies a candidate's TTFT by a lognormal factor of sd 0.06/P and its
    throughput by one of sd 0.015/P (measured between fresh processes on a shared 2-core CPU, see `PROCESS_SD_TTFT`).
    On quieter machines this errs towards less confidence.

    Returns:
        `None` when nothing is ranked. The same `seed` gives the same answer, for any order of `results`.
    """
    if not ranking.entries:
        return None
    pools = pool_complete_trials(results, profile)
    ids = [entry.record.candidate_id for entry in ranking.entries]
    everyone = dict.fromkeys([*ids, *([ranking.baseline_id] if ranking.baseline_id else [])])
    draws = {key: _draw(pools[key], profile, replicates, _generator(seed, key)) for key in everyone}

    weights = np.array([-profile.weight_ttft, profile.weight_throughput, -profile.weight_memory])
    leaders = np.argmax([weights @ draws[key] for key in ids], axis=0)
    shares = np.bincount(leaders, minlength=len(ids)) / replicates
    ties = tuple(key for key, share in zip(ids[1:], shares[1:], strict=True) if share > TIE_SHARE)

    baseline = draws[ranking.baseline_id] if ranking.baseline_id else None
    compared = {ids[0], *ties, *([ranking.baseline_id] if ranking.baseline_id else [])}
    processes = min(len(pools[key]) for key in compared)
    return Confidence(
        winner_share=float(shares[0]),
        replicates=replicates,
        processes=processes,
        runs=min(_fewest_runs(pools[key], profile) for key in compared),
        ties=ties,
        ttft_gain=None if baseline is None else _interval(baseline[0] - draws[ids[0]][0]),
        throughput_gain=None if baseline is None else _interval(draws[ids[0]][1] - baseline[1]),
        assumed_process_noise=processes < 2,
    )


def _draw(
    pool: Sequence[TrialResult], profile: WorkloadProfile, replicates: int, generator: np.random.Generator
) -> Array:
    """Logarithms of one candidate's TTFT, throughput and peak (0 if unknown): 3 × replicates, means over its cells."""
    chosen = generator.integers(len(pool), size=(replicates, len(pool)))
    cells = profile.cells(pool[0].record.batch_size, rung=FULL_RUNG)
    logs = np.zeros((3, replicates))
    for cell in cells:
        logs += np.log(_resampled_medians(_samples(pool, cell), chosen, generator)) / len(cells)
    prior = np.array([[PROCESS_SD_TTFT], [PROCESS_SD_DECODE], [0.0]]) / len(pool)
    return logs + prior * generator.standard_normal((3, replicates))


def _samples(pool: Sequence[TrialResult], cell: Cell) -> list[Array]:
    """Per process, 3 × runs of `cell`: TTFT, throughput, peak (1 everywhere if a run of the cell lacks it)."""
    processes = _calm_runs(pool, cell)
    known = all(run.peak_mib is not None for runs in processes for run in runs)
    return [
        np.array([[run.ttft_ms, run.decode_tok_s, (run.peak_mib if known else None) or 1.0] for run in runs]).T
        for runs in processes
    ]


def _calm_runs(pool: Sequence[TrialResult], cell: Cell) -> list[Sequence[Run]]:
    """Per process, the runs of `cell` that the aggregate rests on: disturbed ones only if all of the pool's are.

    A process without a calm run, beside others that have some, says nothing of its own: theirs stand in for it.
    """
    processes = [_runs_of(trial, cell) for trial in pool]
    used = undisturbed([run for runs in processes for run in runs])
    kept = {id(run) for run in used}
    return [[run for run in runs if id(run) in kept] or used for runs in processes]


def _resampled_medians(samples: list[Array], chosen: npt.NDArray[np.int64], generator: np.random.Generator) -> Array:
    """Median over the resampled runs of the `chosen` (replicates × processes) processes: 3 × replicates."""
    counts = np.array([process.shape[1] for process in samples])
    padded = np.full((3, len(samples), counts.max()), np.nan)
    for index, process in enumerate(samples):
        padded[:, index, : process.shape[1]] = process
    sizes = counts[chosen][..., None]
    slots = np.arange(counts.max())
    picks = (generator.random((*chosen.shape, counts.max())) * sizes).astype(np.int64)
    drawn = np.where(slots < sizes, padded[:, chosen[..., None], picks], np.nan)
    return _median_of_numbers(drawn.reshape(3, len(chosen), -1), sizes.sum(axis=(1, 2)))


def _median_of_numbers(values: Array, counts: npt.NDArray[np.int64]) -> Array:
    """Median over the last axis, which holds `counts` numbers and NaN beyond (`np.nanmedian` is far slower here)."""
    ordered = np.sort(values, axis=-1)  # NaN goes last
    rows = np.arange(len(counts))
    return np.asarray((ordered[:, rows, (counts - 1) // 2] + ordered[:, rows, counts // 2]) / 2)


def _runs_of(trial: TrialResult, cell: Cell) -> list[Run]:
    runs = (run for run in runs_at_rung(trial.runs, FULL_RUNG) if run.cell == cell)
    return sorted(runs, key=lambda run: (run.rung, run.repeat))


def _fewest_runs(pool: Sequence[TrialResult], profile: WorkloadProfile) -> int:
    cells = profile.cells(pool[0].record.batch_size, rung=FULL_RUNG)
    return min(len(undisturbed([run for trial in pool for run in _runs_of(trial, cell)])) for cell in cells)


def _interval(log_ratios: Array) -> Interval:
    low, high = np.expm1(np.percentile(log_ratios, (2.5, 97.5)))
    return Interval(low=float(low), high=float(high))


def _generator(seed: int, candidate_id: str) -> np.random.Generator:
    """One stream per candidate, so that the answer does not depend on who else takes part or in which order."""
    return np.random.default_rng([seed, zlib.crc32(candidate_id.encode())])
