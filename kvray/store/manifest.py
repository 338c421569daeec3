"""`SweepManifest`: what a sweep was asked and found out before its first trial; what makes its records readable."""

from __future__ import annotations

from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from kvray.candidate import DeviceType
from kvray.workload import WorkloadProfile

MANIFEST_VERSION = 1


class SweepManifest(BaseModel):
    """Written to `sweeps/<run_id>.json` when the sweep starts.

    Attributes:
        profile: as measured, after overrides and after contexts beyond the model's limit were dropped.
        dropped_contexts: context lengths (tokens) that the model cannot hold.
        device_name: of the device that was measured.
        memory_note: what `peak_mib` means on that device.
        quality_note: why quality is not measured, if so.
        left_out: (axis, value, reason) of what the engine knows and this sweep did not try.
        search: how the space was searched; `None` in sweeps older than this field.
        budget_s: seconds that search and confirming might take, `None` without a bound.
        max_trials: launches of the search at most, `None` without a bound.
        confirm_rounds: rounds at most in which winner, rivals and baseline were measured again.
        seed: of the search and of the confidence's draws.
        arguments: the `kvray tune` arguments that repeat this sweep, without `--resume`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest_version: int = MANIFEST_VERSION
    kvray_version: str
    run_id: str
    created_at: AwareDatetime
    model_id: str
    model_revision: str
    architecture: str
    engine: str
    device: DeviceType
    device_name: str
    profile: WorkloadProfile
    dropped_contexts: tuple[int, ...] = ()
    baseline_id: str
    memory_note: str
    quality_note: str | None = None
    trust_remote_code: bool = False
    left_out: tuple[tuple[str, str, str], ...] = ()
    search: str | None = None
    budget_s: float | None = None
    max_trials: int | None = None
    confirm_rounds: int = 0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    arguments: tuple[str, ...] = ()
