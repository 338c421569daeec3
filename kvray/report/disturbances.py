"""How much of a sweep was disturbed, and by what most of all."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvray.analysis.confidence import DISTURBED_CELLS_WORTH_A_NOTE
from kvray.analysis.disturbed import disturbed_share, resting_on_disturbed
from kvray.config import DISTURBED
from kvray.record import TrialResult
from kvray.report import formats
from kvray.report.repeating import going_on_with
from kvray.store.manifest import SweepManifest

_FIGURE = re.compile(r"\d[\d.]*")


@dataclass(frozen=True, kw_only=True)
class Disturbances:
    """How many of a sweep's recorded runs were disturbed, be they in a figure or not.

    Attributes:
        reason: the most frequent one, with the figures of its first run; `None` where none is recorded.
        share: of the measured cells, those whose figures rest on disturbed runs alone.
        candidates: whose figures rest on disturbed runs alone in some cell, over all their trials.
        on_cluster: whether nodes of a cluster measured.
    """

    runs: int
    disturbed: int
    reason: str | None
    share: float = 0.0
    candidates: int = 0
    on_cluster: bool = False

    @property
    def decides(self) -> bool:
        """Whether so much was disturbed that the sweep's figures are not to be trusted."""
        return self.share > DISTURBED_CELLS_WORTH_A_NOTE

    def warning(self, manifest: SweepManifest) -> str | None:
        """One line about the sweep; `None` where what was disturbed changed nothing."""
        if not (self.decides or self.candidates):
            return None
        often = f" (most often: {self.reason})" if self.reason else ""
        candidates = formats.plural(self.candidates, "candidate")
        alone = f", and figures of {candidates} rest on disturbed runs alone" if self.candidates else ""
        return f"{self.counted} were disturbed{often}{alone}. {self.advice(manifest)}"

    def advice(self, manifest: SweepManifest) -> str:
        """How to measure again what the sweep could measure only while it was disturbed."""
        if not self.candidates:
            return "Measure again when the machine is quiet."
        # The option watches the machine that the command runs on, so a sweep on a cluster does not take it.
        wait = "" if self.on_cluster else " --wait-quiet"
        how = going_on_with(manifest, DISTURBED, more=wait)
        return f"To measure again when the machine is quiet, {how}."

    @property
    def counted(self) -> str:
        """E.g. `12 of 40 runs`."""
        return f"{formats.count(self.disturbed)} of {formats.plural(self.runs, 'run')}"


def disturbances(results: Sequence[TrialResult]) -> Disturbances:
    """Count the disturbed runs of a sweep."""
    disturbed = [result.columns for result in results if result.has_disturbed_runs]
    return Disturbances(
        runs=sum(len(result.runs) for result in results),
        disturbed=sum(int(runs.disturbed.sum()) for runs in disturbed),
        reason=_most_frequent(reason for runs in disturbed for reason in runs.reasons),
        share=disturbed_share(results),
        candidates=len(resting_on_disturbed(results)),
        on_cluster=any(result.record.hardware is not None for result in results),
    )


def _most_frequent(disturbances: Iterable[str]) -> str | None:
    """Reasons that differ only in their figures are one; of equally frequent ones the first."""
    seen: defaultdict[str, list[str]] = defaultdict(list)
    for one in disturbances:
        for reason in one.split("; "):
            seen[_FIGURE.sub("#", reason)].append(reason)
    seen.pop("", None)
    return formats.clean_line(max(seen.values(), key=len)[0]) if seen else None
