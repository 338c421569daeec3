"""The trials of a sweep that run at the same time on GPUs of unlike types: each type has a queue and slots of its own.

Imports no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvray.errors import SweepError
from kvray.record import TrialRecord
from kvray.sweep.admission import Admission
from kvray.sweep.batch import SweepBatch
from kvray.sweep.capacity import Capacity
from kvray.sweep.trial_task import TrialTask
from kvray.trial.spec import TrialSpec


@dataclass(frozen=True, kw_only=True)
class Lane:
    """The slots on GPUs of one type, or all slots where types do not matter, and what runs on them.

    Attributes:
        capacity: `None` where the machines are not looked at.
    """

    batch: SweepBatch
    admission: Admission
    capacity: Capacity | None = None


class Lanes:
    """All lanes of a run, by Ray's accelerator type; `None` is the key of the lane that any GPU serves."""

    def __init__(self, lanes: Mapping[str | None, Lane]) -> None:
        self._lanes = dict(lanes)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles what holds it into a state that nobody reads."""
        return {}

    def of(self, trial: TrialSpec | TrialRecord) -> Lane:
        """The lane in which `trial` runs."""
        return self._lanes[trial.gpu_type]

    @property
    def is_over(self) -> bool:
        """Whether no trial is out and there was no further one when `next_trial` was last called."""
        return all(lane.admission.is_over for lane in self._lanes.values())

    @property
    def is_idle(self) -> bool:
        """Whether no trial is out."""
        return all(lane.admission.is_idle for lane in self._lanes.values())

    def next_trial(self) -> TrialTask | None:
        """The next trial of any lane that has room for one; it counts as out until it has ended."""
        for lane in self._lanes.values():
            if (task := lane.admission.next_trial()) is not None:
                return task
        return None

    def attend(self, *, is_over: bool = False) -> None:
        """As `SweepBatch.attend`, for all lanes."""
        for lane in self._lanes.values():
            lane.batch.attend(is_over=is_over)

    def check_room(self) -> None:
        """Ask at every step whether there are nodes to run on. A lane without any waits while another one measures.

        Raises:
            SweepError: nothing that is still to be measured has had room for too long.
        """
        errors = [self._error_of(lane) for lane in self._lanes.values() if not lane.admission.is_over]
        if errors and all(errors):
            raise next(error for error in errors if error is not None)

    def _error_of(self, lane: Lane) -> SweepError | None:
        if lane.capacity is None:
            return None
        try:
            lane.capacity.check(lane.admission.needed_gpus)
        except SweepError as error:
            return error
        return None
