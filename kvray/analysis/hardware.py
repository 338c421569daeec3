"""The trials of one sweep by the hardware that measured them: nodes of a cluster may differ, and are ranked apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvray.analysis import Analysis
from kvray.record import TrialResult


def by_hardware(results: Sequence[TrialResult]) -> dict[str | None, tuple[TrialResult, ...]]:
    """The trials of each hardware, by its digest; `None` stands for hardware that nothing is recorded of.

    Trials that measured nothing and name no hardware belong to each of their type of GPU: candidates that were never
    launched, and trials whose slot died.
    """
    found = sorted({one.record.hardware or "" for one in results if not _is_of_any(one)})
    if len(found) < 2:
        return {(found[0] or None) if found else None: tuple(results)}
    return {digest or None: _group(results, digest) for digest in found}


def _group(results: Sequence[TrialResult], digest: str) -> tuple[TrialResult, ...]:
    own = {one.record.trial_id for one in results if not _is_of_any(one) and (one.record.hardware or "") == digest}
    gpu_type = gpu_type_of([one for one in results if one.record.trial_id in own])

    def belongs(one: TrialResult) -> bool:
        if not _is_of_any(one):
            return one.record.trial_id in own
        return gpu_type is None or one.record.gpu_type in (None, gpu_type)

    return tuple(one for one in results if belongs(one))


def best_first(
    analyses: Mapping[str | None, Analysis], names: Mapping[str | None, str | None], first_name: str
) -> list[str | None]:
    """Digests in order: first the hardware that measured the baseline and ranks candidates, the device called
    `first_name` before others, and then that which ranks most."""

    def order(digest: str | None) -> tuple[bool, bool, bool, int, str]:
        ranking = analyses[digest].ranking
        is_other = names[digest] != first_name
        return ranking.baseline_id is None, not ranking.entries, is_other, -len(ranking.entries), digest or ""

    return sorted(analyses, key=order)


def gpu_type_of(results: Sequence[TrialResult]) -> str | None:
    """Ray's type of the GPUs that measured `results`, which are of one hardware."""
    known = (one.record.gpu_type for one in results if not _is_of_any(one))
    return next((one for one in known if one is not None), None)


def device_name_of(results: Sequence[TrialResult]) -> str | None:
    """The name of the device that measured `results`, which are of one hardware."""
    return next((one.record.device_name for one in results if one.record.device_name is not None), None)


def _is_of_any(result: TrialResult) -> bool:
    return result.record.hardware is None and result.record.rung is None and not result.runs
