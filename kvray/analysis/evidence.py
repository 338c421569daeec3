"""What was measured, as arrays: one row per fresh process. Confidence, intervals and the confirm phase rest on it."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from kvray.analysis.engine_noise import engine_codes, run_variances
from kvray.analysis.limits import Miss, missed_limits
from kvray.analysis.pooling import (
    Pools,
    full_cells,
    full_length_cells,
    has_every_cell,
    pool_complete_trials,
    quality_records,
    with_quality_of,
)
from kvray.record import Role, TrialRecord, TrialResult, gpus_of
from kvray.workload import Cell, WorkloadProfile

METRICS = TTFT, DECODE, PEAK = range(3)
"""Columns of the arrays."""
SEARCH_ROUND = 0
"""Round of a process that the confirm phase did not start; that phase's rounds count from 1."""
_CONFIRM_ID = re.compile(r"confirm-(\d+)-")

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """N fresh processes of the candidates in `ids`, in no particular order.

    Attributes:
        ids: candidate ids; `owner` points into them.
        contenders: those that may win. The others miss a limit and are here to be compared with.
        misses: by candidate id, the limits that each of the others misses.
        owner: N indices: whose process it is.
        rounds: N: the confirm phase's round, from 1, or `SEARCH_ROUND`. Processes of a round ran one after another on
            the same device. Where a round continued on another device, its rest has a number of its own.
        logs: N × 3 natural logarithms of TTFT (ms), decode throughput (tok/s) and peak (MiB; 0 where nobody has one),
            each the mean over the profile's cells of the logarithm of the median of the process's calm runs.
        within: N × 3 variances that `logs` have because a process's runs differ, as far as that was seen.
        disturbed: N: whether the process lacks an undisturbed run of some cell. It is here because its candidate has no
            better one, and tells nothing about the noise of others.
        engines: the engine of each candidate in `ids`; empty where all have the same.
    """

    ids: tuple[str, ...]
    contenders: frozenset[str]
    owner: Indices
    rounds: Indices
    logs: Array
    within: Array
    disturbed: Flags
    misses: Mapping[str, tuple[Miss, ...]] = field(default_factory=dict)
    engines: tuple[str, ...] = ()

    @cached_property
    def engine_of(self) -> Indices:
        """For each candidate in `ids`, the number of its engine, from 0."""
        return engine_codes(self.engines) if self.engines else np.zeros(len(self.ids), dtype=np.int64)

    @cached_property
    def place_of(self) -> Mapping[str, int]:
        """By candidate id, its index in `ids`."""
        return {key: place for place, key in enumerate(self.ids)}

    @cached_property
    def _rows(self) -> list[Indices]:
        order = np.argsort(self.owner, kind="stable")
        return np.split(order, np.searchsorted(self.owner[order], np.arange(1, len(self.ids))))

    @cached_property
    def confirmed_ids(self) -> frozenset[str]:
        """The candidates that a confirming round measured."""
        return frozenset(self.ids[place] for place in np.unique(self.owner[self.rounds != SEARCH_ROUND]).tolist())

    def rows_of(self, candidate_id: str) -> Indices:
        """The processes of a candidate."""
        return self._rows[self.place_of[candidate_id]]

    def restricted(self, ids: Iterable[str]) -> Evidence:
        """The evidence about the candidates in `ids` alone."""
        wanted = frozenset(ids)
        kept = tuple(key for key in self.ids if key in wanted)
        places = {self.place_of[key]: place for place, key in enumerate(kept)}
        rows = np.isin(self.owner, list(places))
        return Evidence(
            ids=kept,
            contenders=self.contenders & frozenset(kept),
            owner=np.array([places[one] for one in self.owner[rows].tolist()], dtype=np.int64),
            rounds=self.rounds[rows],
            logs=self.logs[rows],
            within=self.within[rows],
            disturbed=self.disturbed[rows],
            misses={key: self.misses[key] for key in kept if key in self.misses},
            engines=tuple(self.engines[self.place_of[key]] for key in kept) if self.engines else (),
        )


def confirm_trial_id(round_number: int, candidate_id: str, *, process: int = 1) -> str:
    """Id of the confirm phase's trial of a candidate in a round (from 1): the same in every attempt at a sweep. A round
    that was begun anew on another device has several processes of it, from 1."""
    return f"confirm-{round_number}-{candidate_id}{'' if process == 1 else f'.{process}'}"


def confirm_round(record: TrialRecord) -> int | None:
    """The round that a confirming trial belongs to, from 1; `None` for others. Of older records the trial's id says
    it."""
    if record.confirm_round is not None:
        return record.confirm_round
    match = _CONFIRM_ID.match(record.trial_id)
    return int(match[1]) if match else None


def gather_evidence(results: Sequence[TrialResult], profile: WorkloadProfile, pools: Pools | None = None) -> Evidence:
    """The processes that measured every full-length cell of `profile`; the order of `results` does not matter.

    A candidate that the scheduler stopped after its first full-length rung counts too. A process without a calm
    run of some cell counts only where its candidate has none better.

    Args:
        pools: what `pool_complete_trials` makes of `results`, where the caller has it.
    """
    complete = pool_complete_trials(results, profile) if pools is None else pools
    pools = {**_stopped_late(results, profile), **complete}
    kept = {key: _calm(pool, profile) for key, pool in sorted(pools.items())}
    trials = [trial for pool in kept.values() for trial in pool]
    owner = np.array([place for place, pool in enumerate(kept.values()) for _ in pool], dtype=np.int64)
    engines = tuple(pool[0].record.engine for pool in kept.values())
    measured = _Processes.of(trials, profile)
    qualities = quality_records(results)
    misses = {key: _missed_limits(pool, qualities.get(key), profile) for key, pool in pools.items()}
    misses = {key: missed for key, missed in misses.items() if missed}
    return Evidence(
        ids=tuple(kept),
        contenders=frozenset(kept) - misses.keys(),
        misses=misses,
        owner=owner,
        rounds=np.array(
            rounds_by_device(
                [number for pool in kept.values() for number in _rounds(pool)],
                [trial.record.device_uuid for trial in trials],
            ),
            dtype=np.int64,
        ),
        logs=measured.logs,
        within=measured.within(engine_codes(engines)[owner]),
        disturbed=np.array([not _is_calm(trial, profile) for trial in trials], dtype=np.bool_),
        engines=engines,
    )


def rounds_by_device(rounds: Sequence[int], devices: Sequence[str | None]) -> list[int]:
    """`rounds` of N processes, where those of one round that ran on unlike devices are told apart.

    A process that held some GPUs ran on the same device as one that held these and more. Older records do not name
    their device; they belong to their round.

    Args:
        devices: N: as the column `device_uuid` has them.
    """
    numbers = list(rounds)
    fresh = itertools.count(max(rounds, default=0) + 1)
    for number in sorted(set(rounds) - {SEARCH_ROUND}):
        sets = {place: gpus_of(devices[place]) for place, its in enumerate(rounds) if its == number}
        groups: list[frozenset[str]] = []
        for uuids in sorted(set(sets.values()), key=lambda one: (-len(one), sorted(one))):
            if not any(uuids <= group for group in groups):
                groups.append(uuids)
        own = {group: number if group is groups[0] else next(fresh) for group in groups}
        for place, uuids in sets.items():
            numbers[place] = own[next(group for group in groups if uuids <= group)]
    return numbers


@dataclass(frozen=True, kw_only=True)
class _Processes:
    """What N processes measured.

    Attributes:
        logs: N × metrics.
        run_shares: N: how much of a single run's variance is left in `logs`.
        squares: N × metrics sums of the squares by which the logarithms of runs differ from the mean of their cell.
        freedom: N degrees of freedom of `squares`.
    """

    logs: Array
    run_shares: Array
    squares: Array
    freedom: Array

    @classmethod
    def of(cls, trials: Sequence[TrialResult], profile: WorkloadProfile) -> _Processes:
        """Trials whose cells were computed together are read together."""
        logs, squares = np.empty((len(trials), len(METRICS))), np.empty((len(trials), len(METRICS)))
        run_shares, freedom = np.empty(len(trials)), np.empty(len(trials))
        together: defaultdict[int, list[int]] = defaultdict(list)
        for number, trial in enumerate(trials):
            together[id(trial.cells.figures)].append(number)
        for numbers in together.values():
            figures = trials[numbers[0]].cells.figures
            rows = np.array([trials[number].cells.rows(_cells(trials[number], profile)) for number in numbers])
            runs = figures.runs[rows]
            logs[numbers] = figures.log_medians[rows].mean(axis=1)
            squares[numbers] = figures.log_squares[rows].sum(axis=1)
            run_shares[numbers] = [_run_share(tuple(one)) for one in runs.tolist()]
            freedom[numbers] = runs.sum(axis=1) - runs.shape[1]
        return cls(logs=logs, run_shares=run_shares, squares=squares, freedom=freedom)

    def within(self, engine_of: Indices) -> Array:
        """N × metrics variances that `logs` have because the runs of a process differ.

        Args:
            engine_of: N numbers of engines.
        """
        engines = engine_of.max(initial=-1) + 1
        squares = [np.bincount(engine_of, column, engines) for column in self.squares.T]
        freedom = np.asarray(np.bincount(engine_of, self.freedom, engines), dtype=np.float64)
        per_run = run_variances(np.stack(squares, axis=1), freedom)
        return np.asarray(self.run_shares[:, None] * per_run[engine_of])


@lru_cache(maxsize=4096)
def _run_share(runs: tuple[int, ...]) -> float:
    """How much of a single run's variance is left in the mean over cells with so many runs."""
    return math.fsum(map(_median_variance, runs)) / len(runs) ** 2


def _median_variance(runs: int) -> float:
    """Variance of the median of `runs` normal values, in units of one's variance (π/2n for many; exact for two)."""
    return 1 / runs if runs < 3 else math.pi / 2 / runs


def _calm(pool: tuple[TrialResult, ...], profile: WorkloadProfile) -> tuple[TrialResult, ...]:
    return tuple(trial for trial in pool if _is_calm(trial, profile)) or pool


def _is_calm(trial: TrialResult, profile: WorkloadProfile) -> bool:
    disturbed = trial.cells.disturbed
    return not disturbed or disturbed.isdisjoint(_cells(trial, profile))


def _cells(trial: TrialResult, profile: WorkloadProfile) -> tuple[Cell, ...]:
    return full_cells(trial.record, profile)


def _rounds(pool: Sequence[TrialResult]) -> Iterable[int]:
    """The round of each process; confirming trials whose id does not tell are counted per candidate."""
    seen = 0
    for trial in pool:
        if trial.record.role is not Role.CONFIRM:
            yield SEARCH_ROUND
            continue
        seen += 1
        yield confirm_round(trial.record) or seen


def _stopped_late(results: Iterable[TrialResult], profile: WorkloadProfile) -> Mapping[str, tuple[TrialResult, ...]]:
    return {
        result.record.candidate_id: (result,)
        for result in results
        if result.record.status.is_cut_short and has_every_cell(result, profile)
    }


def _missed_limits(
    pool: Sequence[TrialResult], quality_of: TrialRecord | None, profile: WorkloadProfile
) -> tuple[Miss, ...]:
    record = with_quality_of(quality_of, pool[0].record)
    cells = full_length_cells(pool, profile) if profile.limits.bound_cells else ()
    return missed_limits(record, cells, profile.limits)
