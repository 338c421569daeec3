"""Trials of a sweep without Ray: the test is the slot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from kvray.measuring.recording import blank_record
from kvray.record import TrialResult, TrialStatus
from kvray.sweep.batch import QueuedSweep


class NoRay:
    """In place of a `RaySession`: one machine with two CPUs."""

    is_private = True

    def __init__(self, **_: object) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def nodes(self) -> tuple[Mapping[str, float], ...]:
        """What it has."""
        return ({"CPU": 2.0},)


def one_trial(sweep: QueuedSweep) -> None:
    """The sweep's next trial begins and ends."""
    task = sweep.queue.next_trial()
    assert task is not None
    sweep.observer.trial_started(task.spec)
    sweep.observer.trial_finished(TrialResult(record=blank_record(task.spec, TrialStatus.OOM)))
