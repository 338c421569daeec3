"""Which processes, cells and metrics of two sides can be compared, and what is missing or has collapsed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kvray.analysis.evidence import SEARCH_ROUND, Array, Indices
from kvray.analysis.samples import ComparedMetric, SideSamples
from kvray.workload import Cell

COLLAPSE_FACTOR = 3.0
"""A value so many times worse than before is no longer spread between processes."""
_COLLAPSED_TO_FAIL = 2
"""One collapsed process among others may be an accident. It forbids a PASS; two are a FAIL."""


@dataclass(frozen=True, kw_only=True)
class AlignedSides:
    """Processes of two sides that measured the same cells.

    Attributes:
        metrics: those that both sides measured in all `cells`.
        cells: those that both sides measured.
        before, now: calm processes without a gap, of these cells; where they are paired, one of each pair in a row.
        is_paired: whether both took turns in the same session.
        session_share: by how much the variance between sessions counts in the difference of the two sides.
        problems: what is missing or collapsed, as sentences.
        has_failed: whether one of the problems is a FAIL; each of them forbids a PASS.
    """

    metrics: tuple[ComparedMetric, ...]
    cells: tuple[Cell, ...]
    before: SideSamples
    now: SideSamples
    is_paired: bool
    session_share: float
    problems: tuple[str, ...]
    has_failed: bool

    @property
    def can_be_compared(self) -> bool:
        """Whether both sides measured anything in common."""
        return bool(self.metrics and self.cells and len(self.before.logs) and len(self.now.logs))


@dataclass(frozen=True, kw_only=True)
class _Problem:
    text: str
    is_failure: bool


def align(before: SideSamples, now: SideSamples, *, judged: Sequence[ComparedMetric]) -> AlignedSides:
    """What `before` and `now` have in common. Only the metrics `judged` give problems, apart from missing cells."""
    before, now = _with_equal_libraries(before.calm(), now.calm())
    cells = tuple(cell for cell in before.cells if _has_cell(before, cell) and _has_cell(now, cell))
    problems = list(_missing_cells(before, now))
    before, now = before.of_cells(cells), now.of_cells(cells)
    metrics = tuple(one for one in ComparedMetric if _measures(before, one) and _measures(now, one))
    problems += _missing_metrics(before, now, [one for one in judged if one not in metrics] if cells else [])
    problems += _collapsed(before, now, [one for one in judged if one in metrics])
    before, now = (side.at(_without_gap(side, metrics)) for side in (before, now))
    pairs = _pairs(before, now)
    if len(pairs):
        before, now = before.at(pairs[:, 0]), now.at(pairs[:, 1])
    return AlignedSides(
        metrics=metrics,
        cells=cells,
        before=before,
        now=now,
        is_paired=len(pairs) > 0,
        session_share=_session_share(before, now),
        problems=tuple(one.text for one in problems),
        has_failed=any(one.is_failure for one in problems),
    )


def _with_equal_libraries(before: SideSamples, now: SideSamples) -> tuple[SideSamples, SideSamples]:
    """Both as if libraries' files took as much memory as they did before; that is not what is compared."""
    if before.library_mib is None or now.library_mib is None or not len(before.library_mib):
        return before, now
    usual = float(np.median(before.library_mib))
    return before.with_libraries_of(usual), now.with_libraries_of(usual)


def _has_cell(side: SideSamples, cell: Cell) -> bool:
    return cell in side.cells and bool(np.isfinite(side.logs[:, side.cells.index(cell)]).any())


def _measures(side: SideSamples, metric: ComparedMetric) -> bool:
    """Whether some process has it, in every cell."""
    return bool(np.isfinite(side.logs[:, :, metric.column]).any(axis=0).all())


def _missing_cells(before: SideSamples, now: SideSamples) -> Iterator[_Problem]:
    for cell in dict.fromkeys((*before.cells, *now.cells)):
        was, is_now = _has_cell(before, cell), _has_cell(now, cell)
        if was and not is_now:
            yield _Problem(text=f"The cell {cell.label} was measured before, but not now.", is_failure=True)
        elif is_now and not was:
            yield _Problem(text=f"The cell {cell.label} was not measured before.", is_failure=False)
        elif not was:
            yield _Problem(text=f"The cell {cell.label} was measured on neither side.", is_failure=False)


def _missing_metrics(before: SideSamples, now: SideSamples, judged: Sequence[ComparedMetric]) -> Iterator[_Problem]:
    """A metric that neither side ever measured cannot be judged, and is left out."""
    for metric in judged:
        name = metric.title.capitalize()
        was, is_now = _measures(before, metric), _measures(now, metric)
        if was and not is_now:
            yield _Problem(text=f"{name} was measured before, but not now in every cell.", is_failure=True)
        elif is_now and not was:
            yield _Problem(text=f"{name} was not measured before in every cell.", is_failure=False)


def _collapsed(before: SideSamples, now: SideSamples, judged: Sequence[ComparedMetric]) -> Iterator[_Problem]:
    """Processes of now that lack a value which others have, or are many times worse than before. That a disturbed
    process is worse may be the fault of other programs, so it is no FAIL."""
    if not (len(before.logs) and len(now.logs)):
        return
    columns = [metric.column for metric in judged]
    values, worse_is_more = now.logs[:, :, columns], np.array([metric.worse_is_more for metric in judged], dtype=bool)
    change = values - _usual(before.logs[:, :, columns])
    is_missing = ~np.isfinite(values)
    bad = is_missing | (np.where(worse_is_more, change, -change) >= np.log(COLLAPSE_FACTOR))
    count = int(bad.any(axis=(1, 2)).sum()) if bad.size else 0
    if count:
        _, cell, place = np.argwhere(bad)[0].tolist()
        where = f"{judged[place].title} of {now.cells[cell].label}"
        text = (
            f"{count} of {len(now.logs)} processes collapsed now: {where} is missing or at least {COLLAPSE_FACTOR:g} "
            "times as bad as before."
        )
        certain = int((is_missing | (bad & ~now.disturbed[:, None, None])).any(axis=(1, 2)).sum())
        yield _Problem(text=text, is_failure=certain >= min(_COLLAPSED_TO_FAIL, len(now.logs)))


def _usual(logs: Array) -> Array:
    """Medians over processes, gaps left out."""
    return np.asarray(np.median(logs, axis=0) if np.isfinite(logs).all() else np.nanmedian(logs, axis=0))


def _without_gap(side: SideSamples, metrics: Sequence[ComparedMetric]) -> Indices:
    values = side.logs[:, :, [one.column for one in metrics]]
    return np.flatnonzero(np.isfinite(values).all(axis=(1, 2)))


def _pairs(before: SideSamples, now: SideSamples) -> Indices:
    """N × 2 rows: processes of the same round of the same session. A process without a round has none."""
    place = {key: row for row, key in enumerate(_turns(before)) if key[1] != SEARCH_ROUND}
    found = [(place[key], row) for row, key in enumerate(_turns(now)) if key in place]
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def _turns(side: SideSamples) -> list[tuple[str, int]]:
    return list(zip(side.sessions, side.rounds.tolist(), strict=True))


def _session_share(before: SideSamples, now: SideSamples) -> float:
    """0 where both are of the same sessions."""
    ours, theirs = set(before.sessions), set(now.sessions)
    return 0.0 if ours == theirs or not ours or not theirs else 1 / len(ours) + 1 / len(theirs)
