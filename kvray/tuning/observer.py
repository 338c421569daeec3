"""`SearchObserver`: what `TuningSearch` tells while it works, from the first look at the device to the last trial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kvray.record import TrialResult
from kvray.store.manifest import SweepManifest
from kvray.sweep.observer import SweepObserver
from kvray.trial.position import PositionBoard
from kvray.tuning.preview import Preview


class SearchObserver(SweepObserver, Protocol):
    """Is told how the search goes on, in the driver's process."""

    def measuring_device(self) -> None:
        """The device's rates are measured now, which takes a few seconds."""

    def checking_code(self) -> None:
        """The winner's code is run once now, which takes a few seconds."""

    def search_started(
        self,
        preview: Preview,
        manifest: SweepManifest,
        recorded: Sequence[TrialResult],
        positions: PositionBoard | None = None,
    ) -> None:
        """Everything is known and checked; `recorded` is what earlier attempts at the sweep have measured. `positions`
        tells how far the running trials are."""
