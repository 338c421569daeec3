"""What the processes that measure find in their environment."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import pytest

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.engines.base import ModelRequest
from kvray.measuring import surroundings
from kvray.measuring.runner import with_reference_python
from kvray.record import Role
from kvray.trial.spec import ReferenceSpec, TrialSpec
from kvray.workload import get_profile


@pytest.mark.parametrize(
    ("ordered", "quota_threads", "threads"),
    [(None, None, None), (None, 1, "1"), (3, None, "3"), (3, 1, "3")],
)
def test_a_quota_where_the_slot_runs_leaves_the_library_no_choice_and_an_order_wins(
    monkeypatch: pytest.MonkeyPatch, ordered: int | None, quota_threads: int | None, threads: str | None
) -> None:
    """On a cluster the driver's machine knows nothing of the quota of a node."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # Ray's own wish
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setattr(surroundings, "quota_threads", lambda: quota_threads)
    surroundings.set_process_environment(threads=ordered, offline=False)
    assert os.environ.get("OMP_NUM_THREADS") == threads


def test_a_reference_without_an_environment_of_its_own_is_made_where_the_trial_is_started() -> None:
    """On a node, whose Python may lie elsewhere than the driver's."""
    candidate = Candidate(
        engine="fake", cache=CacheStrategy.DYNAMIC, attention=AttentionBackend.SDPA, dtype=DType.FLOAT32
    )
    spec = TrialSpec(
        run_id="r",
        trial_id="t",
        role=Role.SEARCH,
        request=ModelRequest(model_id="fake:ok"),
        candidate=candidate,
        profile=get_profile("ci-micro"),
        device=DeviceType.CPU,
        timeout_s=1.0,
        reference=ReferenceSpec(candidate=candidate, model_revision="1"),
    )
    filled = with_reference_python(spec)
    assert filled.reference is not None
    assert filled.reference.python == sys.executable
    own = replace(filled, reference=replace(filled.reference, python="/envs/a/bin/python"))
    assert with_reference_python(own) == own
