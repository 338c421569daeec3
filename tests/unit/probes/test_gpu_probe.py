"""Which GPUs a value of `CUDA_VISIBLE_DEVICES` shows, the answers without a driver and, where there is one, NVML."""

from __future__ import annotations

import os

import pytest

from kvray.probes.gpu import (
    GpuInfo,
    energy_mj,
    list_gpus,
    other_processes,
    process_memory_mib,
    select_visible,
    used_memory_mib,
    visible_gpus,
    wait_until_released,
)

GPUS = tuple(
    GpuInfo(
        index=index,
        uuid=f"GPU-{index}abc-def",
        name="A GPU",
        memory_total_mib=1024.0,
        compute_capability=(9, 0),
        driver_version="600.1",
    )
    for index in range(3)
)

without_driver = pytest.mark.skipif(bool(list_gpus()), reason="there is an NVIDIA driver")
with_driver = pytest.mark.skipif(not list_gpus(), reason="there is no NVIDIA driver")


@pytest.mark.parametrize(
    ("value", "indices"),
    [
        (None, [0, 1, 2]),
        ("0,1,2", [0, 1, 2]),
        ("2, 0", [2, 0]),
        ("GPU-1abc", [1]),
        ("GPU-2abc-def,0", [2, 0]),
        ("", []),
        ("-1", []),
        ("1,-1,2", [1]),
        ("7", []),
        ("0,nonsense,1", [0]),
        ("MIG-1abc", []),
    ],
)
def test_visible_gpus_are_those_that_cuda_would_show(value: str | None, indices: list[int]) -> None:
    assert [gpu.index for gpu in select_visible(GPUS, value)] == indices


@without_driver
def test_without_a_driver_there_is_nothing_and_no_error() -> None:
    assert list_gpus() == visible_gpus(None) == visible_gpus("0") == ()
    assert used_memory_mib(GPUS[0]) is None
    assert process_memory_mib(os.getpid()) is None
    assert process_memory_mib(os.getpid(), GPUS) is None
    assert other_processes(GPUS[0], ()) == ()
    assert energy_mj(GPUS[0]) is None


@without_driver
def test_without_a_driver_nothing_is_waited_for() -> None:
    assert wait_until_released(os.getpid(), gpus=GPUS, timeout_s=0.0)


@with_driver
def test_every_gpu_of_the_machine_describes_itself() -> None:
    for gpu in list_gpus():
        used = used_memory_mib(gpu)
        assert gpu.uuid.startswith("GPU-")
        assert gpu.name
        assert gpu.compute_capability >= (5, 0)
        assert used is not None
        assert 0 <= used <= gpu.memory_total_mib


@with_driver
def test_a_gpu_that_nvml_does_not_know_has_no_answers() -> None:
    assert used_memory_mib(GPUS[0]) is None
    assert energy_mj(GPUS[0]) is None
    assert other_processes(GPUS[0], ()) == ()


@with_driver
def test_the_energy_counter_does_not_run_backwards() -> None:
    for gpu in list_gpus():
        before, after = energy_mj(gpu), energy_mj(gpu)
        assert before is None or (after is not None and after >= before)
