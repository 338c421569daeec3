"""The environment that a record names."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvray.candidate import DeviceType
from kvray.probes import environment as environment_probe
from kvray.probes.cpu import available_cpus, cpu_name
from kvray.probes.environment import capture_environment, kvray_version, library_versions

pytestmark = pytest.mark.spawns


def test_a_cpu_s_environment_names_it_and_has_no_driver() -> None:
    environment = capture_environment(DeviceType.CPU)
    assert (environment.device_name, environment.driver_version) == (cpu_name(), None)
    assert environment.cpus == available_cpus()
    assert environment.kvray_version == kvray_version() == importlib.metadata.version("kvray")


def test_a_gpu_that_cannot_be_seen_is_named_as_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    environment = capture_environment(DeviceType.CUDA)
    assert (environment.device_name, environment.driver_version) == ("CUDA device unknown to NVML", None)


def test_versions_are_told_without_importing_the_libraries() -> None:
    script = (
        "import sys; from kvray.candidate import DeviceType; from kvray.probes.environment import capture_environment; "
        "e = capture_environment(DeviceType.CPU, libraries=['torch', 'transformers', 'no-such-thing']); "
        "print(*e.engine_versions.values()); "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    versions = f"{importlib.metadata.version('torch')} {importlib.metadata.version('transformers')}"
    assert done.stdout.splitlines() == [versions, "[]"]


def test_a_device_is_named_by_its_uuids(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [SimpleNamespace(uuid=f"GPU-{index}", name="A GPU", driver_version="1") for index in range(3)]
    monkeypatch.setattr(environment_probe, "visible_gpus", lambda shown: gpus)
    assert capture_environment(DeviceType.CUDA).device_uuid == "GPU-0,GPU-1,GPU-2"
    assert capture_environment(DeviceType.CUDA, gpus=2).device_uuid == "GPU-0,GPU-1"


def test_a_gpu_that_nvml_does_not_list_is_named_by_its_number_on_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_probe, "visible_gpus", lambda shown: ())
    machine = capture_environment(DeviceType.CPU).device_uuid
    assert machine is not None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,MIG-12")
    assert capture_environment(DeviceType.CUDA).device_uuid == f"{machine}:3,MIG-12"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert capture_environment(DeviceType.CUDA).device_uuid is None


@pytest.mark.parametrize("version", ["1.2.3", "0.0.0.dev0+g1234"])
def test_a_version_is_what_the_head_of_the_metadata_says(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "some_thing-9.dist-info"
    folder.mkdir()
    text = f"Metadata-Version: 2.1\nName: some-thing\nVersion: {version}\n\nVersion: 8 is told of in the readme\n"
    (folder / "METADATA").write_text(text)
    (tmp_path / "older.egg-info").mkdir()
    (tmp_path / "older.egg-info" / "PKG-INFO").write_text("Metadata-Version: 1.0\nName: older\nVersion: 5\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert library_versions(["some-thing", "older", "absent"]) == {"some-thing": version, "older": "5"}
