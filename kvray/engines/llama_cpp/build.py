"""What the installed `llama-cpp-python` was built with, told by its files: nothing is imported."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

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


@functools.cache
def installed_build() -> Build | None:
    """The build of this interpreter's package; `None` where it is not installed."""
    spec = find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        return None
    folders = [Path(place) / "lib" for place in spec.submodule_search_locations]
    libraries = [path for folder in folders for path in folder.glob("*ggml*")]
    return Build(
        has_gpu=any(backend in path.name for path in libraries for backend in _GPU_BACKENDS),
        has_openmp=any(_needs_openmp(path) for path in libraries if "cpu" in path.name),
    )


def _needs_openmp(library: Path) -> bool:
    """Whether a library names OpenMP's runtime among those that it is linked with."""
    content = library.read_bytes()
    return any(runtime in content for runtime in (b"libgomp", b"libomp", b"libiomp"))
