"""A sweep started inside somebody else's folder, such as a downloaded model: nothing of it is imported or run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from drivers import recorded

from kvray.record import TrialStatus

NAMES = (
    # Libraries that kvray or Ray import, with and without need
    *("accelerate", "aiohttp", "filelock", "gguf", "grpc", "huggingface_hub", "hqq", "jinja2", "numpy", "optuna"),
    *("packaging", "pandas", "plotly", "psutil", "pyarrow", "pydantic", "pynvml", "ray", "requests", "rich"),
    *("safetensors", "scipy", "setproctitle", "tensorboardX", "tokenizers", "torch", "transformers", "triton"),
    *("typer", "uvloop", "yaml"),
    # The standard library: an innocent name is enough
    *("dataclasses", "hashlib", "json", "logging", "multiprocessing", "pickle", "queue", "random", "secrets", "select"),
    *("signal", "socket", "string", "subprocess", "tempfile", "textwrap", "typing", "uuid", "zipfile"),
)
PLUGIN = "hostile_plugin"
TINY = Path(__file__).parent.parent / "assets" / "tiny_llama"
SPACE = ("--attention", "sdpa", "--cache", "dynamic,static", "--dtype", "float32", "--search", "grid", "--confirm", "0")


class HostileFolder:
    """A model's folder in which whatever is imported leaves its name in a file."""

    def __init__(self, root: Path) -> None:
        self.path = root / "model"
        self._marks = root / "imported"
        shutil.copytree(TINY, self.path)
        for name in (*NAMES, PLUGIN):
            (self.path / f"{name}.py").write_text(self._code(name))
        (self.path / "run").write_text('"$@"\nexit $?\n')
        (self.path / "pyproject.toml").write_text("[project]\nname = 'hostile'\nversion = '1.0'\n")
        (self.path / "sub").mkdir()
        (self.path / "sub" / "attr.py").write_text(self._code("attr"))
        metadata = self.path / "hostile-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n")
        points = (f"[{group}]\nhostile = {PLUGIN}:run\n" for group in ("torch.backends", "kvray.engines"))
        (metadata / "entry_points.txt").write_text("".join(points))

    def _code(self, name: str) -> str:
        return f"open({str(self._marks)!r}, 'a').write('{name} ')\nraise ImportError('this is not {name}')\n"

    @property
    def imported(self) -> str:
        """Names of what was imported."""
        return self._marks.read_text() if self._marks.exists() else ""


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


def run(folder: HostileFolder, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """With the paths that a careless line in a shell's profile makes of unset ones (`PYTHONPATH=$PYTHONPATH:`), and
    below `uv run`, where Ray would hand the working folder to its workers: it knows that by its ancestors' names."""
    careless = {"PYTHONPATH": os.pathsep, "LD_LIBRARY_PATH": os.pathsep, "PATH": f"{os.environ['PATH']}{os.pathsep}"}
    unsafe = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.run(
        ["uv", "run", *map(str, command)],
        executable="/bin/sh",
        cwd=folder.path,
        env={**unsafe, **careless, "COLUMNS": "200", "NO_COLOR": "1", **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def statuses(folder: Path) -> set[TrialStatus]:
    return {one.record.status for one in recorded(folder).values()}


def test_no_command_imports_what_lies_in_the_working_folder(
    hostile: HostileFolder, kvray_script: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    options = ("--profile", "ci-micro", "--context", "48", "--output-len", "4", "--device", "cpu", "--offline")
    cache = {"KVRAY_CACHE": str(tmp_path / "cache")}
    swept = run(hostile, kvray_script, "tune", "random:.", *options, *SPACE, "--output", results, **cache)
    assert (swept.returncode, hostile.imported) == (0, ""), swept.stderr
    assert statuses(results) == {TrialStatus.OK}
    for command in (
        ("tune", "random:.", *options, "--dry-run"),
        ("forecast", "random:.", *options),
        ("info",),
        ("rank", results),
        ("report", results),
        ("compare", results, results),
    ):
        done = run(hostile, kvray_script, *command, **cache)
        assert (done.returncode, hostile.imported) == (0, ""), (command, done.stderr)


def test_python_m_kvray_imports_nothing_from_the_working_folder(hostile: HostileFolder) -> None:
    """Beyond the few modules of the standard library that Python needs to find kvray (SECURITY.md)."""
    done = run(hostile, sys.executable, "-m", "kvray", "profiles", PYTHONPATH="")
    assert (done.returncode, hostile.imported, done.stderr) == (0, "", "")


def test_a_folder_that_is_named_relative_to_the_working_folder_is_left_out_and_named(
    hostile: HostileFolder, kvray_script: Path
) -> None:
    done = run(hostile, kvray_script, "info", PYTHONPATH=os.pathsep.join([".", "sub", str(hostile.path.parent)]))
    assert (done.returncode, hostile.imported) == (0, "")
    assert done.stderr.startswith("kvray: warning: PYTHONPATH=sub: not used.")
