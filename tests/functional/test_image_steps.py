"""The Dockerfile's own steps without Docker: its RUN lines in a fresh folder, by a user other than root."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE))
FOLDERS = re.compile(r"(?<![\w/.])/(src|build|wheels|opt/kvray|cache|results)\b")
NOBODY = 65534

pytestmark = pytest.mark.slow


class Image:
    """A folder in which the steps run as they would in a container; `/opt/kvray` lies below it, and so on."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._user = NOBODY if os.geteuid() == 0 else None
        arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.MULTILINE))
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))}
        self._environment = {**kept, **arguments, "PATH": os.defpath + ":/usr/local/bin", "HOME": str(root / "home")}
        for name in ("home", "opt", "cache", "results", "src"):
            (root / name).mkdir()

    def copy_sources(self) -> None:
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
            *sources, target = line.split()
            for source in sources:
                place = self._root / target.strip("/")
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / source, place)

    def give_to_user(self) -> None:
        if self._user is not None:
            for path in (self._root, *self._root.rglob("*")):
                os.chown(path, self._user, self._user)

    def take_variables(self) -> None:
        """What ENV says from its line on."""
        (line,) = re.findall(r"^ENV (.+)$", DOCKERFILE, re.MULTILINE)
        for name, value in re.findall(r"(\w+)=(\S+)", self._inside(line)):
            self._environment[name] = value.replace("$PATH", self._environment["PATH"])

    def run(self, line: str) -> str:
        done = subprocess.run(
            ["/bin/sh", "-c", self._inside(line)],
            cwd=self._root / "results",
            env=self._environment,
            user=self._user,
            group=self._user,
            extra_groups=None if self._user is None else [],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    def _inside(self, line: str) -> str:
        return FOLDERS.sub(lambda found: f"{self._root}/{found[1]}", line)


@pytest.fixture
def image() -> Iterator[Image]:
    root = Path(tempfile.mkdtemp(prefix="kvray-image-"))
    root.chmod(0o755)
    yield Image(root)
    shutil.rmtree(root)


@pytest.mark.timeout(900)
def test_the_steps_of_the_image_leave_a_kvray_that_answers_and_is_not_root(image: Image) -> None:
    image.copy_sources()
    image.give_to_user()
    steps = [line for line in re.findall(r"^RUN (.+)$", DOCKERFILE, re.MULTILINE) if "pip" in line]
    assert len(steps) == 2
    for step in steps:
        image.run(step)
    image.take_variables()
    (entry,) = (json.loads(line) for line in re.findall(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.MULTILINE))
    assert "tune" in image.run(f"{entry[0]} --help")
    preview = image.run(f"{entry[0]} tune fake:x --engine fake --context 16 --output-len 4 --dry-run")
    assert "dynamic/sdpa" in preview
    assert "ray, version 2." in image.run("ray --version")
    assert image.run("id -u").strip() != "0"
    assert "True" in image.run("python -c 'import torch; print(torch.rand(1).item() < 1)'")
