"""Which GPUs a value of `CUDA_VISIBLE_DEVICES` shows, the answers without a driver and, where there is one, NVML."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import NoReturn

import pynvml
import pytest

from kvray.probes.gpu import (
    ClockEvent,
    GpuInfo,
    clock_events,
    energy_mj,
    list_gpus,
    other_processes,
    power_w,
    process_memory_by_gpu_mib,
    process_memory_mib,
    select_visible,
    sm_clock_mhz,
    temperature_c,
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
    assert process_memory_mib([os.getpid()]) is None
    assert process_memory_mib([os.getpid()], GPUS) is None
    assert other_processes(GPUS[0], ()) == ()
    assert energy_mj(GPUS[0]) is None
    assert clock_events(GPUS[0]) is None
    assert sm_clock_mhz(GPUS[0]) is temperature_c(GPUS[0]) is power_w(GPUS[0]) is None


def test_the_memory_of_several_processes_is_added_up_over_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    held: dict[str, dict[int, float | None]] = {
        "GPU-0abc-def": {1: 100.0, 2: 20.0, 3: 7.0},
        "GPU-1abc-def": {2: 300.0, 4: None},
        "GPU-2abc-def": {},
    }
    monkeypatch.setattr(
        "kvray.probes.gpu._processes",
        lambda gpu: [SimpleNamespace(pid=pid, used_mib=mib) for pid, mib in held[gpu.uuid].items()],
    )
    assert process_memory_mib([1], GPUS) == 100.0
    assert process_memory_mib([1, 2, 5], GPUS) == 420.0
    assert process_memory_by_gpu_mib([1, 2, 5], GPUS) == (120.0, 300.0)
    assert process_memory_mib([1, 4], GPUS) is None, "how much one of them holds is not known"
    assert process_memory_mib([5], GPUS) is None
    assert wait_until_released([5, 6], gpus=GPUS, timeout_s=0.0)
    assert not wait_until_released([5, 4], gpus=GPUS, timeout_s=0.0)


@without_driver
def test_without_a_driver_nothing_is_waited_for() -> None:
    assert wait_until_released([os.getpid()], gpus=GPUS, timeout_s=0.0)


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


def refusing(code: int) -> Callable[..., NoReturn]:
    def refuse(*arguments: object) -> NoReturn:
        raise pynvml.NVMLError(code)

    return refuse


def nvml(**answers: Callable[..., object]) -> SimpleNamespace:
    """`pynvml` for one GPU, of a driver from 535 on unless `answers` say otherwise."""
    heat = pynvml.nvmlClocksEventReasonHwThermalSlowdown | pynvml.nvmlClocksEventReasonSyncBoost
    given: dict[str, Callable[..., object]] = {
        "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
        "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: heat,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: pynvml.nvmlClocksThrottleReasonSwPowerCap,
        "nvmlDeviceGetClockInfo": lambda handle, kind: {pynvml.NVML_CLOCK_SM: 1980}[kind],
        "nvmlDeviceGetTemperature": lambda handle, sensor: {pynvml.NVML_TEMPERATURE_GPU: 61}[sensor],
        "nvmlDeviceGetPowerUsage": lambda handle: 250_500,
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: 7_000,
        **answers,
    }
    unknown = [name for name in given if not hasattr(pynvml, name)]
    assert not unknown, "only what NVML has may be asked"
    constants = ("NVMLError", "NVMLError_FunctionNotFound", "NVML_CLOCK_SM", "NVML_TEMPERATURE_GPU")
    return SimpleNamespace(**given, **{name: getattr(pynvml, name) for name in constants})


def test_clock_temperature_power_and_energy_come_in_their_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvray.probes.gpu._nvml", nvml)
    assert sm_clock_mhz(GPUS[0]) == 1980.0
    assert temperature_c(GPUS[0]) == 61.0
    assert power_w(GPUS[0]) == 250.5
    assert energy_mj(GPUS[0]) == 7_000


def test_what_a_card_does_not_support_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = refusing(pynvml.NVML_ERROR_NOT_SUPPORTED)
    card = nvml(nvmlDeviceGetPowerUsage=refuse, nvmlDeviceGetTotalEnergyConsumption=refuse)
    monkeypatch.setattr("kvray.probes.gpu._nvml", lambda: card)
    assert power_w(GPUS[0]) is None
    assert energy_mj(GPUS[0]) is None


def test_clock_events_are_those_that_matter_by_the_driver_s_new_name_or_its_old_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kvray.probes.gpu._nvml", nvml)
    assert clock_events(GPUS[0]) == ClockEvent.HW_THERMAL
    old = nvml(nvmlDeviceGetCurrentClocksEventReasons=refusing(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND))
    monkeypatch.setattr("kvray.probes.gpu._nvml", lambda: old)
    assert clock_events(GPUS[0]) == ClockEvent.POWER_CAP


def test_clock_events_have_nvml_s_bits() -> None:
    assert {event.name: event.value for event in ClockEvent} == {
        "IDLE": pynvml.nvmlClocksEventReasonGpuIdle,
        "POWER_CAP": pynvml.nvmlClocksEventReasonSwPowerCap,
        "HW_SLOWDOWN": pynvml.nvmlClocksEventReasonHwSlowdown,
        "SW_THERMAL": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
        "HW_THERMAL": pynvml.nvmlClocksEventReasonHwThermalSlowdown,
        "POWER_BRAKE": pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
    }


@with_driver
def test_a_gpu_tells_clock_temperature_power_and_what_shapes_its_clock() -> None:
    for one in list_gpus():
        assert clock_events(one) is not None
        assert (sm_clock_mhz(one) or 0) > 0
        assert 0 < (temperature_c(one) or 0) < 120
        watts = power_w(one)
        assert watts is None or 0 < watts < 2000


@with_driver
def test_the_energy_counter_does_not_run_backwards() -> None:
    for gpu in list_gpus():
        before, after = energy_mj(gpu), energy_mj(gpu)
        assert before is None or (after is not None and after >= before)
