"""Somebody else's folder, such as a downloaded model, with files in it that Python would import if it looked there."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

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


def run(
    folder: HostileFolder, *command: str | Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """With the paths that a careless line in a shell's profile makes of unset ones (`PYTHONPATH=$PYTHONPATH:`), and
    below `uv run`, where Ray would hand the working folder to its workers: it knows that by its ancestors' names."""
    careless = {name: f"{os.environ.get(name, '')}{os.pathsep}" for name in ("PYTHONPATH", "LD_LIBRARY_PATH", "PATH")}
    unsafe = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.run(
        ["uv", "run", *map(str, command)],
        executable="/bin/sh",
        cwd=folder.path,
        env={**unsafe, **careless, "COLUMNS": "200", "NO_COLOR": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
