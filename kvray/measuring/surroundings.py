"""What a process that measures finds around it: its environment variables, and what this machine is."""

from __future__ import annotations

import os
from collections.abc import Iterable

from kvray.engines.base import EngineAdapter
from kvray.engines.interpreter import EnginePython
from kvray.engines.offline import OFFLINE_ENVIRONMENT
from kvray.probes.cpu import quota_threads, total_memory_mib
from kvray.probes.environment import Environment, capture_environment, library_versions
from kvray.store.fingerprint import hardware_digest
from kvray.trial.spec import TrialSpec


def set_process_environment(*, threads: int | None, offline: bool) -> None:
    """Set the variables that all processes started from here on inherit.

    Args:
        threads: those that the user, or a plan of slots, has decided on. `None` leaves them to the engine's library,
            unless this machine has a CPU quota.
    """
    count = threads or quota_threads()
    if count is None:
        os.environ.pop("OMP_NUM_THREADS", None)
    else:
        os.environ["OMP_NUM_THREADS"] = str(count)
    # NVML numbers GPUs by bus; CUDA does so only when told, and Ray hands out such numbers.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if offline:
        os.environ.update(OFFLINE_ENVIRONMENT)


def trial_environment(spec: TrialSpec, adapter: EngineAdapter, python: EnginePython | None) -> Environment:
    """What the trial's record says of this machine and its software."""
    here = capture_environment(spec.device, libraries=adapter.libraries, gpus=spec.candidate.parallelism)
    return here if python is None else python.applied_to(here)


def hardware_here(environment: Environment, libraries: Iterable[str]) -> str:
    """Digest of this machine with the versions of `libraries`."""
    return hardware_digest(environment, memory_mib=total_memory_mib(), versions=library_versions(libraries))
