"""How many threads a slot gives the processes that it starts."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import pytest
from queue_samples import make_queue

from kvray.sweep import slot


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
    monkeypatch.setattr(slot, "quota_threads", lambda: quota_threads)
    task = make_queue().next_trial()
    assert task is not None
    slot._set_process_environment(replace(task, threads=ordered))
    assert os.environ.get("OMP_NUM_THREADS") == threads


def test_a_reference_without_an_environment_of_its_own_is_made_in_the_slots() -> None:
    """On a node, whose Python may lie elsewhere than the driver's."""
    task = make_queue().next_trial()
    assert task is not None
    assert task.spec.reference is not None
    filled = slot._with_reference_python(task.spec)
    assert filled.reference is not None
    assert filled.reference.python == sys.executable
    own = replace(task.spec, reference=replace(task.spec.reference, python="/envs/a/bin/python"))
    assert slot._with_reference_python(own) == own
