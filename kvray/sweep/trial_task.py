"""`TrialTask`: what a slot is given for one trial. Imports no Ray."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvray.candidate import DeviceType
from kvray.engines.base import EngineAdapter
from kvray.engines.interpreter import EnginePython
from kvray.trial.spec import TrialSpec

MOST_ATTEMPTS = 3
"""At a trial whose slot or node dies under it: it runs again twice."""


@dataclass(frozen=True, kw_only=True)
class TrialTask:
    """What a slot is given for one trial.

    Attributes:
        python: in which the trial's process runs; `None`: kvray's own.
        threads: intra-op threads for the measurement process; `None` leaves the choice to its library, as in a user's
            own process, unless a CPU quota where the slot runs leaves room for fewer.
        scratch: folder for logs of processes, which the driver deletes; where it does not exist (another machine), the
            slot makes one of its own.
        libraries: on a cluster, those of all engines of the sweep: their versions are part of the hardware fingerprint
            that the slot puts into the record. `None` on this machine, where nothing has to be told apart.
        attempt: 1, or higher where the slots of earlier attempts at this very trial died.
    """

    spec: TrialSpec
    adapter: EngineAdapter
    python: EnginePython | None = None
    threads: int | None = None
    scratch: Path | None = None
    libraries: tuple[str, ...] | None = None
    attempt: int = 1

    @property
    def gpus(self) -> int:
        """GPUs that the trial holds while it runs; 0 on a CPU."""
        return self.spec.candidate.parallelism if self.spec.device is DeviceType.CUDA else 0

    @property
    def is_last_attempt(self) -> bool:
        """Whether the trial has crashed if this attempt's slot dies too."""
        return self.attempt >= MOST_ATTEMPTS
