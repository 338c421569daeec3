"""A sweep started inside somebody else's folder, such as a downloaded model: nothing of it is imported or run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from drivers import recorded
from hostile_folder import HostileFolder, run

from kvray.record import TrialStatus
from kvray.store.manifest import CodeOutcome
from kvray.store.parquet import ResultsStore

SPACE = ("--attention", "sdpa", "--cache", "dynamic,static", "--dtype", "float32", "--search", "grid", "--confirm", "0")


@pytest.fixture
def hostile(tmp_path: Path) -> HostileFolder:
    return HostileFolder(tmp_path)


@pytest.fixture
def kvray_script(tmp_path: Path) -> Path:
    """As pip makes it from the entry point."""
    script = tmp_path / "bin" / "kvray"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom kvray.__main__ import main\nsys.exit(main())\n")
    script.chmod(0o755)
    return script


def statuses(folder: Path) -> set[TrialStatus]:
    return {one.record.status for one in recorded(folder).values()}


@pytest.mark.slow
def test_no_command_imports_what_lies_in_the_working_folder(
    hostile: HostileFolder, kvray_script: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    options = ("--profile", "ci-micro", "--context", "48", "--output-len", "4", "--device", "cpu", "--offline")
    cache = {"KVRAY_CACHE": "../cache"}  # where trials, which run elsewhere, find it all the same
    swept = run(hostile, kvray_script, "tune", "random:.", *options, *SPACE, "--output", results, environment=cache)
    assert (swept.returncode, hostile.imported) == (0, ""), swept.stderr
    assert statuses(results) == {TrialStatus.OK}
    assert (tmp_path / "cache" / "reference").is_dir()
    store = ResultsStore(str(results))
    code_check = store.read_manifest(store.latest_run_id()).code_check
    assert code_check is not None
    assert code_check.outcome is CodeOutcome.CHECKED, code_check.text
    for command in (
        ("tune", "random:.", *options, "--dry-run"),
        ("forecast", "random:.", *options),
        ("info",),
        ("rank", results),
        ("report", results),
        ("compare", results, results),
    ):
        done = run(hostile, kvray_script, *command, environment=cache)
        assert (done.returncode, hostile.imported) == (0, ""), (command, done.stderr)


def test_python_m_kvray_imports_nothing_from_the_working_folder(hostile: HostileFolder) -> None:
    """Beyond the few modules of the standard library that Python needs to find kvray (SECURITY.md)."""
    done = run(hostile, sys.executable, "-m", "kvray", "profiles", environment={"PYTHONPATH": ""})
    assert (done.returncode, hostile.imported, done.stderr) == (0, "", "")


def test_a_folder_that_is_named_relative_to_the_working_folder_is_left_out_and_named(
    hostile: HostileFolder, kvray_script: Path
) -> None:
    paths = os.pathsep.join([".", "sub", str(hostile.path.parent)])
    done = run(hostile, kvray_script, "info", environment={"PYTHONPATH": paths})
    assert (done.returncode, hostile.imported) == (0, "")
    assert done.stderr.startswith("kvray: warning: PYTHONPATH=sub: not used.")
