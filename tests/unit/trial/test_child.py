"""What a measurement process does before it measures."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from trial_samples import spec_of

from kvray.candidate import DeviceType
from kvray.trial import child


@pytest.mark.parametrize(
    ("device", "shown", "gpus", "seen"),
    [
        (DeviceType.CUDA, "3,1,2", 1, "3"),
        (DeviceType.CUDA, "3,1,2", 2, "3,1"),
        (DeviceType.CUDA, "3", 1, "3"),
        (DeviceType.CUDA, None, 1, None),
        (DeviceType.CPU, "", 1, ""),
    ],
)
def test_a_candidate_has_no_more_gpus_than_it_needs_where_its_slot_holds_those_of_a_larger_one(
    monkeypatch: pytest.MonkeyPatch, device: DeviceType, shown: str | None, gpus: int, seen: str | None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    child._leave_further_gpus(replace(spec_of(parallelism=gpus), device=device))
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == seen
