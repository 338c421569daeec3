"""A whole trial of a real model in this process: how it ends, and what it told on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import ModelRequest
from kvray.engines.transformers import TransformersAdapter
from kvray.record import Role
from kvray.trial.child import _run
from kvray.trial.events import Event, TrialEnded
from kvray.trial.protocol import TrialProtocol
from kvray.trial.spec import ReferenceSpec, TrialSpec
from kvray.workload import WorkloadProfile, create_custom_profile


def profile_of(*contexts: int, output_tokens: int = 4) -> WorkloadProfile:
    return create_custom_profile(
        "whole",
        context_lengths=contexts,
        output_lengths=(output_tokens,),
        weight_ttft=0.4,
        weight_throughput=0.4,
        weight_memory=0.2,
    )


def spec_of(
    model_id: Path | str, candidate: Candidate, profile: WorkloadProfile, reference: ReferenceSpec | None = None
) -> TrialSpec:
    return TrialSpec(
        run_id="r",
        trial_id="t",
        role=Role.SEARCH,
        request=ModelRequest(model_id=str(model_id)),
        candidate=candidate,
        profile=profile,
        device=DeviceType.CPU,
        timeout_s=240.0,
        reference=reference,
    )


def ended(spec: TrialSpec, emit: Callable[[Event], None] = lambda event: None) -> TrialEnded:
    """How the trial of `spec` ends; `emit` is told everything before."""
    event = _run(
        TrialProtocol(
            spec, TransformersAdapter(), emit=emit, may_continue=lambda: True, device_memory_mib=lambda _: None
        )
    )
    assert isinstance(event, TrialEnded)
    return event
