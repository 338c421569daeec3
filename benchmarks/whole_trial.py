"""A whole trial in its own process, as a slot runs it, without Ray around it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import ModelRequest
from kvray.record import Role, Run, TrialStatus
from kvray.trial.events import RungFinished, TrialFacts
from kvray.trial.process import Launcher, TrialProcess
from kvray.trial.spec import TrialSpec
from kvray.workload import WorkloadProfile


def trial_spec(model: str, candidate: Candidate, profile: WorkloadProfile, **more: Any) -> TrialSpec:
    """On the CPU; `more` are further fields."""
    given = {"role": Role.SEARCH, "timeout_s": 600.0, **more}
    return TrialSpec(
        run_id="benchmark",
        trial_id=candidate.candidate_id,
        request=ModelRequest(model_id=model),
        candidate=candidate,
        profile=profile,
        device=DeviceType.CPU,
        **given,
    )


def run_trial(launcher: Launcher, spec: TrialSpec, scratch: Path) -> tuple[Sequence[Run], TrialFacts]:
    """Its runs and what it learned. The benchmark ends where the trial does not end well."""
    process = TrialProcess(launcher, spec, scratch / f"{spec.trial_id}.log")
    try:
        while isinstance(event := process.advance(), RungFinished):
            pass
    finally:
        process.close()
    if event.status is not TrialStatus.OK or event.facts is None:
        sys.exit(f"{spec.candidate.label}: {event.status}, {event.message}")
    return process.runs, event.facts
