"""Which measurements count that were disturbed, and which candidates have nothing better."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from kvray.record import TrialResult
from kvray.workload import Cell


def without_replaced(results: Sequence[TrialResult]) -> list[TrialResult]:
    """The trials that figures rest on. A trial with a cell of disturbed runs alone is left out if another trial of the
    candidate has undisturbed runs of all the same cells."""
    disturbed = {result.record.trial_id for result in results if _is_disturbed(result)}
    if not disturbed:
        return list(results)
    calm: defaultdict[str, list[set[Cell]]] = defaultdict(list)
    for result in results:
        if result.record.trial_id not in disturbed:
            calm[result.record.candidate_id].append(_cells([result]))

    def is_replaced(result: TrialResult) -> bool:
        own = _cells([result])
        return result.record.trial_id in disturbed and any(own <= cells for cells in calm[result.record.candidate_id])

    return [result for result in results if not is_replaced(result)]


def resting_on_disturbed(results: Iterable[TrialResult]) -> tuple[str, ...]:
    """Ids of the candidates whose figures rest on disturbed runs alone in some cell, over all their trials."""
    trials: defaultdict[str, list[TrialResult]] = defaultdict(list)
    for result in results:
        if not result.record.status.is_failure:
            trials[result.record.candidate_id].append(result)
    doubtful = {key: pool for key, pool in trials.items() if any(map(_is_disturbed, pool))}
    return tuple(key for key, pool in sorted(doubtful.items()) if _disturbed_cells(pool))


def disturbed_share(results: Sequence[TrialResult]) -> float:
    """Share of the measured cells, trial by trial, whose figures rest on disturbed runs alone; 0 when there are none.
    Disturbed runs of a cell that has undisturbed ones are in no figure."""
    counted = without_replaced(results)
    measured = sum(len(result.cells.place_of or _cells([result])) for result in counted)
    disturbed = sum(len(_disturbed_cells([result])) for result in counted if _is_disturbed(result))
    return disturbed / measured if measured else 0.0


def _is_disturbed(result: TrialResult) -> bool:
    """Whether a cell that it is judged by has no undisturbed run."""
    return bool(result.cells.disturbed if result.cells.place_of else _disturbed_cells([result]))


def _cells(pool: Sequence[TrialResult]) -> set[Cell]:
    return {cell for cell, _ in _that_count(pool)}


def _disturbed_cells(pool: Sequence[TrialResult]) -> set[Cell]:
    """The cells without an undisturbed run, among those that one candidate's trials are judged by."""
    found = _that_count(pool)
    return {cell for cell, _ in found} - {cell for cell, is_disturbed in found if not is_disturbed}


def _that_count(pool: Sequence[TrialResult]) -> list[tuple[Cell, bool]]:
    """The full-length cells, or those of rung 0 where no trial came further; each with whether all its runs were
    disturbed."""
    full = [(cell, cell in result.cells.disturbed) for result in pool for cell in result.cells.place_of]
    short = [one for result in pool for one in result.columns.by_cell(full_length=False).items()] if not full else []
    return full or [(cell, bool(runs.disturbed.all())) for cell, runs in short]
