"""Where a process looks for code: never in the working folder, nor in what is named relative to it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

import kvray
from kvray.search_paths import child_environment, leave_out_working_folder, python_command, safe_environment

HERE = Path(kvray.__file__).parent


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PYTHONPATH", "LD_LIBRARY_PATH", "PYTHONSAFEPATH"):
        # Set first, so that what a test sets is undone too.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setattr(sys, "path", [str(HERE.parent)])
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["PATH", "PYTHONPATH", "LD_LIBRARY_PATH"])
@pytest.mark.parametrize(
    ("value", "safe"),
    [("/a:", "/a"), (":/a", "/a"), ("/a::/b", "/a:/b"), (".:/a:../c:src", "/a"), (":", None), ("", None)],
)
def test_children_search_absolute_folders_only(
    name: str, value: str, safe: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert safe_environment() == {"PYTHONSAFEPATH": "1", name: safe}
    assert child_environment().get(name) == safe


def test_paths_that_are_safe_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/a:/b")
    assert safe_environment() == {"PYTHONSAFEPATH": "1"}


def test_children_find_caches_that_are_named_relative_to_the_working_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in (("HF_HOME", "hub"), ("KVRAY_CACHE", "/cache"), ("TORCH_HOME", "~/torch"), ("TMPDIR", "")):
        monkeypatch.setenv(name, value)
    assert safe_environment() == {"PYTHONSAFEPATH": "1", "HF_HOME": str(tmp_path / "hub")}


def test_this_process_forgets_what_relative_entries_have_led_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "src", "/a"]))
    sys.path[:0] = [
        "",
        str(tmp_path),
        str(tmp_path / "src"),
        "/a",
    ]  # the latter three as Python makes them at its start
    assert leave_out_working_folder() == ["PYTHONPATH=src"]
    assert sys.path == ["/a", str(HERE.parent)]
    assert (os.environ["PYTHONPATH"], os.environ["PYTHONSAFEPATH"]) == ("/a", "1")


def test_a_folder_that_is_named_by_its_absolute_path_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    sys.path.insert(0, str(tmp_path))
    assert leave_out_working_folder() == []
    assert str(tmp_path) in sys.path


def test_every_interpreter_that_kvray_starts_is_told_to_keep_the_working_folder_out() -> None:
    """By `python_command`, or by -P, or by -I, which says more. What a message names starts nothing."""
    naked = re.compile(r"sys\.executable(?!, \"-[IP]\"|\})")
    assert [path.name for path in HERE.rglob("*.py") if naked.search(path.read_text())] == []
    assert python_command("-m", "x")[1:] == ["-P", "-m", "x"]
