"""`SweepObserver`: what a sweep tells while it runs. It is apart from Tune, so that a progress view imports no Ray."""

from __future__ import annotations

from typing import Protocol

from kvray.record import TrialResult
from kvray.sweep.outlook import Outlook
from kvray.trial.spec import TrialSpec


class SweepObserver(Protocol):
    """Hears of every trial, in the driver's process, in order. What it raises ends the sweep."""

    def trial_started(self, spec: TrialSpec) -> None:
        """A slot took the trial; again after `trial_lost`."""

    def rung_finished(self, result: TrialResult) -> None:
        """The trial completed `result.record.rung` and may go on or be stopped."""

    def trial_lost(self, spec: TrialSpec) -> None:
        """The trial's slot or its node died; the trial runs again from its beginning on another."""

    def trial_finished(self, result: TrialResult) -> None:
        """The trial ended, with its final status. Called once per trial that was started; again where Ctrl-C came
        while it was called."""

    def outlook_changed(self, outlook: Outlook) -> None:
        """What is still to come, told before `trial_started` and `trial_finished`."""
