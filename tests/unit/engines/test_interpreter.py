"""Which Python an engine runs in: what a user says now, then the environment, then what a resumed sweep had."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kvray.candidate import DeviceType
from kvray.engines.interpreter import EnginePython, chosen_python, python_variable
from kvray.engines.python_inspection import source_digest
from kvray.probes.environment import capture_environment
from kvray.search_paths import child_environment, python_command


def test_the_option_counts_before_the_environment_and_that_before_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = {"vllm": "/recorded/python"}
    assert chosen_python("vllm", {}, {}) is None
    assert chosen_python("vllm", {}, recorded) == "/recorded/python"
    monkeypatch.setenv("KVRAY_VLLM_PYTHON", "/named/python")
    assert chosen_python("vllm", {}, recorded) == "/named/python"
    assert chosen_python("vllm", {"vllm": "/asked/python"}, recorded) == "/asked/python"
    assert chosen_python("fake", {"vllm": "/asked/python"}, recorded) is None
    monkeypatch.setenv("KVRAY_VLLM_PYTHON", "")
    assert chosen_python("vllm", {}, recorded) == "/recorded/python", "an empty variable names nothing"


def test_a_path_is_made_absolute_and_a_link_stays_the_link_that_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "python").symlink_to(sys.executable)
    assert chosen_python("vllm", {"vllm": "python"}, {}) == str(tmp_path / "python")
    assert chosen_python("vllm", {"vllm": "~/env/bin/python"}, {}) == "/home/me/env/bin/python"
    assert chosen_python("vllm", {"vllm": sys.executable}, {}) is None, "it runs kvray already"


def test_the_variable_of_an_engine_is_one_that_a_shell_can_set() -> None:
    assert python_variable("llama-cpp") == "KVRAY_LLAMA_CPP_PYTHON"


def test_an_environment_has_the_software_of_the_engine_s_python() -> None:
    here = capture_environment(DeviceType.CPU, libraries=["numpy"])
    there = EnginePython(path="/a/python", python_version="3.12.1", engine_versions={"vllm": "1"}).applied_to(here)
    assert (there.python_version, there.engine_versions) == ("3.12.1", {"vllm": "1"})
    assert (there.device_name, there.kvray_version, there.cpus) == (here.device_name, here.kvray_version, here.cpus)


def test_another_python_is_not_led_to_this_one_s_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "/here")
    assert child_environment().keys() >= {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    assert child_environment(python="/a/python").keys().isdisjoint({"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"})
    assert child_environment(python="/a/python")["PYTHONSAFEPATH"] == "1"
    assert python_command("-m", "x", python="/a/python") == ["/a/python", "-P", "-m", "x"]


def test_a_source_is_known_by_every_file_of_it(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "a.py").write_text("1")
    before = source_digest(tmp_path)
    (tmp_path / "part" / "a.pyc").write_text("2")
    assert source_digest(tmp_path) == before
    (tmp_path / "part" / "b.py").write_text("1")
    longer = source_digest(tmp_path)
    (tmp_path / "part" / "b.py").rename(tmp_path / "part" / "c.py")
    assert len({before, longer, source_digest(tmp_path)}) == 3
