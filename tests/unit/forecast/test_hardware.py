from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from forecast_samples import hardware

from kvray.candidate import DeviceType
from kvray.forecast.hardware import Hardware, HardwareKey, free_memory_mib, load_hardware, save_hardware


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "cache"))


def test_rates_survive_being_written_and_read() -> None:
    gpu = hardware(device=DeviceType.CUDA, to_device_bytes_s=25e9, resident_mib=512.0)
    assert Hardware.from_json(gpu.to_json()) == gpu


def test_rates_are_kept_for_the_same_device_versions_and_threads_only() -> None:
    key = HardwareKey.here("transformers", DeviceType.CPU, 2, libraries=["torch"])
    assert load_hardware(key) is None
    save_hardware(key, hardware())
    assert load_hardware(key) == hardware()
    others = [
        replace(key, engine="other"),
        replace(key, device_name="another"),
        replace(key, engine_versions=(("torch", "0"),)),
        replace(key, driver_version="1"),
        replace(key, threads=1),
        replace(key, threads=None),
        replace(key, cpus=key.cpus + 1),
    ]
    assert [load_hardware(other) for other in others] == [None] * len(others)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"device": "cpu"}'])
def test_a_file_that_is_not_a_device_s_rates_counts_as_none(text: str) -> None:
    key = HardwareKey.here("transformers", DeviceType.CPU, None)
    key.path.parent.mkdir(parents=True)
    key.path.write_text(text)
    assert load_hardware(key) is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "file"))
    save_hardware(HardwareKey.here("transformers", DeviceType.CPU, None), hardware())


def test_this_machine_has_free_memory_and_no_more_than_it_has_in_all() -> None:
    from kvray.probes.cpu import total_memory_mib

    free = free_memory_mib(DeviceType.CPU)
    assert free is not None
    assert 0 < free <= total_memory_mib()
