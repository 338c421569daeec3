"""The environment that a record names."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

from kvray.candidate import DeviceType
from kvray.probes.cpu import available_cpus, cpu_name
from kvray.probes.environment import capture_environment, kvray_version

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
