"""`TrialSpec`: everything a measurement process needs to know, complete in itself, so that it can travel anywhere."""

from __future__ import annotations

from dataclasses import dataclass

from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import EngineAdapter, ModelRequest
from kvray.forecast.prediction import Forecast
from kvray.record import Role
from kvray.workload import WorkloadProfile

LAST_RUNG = 2
ALL_RUNGS = (0, 1, 2)
SEARCH_RUNGS = (0, 1)
"""Rungs of a trial whose repeats, if it may win, are further processes."""
CONFIRM_RUNGS = (1,)
"""A confirming trial measures every full-length cell once: another process tells more than another repeat."""


@dataclass(frozen=True, kw_only=True)
class ReferenceSpec:
    """What a trial's quality is compared with.

    Attributes:
        candidate: the sweep's baseline, whose engine makes the reference.
        model_revision: what identifies the weights.
        enforced: whether a loss beyond the profile's limit ends the trial; with random weights it says nothing.
        adapter, request: the engine of `candidate` and the model as that engine names it; `None`: as in the trial.
        python: path of the Python in which the reference is computed; `None`: the slot's, which fills it in.
        engine_versions: of the libraries in which the reference is computed, as sorted (name, version) pairs.
    """

    candidate: Candidate
    model_revision: str
    enforced: bool = True
    adapter: EngineAdapter | None = None
    request: ModelRequest | None = None
    python: str | None = None
    engine_versions: tuple[tuple[str, str], ...] = ()

    def requested(self, spec: TrialSpec) -> ModelRequest:
        """The model that the reference is made of, in a trial of `spec`."""
        return self.request or spec.request


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """One trial.

    Attributes:
        reference: `None` leaves quality unmeasured.
        confirm_round: the confirming round that it belongs to, from 1; `None` for other trials.
        rungs: those that it runs, in this order.
        forecast: what was predicted, to be recorded beside what is measured; `None` where nothing was.
        timeout_s: seconds that any one phase (load, warm-up of a cell, measuring a cell) may take.
        fingerprint: of the sweep, for the record (see `store.fingerprint`).
        gpu_type: Ray's accelerator type of the GPUs that it keeps to, for the record; `None` where there is none.
        fetch_timeout_s: seconds that making the weights available may take.
        told_tokens: so many tokens of a text are fed at the end, and what the model thought of each is recorded;
            `None`: nothing is fed.
    """

    run_id: str
    trial_id: str
    role: Role
    request: ModelRequest
    candidate: Candidate
    profile: WorkloadProfile
    device: DeviceType
    timeout_s: float
    fetch_timeout_s: float = 3600.0
    reference: ReferenceSpec | None = None
    rungs: tuple[int, ...] = ALL_RUNGS
    confirm_round: int | None = None
    forecast: Forecast | None = None
    fingerprint: str | None = None
    gpu_type: str | None = None
    told_tokens: int | None = None
