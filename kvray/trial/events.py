"""What a measurement process says to its slot, over a pipe, in the order in which it happens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvray.engines.base import Compilation, Observed
from kvray.probes.disturbance import DeviceState
from kvray.record import Phase, Run, TrialStatus
from kvray.trial.forced_logs import ForcedLogs
from kvray.trial.quality import QualityLoss
from kvray.workload import Cell


@dataclass(frozen=True, kw_only=True)
class PhaseStarted:
    """A new phase began: the watchdog's clock starts again. `cell` is the one that is worked on, if any."""

    phase: Phase
    cell: Cell | None = None


@dataclass(frozen=True, kw_only=True)
class RunFinished:
    """One timed generation."""

    run: Run


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The first tokens that were generated in a cell, for the first and the last sequence of the batch (one row where
    there is but one): code that claims to do the same must generate them too."""

    cell: Cell
    tokens: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class TrialFacts:
    """What a trial has learned beside its runs, as far as it has come. Seconds and MiB; `TrialRecord` explains them.

    Attributes:
        engine_versions: of the engine's libraries as this process has them.
    """

    pid: int
    host: str
    niceness: int
    cpus: int
    cpu_quota: float | None = None
    engine_versions: Mapping[str, str] | None = None
    load_s: float | None = None
    first_call_s: float | None = None
    warmup_s: float = 0.0
    cold_s: float | None = None
    warmed_up: bool | None = None
    compile_s: float | None = None
    busy_s: float = 0.0
    proof_s: float = 0.0
    kv_cache_mib: float | None = None
    library_mib: float | None = None
    device_peak_mib: float | None = None
    device_peak_gpu_mib: float | None = None
    device_state: DeviceState = field(default_factory=DeviceState)
    observed: Observed = field(default_factory=Observed)
    compilation: Compilation | None = None
    quality: QualityLoss | None = None
    quality_s: float | None = None
    quality_note: str | None = None
    sample: Sample | None = None
    forced: ForcedLogs | None = None


@dataclass(frozen=True, kw_only=True)
class RungFinished:
    """Every cell of a rung is measured; the process waits for a word whether to go on."""

    rung: int
    facts: TrialFacts


@dataclass(frozen=True, kw_only=True)
class TrialEnded:
    """The process has nothing more to say, and why."""

    status: TrialStatus
    phase: Phase | None
    message: str | None
    facts: TrialFacts | None


Event = PhaseStarted | RunFinished | RungFinished | TrialEnded
