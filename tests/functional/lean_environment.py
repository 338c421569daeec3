"""A virtual environment with what `pip install kvray` or `kvray[EXTRA]` brings, and nothing else: links to what is
installed here.

Which ones is derived from pyproject.toml as pip would do it, so a library that no dependency brings is truly absent.
"""

from __future__ import annotations

import os
import subprocess
import tomllib
import venv
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path, PurePath

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

IMPORT_ALL = """
import importlib, pkgutil, kvray
for module in pkgutil.walk_packages(kvray.__path__, "kvray."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        print(module.name, error.name.partition(".")[0])
"""
"""Prints each module of kvray that cannot be imported, and the library that it lacks."""
ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def create_environment(folder: Path, *extras: str) -> Path:
    """A virtual environment in `folder` with kvray's core and what its `extras` bring; returns its interpreter."""
    builder = venv.EnvBuilder(symlinks=True, with_pip=False)
    builder.create(folder)
    (packages,) = folder.glob("lib/python3*/site-packages")
    for installed in distributions(extras):
        _link(installed, packages)
    (packages / "kvray").symlink_to(ROOT / "kvray")
    _write_metadata(packages / f"kvray-{PROJECT['version']}.dist-info")
    return folder / "bin" / "python"


def run_in(python: Path, folder: Path, *arguments: str | Path, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run the interpreter of such an environment in `folder`; nothing leads it out of its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    lean = {"COLUMNS": "120", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "KVRAY_CACHE": str(folder / "cache")}
    return subprocess.run(
        [python, *map(str, arguments)],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        cwd=folder,
        env={**environment, **lean},
    )


def distributions(extras: Iterable[str] = ()) -> list[Distribution]:
    """Every distribution that kvray's dependencies lead to, as installed here, with these extras of kvray."""
    found: dict[tuple[str, frozenset[str]], Distribution] = {}
    open_ = [Requirement(line) for line in PROJECT["dependencies"]]
    open_ += [Requirement(line) for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    while open_:
        asked = open_.pop()
        if asked.name == "kvray":
            own = (PROJECT["optional-dependencies"][extra] for extra in asked.extras)
            open_ += [Requirement(line) for lines in own for line in lines]
            continue
        key = (canonicalize_name(asked.name), frozenset(asked.extras))
        if key in found:
            continue
        found[key] = installed = distribution(asked.name)
        needed = [Requirement(line) for line in installed.requires or ()]
        extras = {"", *asked.extras}
        open_ += [
            one for one in needed if one.marker is None or any(one.marker.evaluate({"extra": each}) for each in extras)
        ]
    return list({str(one.name): one for one in found.values()}.values())


def _link(installed: Distribution, packages: Path) -> None:
    """Link each module, package and metadata folder of a distribution."""
    tops = {PurePath(path).parts[0] for path in installed.files or ()} - {"..", "__pycache__"}
    assert tops, f"{installed.name} does not say which files it has"
    for top in tops:
        source = Path(str(installed.locate_file(top)))
        if source.exists():  # RECORD may name bytecode that was never written
            (packages / top).symlink_to(source)  # fails where two distributions share a folder


def _write_metadata(folder: Path) -> None:
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kvray\nVersion: {PROJECT['version']}\n")
    groups = {"console_scripts": PROJECT["scripts"], **PROJECT["entry-points"]}
    lines = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in of.items()) for group, of in groups.items()
    ]
    (folder / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
