"""What the installed `llama-cpp-python` was built with, told by its files: nothing is imported."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from kvray.extras import pip_command

TRIED_VERSIONS = ("0.3.36",)
"""Versions of llama-cpp-python that kvray was tried with; its structures change from one to the next."""
_GPU_BACKENDS = ("cuda", "hip", "vulkan", "sycl", "metal", "musa", "cann", "opencl")


@dataclass(frozen=True, kw_only=True)
class Build:
    """A build of the library.

    Attributes:
        has_gpu: whether it holds a backend for GPUs.
        has_openmp: whether its CPU backend computes with OpenMP's threads.
    """

    has_gpu: bool
    has_openmp: bool


def gpu_build_command() -> str:
    """What a user types to get a build for a CUDA GPU."""
    command = pip_command("--force-reinstall", "--no-cache-dir", "llama-cpp-python")
    return f"CMAKE_ARGS=-DGGML_CUDA=on {command}"


@functools.cache
def installed_build() -> Build | None:
    """The build of this interpreter's package; `None` where it is not installed."""
    libraries = [path for path in library_files() if "ggml" in path.name]
    if not libraries:
        return None
    return Build(
        has_gpu=any(backend in path.name for path in libraries for backend in _GPU_BACKENDS),
        has_openmp=any(_needs_openmp(path) for path in libraries if "cpu" in path.name),
    )


def knows_architecture(name: str) -> bool | None:
    """Whether the library has a model called `name` among its texts; `None` where it is not installed. It may take
    another text for a model's name, and then says so itself when it loads the file."""
    libraries = [path for path in library_files() if "llama" in path.name]
    if not libraries:
        return None
    return any(f"{name}\0".encode() in path.read_bytes() for path in libraries)


def untried_note() -> str | None:
    """What to say of a version that kvray was not tried with; `None`: it was, or none is installed."""
    try:
        installed = version("llama-cpp-python")
    except PackageNotFoundError:
        return None
    if installed in TRIED_VERSIONS:
        return None
    return f"kvray was not tried with llama-cpp-python {installed}, only with {', '.join(TRIED_VERSIONS)}."


def library_files() -> list[Path]:
    """Files of the package's compiled code."""
    spec = find_spec("llama_cpp")
    places = (spec.submodule_search_locations or ()) if spec is not None else ()
    return [path for place in places for path in sorted((Path(place) / "lib").glob("*")) if path.is_file()]


def _needs_openmp(library: Path) -> bool:
    """Whether a library names OpenMP's runtime among those that it is linked with."""
    content = library.read_bytes()
    return any(runtime in content for runtime in (b"libgomp", b"libomp", b"libiomp"))
