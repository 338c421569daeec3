"""Which trials count towards a candidate: those with every full-length cell, once one of them came to its end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from kvray.analysis.aggregate import CellMetrics, cells_of_columns, cells_of_trial
from kvray.record import Role, TrialRecord, TrialResult, TrialStatus
from kvray.run_columns import joined
from kvray.workload import Cell, WorkloadProfile

FULL_RUNG = 2
_QUALITY = (
    *("kl_mean", "kl_decode", "nll_delta", "nll_delta_se", "top1_agreement"),
    *("kl_upper", "kl_decode_upper", "nll_delta_upper", "quality_s", "quality_note"),
)
Pools = Mapping[str, tuple[TrialResult, ...]]
"""What `pool_complete_trials` makes of a sweep's results."""
_ROLE_ORDER = {role: place for place, role in enumerate(Role)}


def pool_complete_trials(
    results: Iterable[TrialResult], profile: WorkloadProfile
) -> dict[str, tuple[TrialResult, ...]]:
    """Complete trials by candidate id, each a fresh process; the same for any order of `results`.

    A candidate is in it if one of its trials ended ok with every full-length cell measured. Beside that one count those
    that were stopped or interrupted after as much. Within a candidate the baseline's or the search's trial comes first,
    confirming ones follow.
    """
    pools: defaultdict[str, list[TrialResult]] = defaultdict(list)
    for result in sorted(results, key=_trial_order):
        status = result.record.status
        if (status is TrialStatus.OK or status.is_cut_short) and has_every_cell(result, profile):
            pools[result.record.candidate_id].append(result)
    return {
        candidate_id: tuple(pool)
        for candidate_id, pool in sorted(pools.items())
        if any(trial.record.status is TrialStatus.OK for trial in pool)
    }


def quality_records(results: Iterable[TrialResult]) -> dict[str, TrialRecord]:
    """By candidate id, the record that has the loss of quality: confirming trials do not measure it."""
    found: dict[str, TrialRecord] = {}
    for result in results:
        if result.record.kl_mean is not None:
            found.setdefault(result.record.candidate_id, result.record)
    return found


def with_quality_of(other: TrialRecord | None, record: TrialRecord) -> TrialRecord:
    """`record` with the loss of quality that `other` has, where it has none itself."""
    if record.kl_mean is not None or other is None:
        return record
    return record.with_(**{name: getattr(other, name) for name in _QUALITY})


def has_every_cell(result: TrialResult, profile: WorkloadProfile) -> bool:
    """Whether the trial measured all full-length cells of `profile`."""
    return result.cells.places(full_cells(result.record, profile)) is not None


def missing_cells(result: TrialResult, profile: WorkloadProfile) -> tuple[Cell, ...]:
    """Full-length cells of `profile` that the trial did not measure."""
    return tuple(cell for cell in full_cells(result.record, profile) if cell not in result.cells.place_of)


def full_length_cells(pool: Iterable[TrialResult], profile: WorkloadProfile) -> Sequence[CellMetrics]:
    """Metrics of the profile's full-length cells over the runs of all trials in `pool` (one candidate's)."""
    trials = tuple(pool)
    if len(trials) == 1:
        return cells_of_trial(trials[0].cells, full_cells(trials[0].record, profile))
    wanted = dict.fromkeys(cell for trial in trials for cell in full_cells(trial.record, profile))
    measured = {cell: [trial.full_length[cell] for trial in trials if cell in trial.full_length] for cell in wanted}
    return cells_of_columns({cell: joined(columns) for cell, columns in measured.items() if columns})


def full_cells(record: TrialRecord, profile: WorkloadProfile) -> tuple[Cell, ...]:
    """The full-length cells of `profile` that the trial is to measure, in order."""
    return profile.cells(record.batch_size, rung=FULL_RUNG)


def _trial_order(result: TrialResult) -> tuple[int, str]:
    return _ROLE_ORDER[result.record.role], result.record.trial_id
