"""Virtual environments beside the one that runs the tests."""

from __future__ import annotations

import sysconfig
import venv
from pathlib import Path

OTHER_TRANSFORMERS = "9.9.9"
"""The version that the second environment claims to have."""


def make_environment(folder: Path, *paths: str) -> str:
    """A virtual environment in `folder` that finds modules in `paths`, too; returns its interpreter. Of Transformers it
    has the version `OTHER_TRANSFORMERS`, as far as metadata tell."""
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    (packages,) = folder.glob("lib/python3*/site-packages")
    library = Path(sysconfig.get_path("stdlib"))
    kept = [path for path in paths if Path(path).is_dir() and Path(path) not in (library, library / "lib-dynload")]
    (packages / "here.pth").write_text("".join(f"{path}\n" for path in kept), encoding="utf-8")
    write_metadata(packages, "transformers", OTHER_TRANSFORMERS)
    return str(folder / "bin" / "python")


def write_metadata(packages: Path, name: str, version: str) -> None:
    """What tells that the package `name` is installed in that version."""
    metadata = packages / f"{name}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
