"""The trials of one sweep by the hardware that measured them: nodes of a cluster may differ, and are ranked apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvray.analysis import Analysis
from kvray.record import TrialResult


def by_hardware(results: Sequence[TrialResult]) -> dict[str | None, tuple[TrialResult, ...]]:
    """The trials of each hardware, by its digest; `None` stands for hardware that nothing is recorded of.

    Trials that measured nothing and name no hardware belong to each: candidates that were never launched, and trials
    whose slot died.
    """
    found = sorted({one.record.hardware or "" for one in results if not _is_of_any(one)})
    if len(found) < 2:
        return {(found[0] or None) if found else None: tuple(results)}
    return {
        digest or None: tuple(one for one in results if _is_of_any(one) or (one.record.hardware or "") == digest)
        for digest in found
    }


def best_first(analyses: Mapping[str | None, Analysis]) -> list[str | None]:
    """Digests in order: first the hardware that measured the baseline, and ranks most candidates."""

    def order(digest: str | None) -> tuple[bool, int, str]:
        ranking = analyses[digest].ranking
        return ranking.baseline_id is None, -len(ranking.entries), digest or ""

    return sorted(analyses, key=order)


def device_name_of(results: Sequence[TrialResult]) -> str | None:
    """The name of the device that measured `results`, which are of one hardware."""
    return next((one.record.device_name for one in results if one.record.device_name is not None), None)


def _is_of_any(result: TrialResult) -> bool:
    return result.record.hardware is None and result.record.rung is None and not result.runs
