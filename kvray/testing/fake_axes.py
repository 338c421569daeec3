"""What the fake engine lets one choose, and how fast that makes it: beside the axes of all engines one of each kind."""

from __future__ import annotations

import math
from collections.abc import Mapping

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, CompileMode, DeviceType, DType, ParamValue
from kvray.space.axis import Axis, AxisKind, AxisRequest, AxisValue, flag_axis, number_axis
from kvray.space.constraints import SpaceFacts
from kvray.space.menu import shared_axis
from kvray.workload import WorkloadProfile

BEST_TILE = 64
MOST_TILE = 65536
_NEEDS_GPU = "needs a GPU"
_LAYOUTS: Mapping[str, float] = {"rows": 1.0, "columns": 0.95, "blocks": 0.9}
_SPEED: Mapping[str, float] = {
    "static": 0.8,
    "dynamic": 1.0,
    "eager": 1.6,
    "sdpa": 1.0,
    "sdpa_flash": 0.9,
    "sdpa_efficient": 1.2,
    "sdpa_math": 1.4,
    "sdpa_cudnn": 1.1,
    "float32": 1.5,
    "float16": 1.0,
    "bfloat16": 0.9,
}


def axes(device: DeviceType) -> tuple[Axis, ...]:
    """Those that engines share, and one of each kind: none of its own is in the default space."""
    compiles = (CompileMode.OFF, CompileMode.DEFAULT)
    return (
        shared_axis("cache", (AxisValue(value=cache.value) for cache in CacheStrategy if cache in _SPEED)),
        shared_axis("attention", (AxisValue(value=one.value) for one in AttentionBackend if one in _SPEED)),
        shared_axis("dtype", (AxisValue(value=dtype.value) for dtype in DType)),
        shared_axis("compile", (AxisValue(value=mode.value) for mode in compiles)),
        number_axis(
            "tile",
            "tile size",
            unit="tokens",
            most=MOST_TILE,
            aliases={"auto": None},
            canonical=_tile_within_cells,
            on_request=f"fastest at {BEST_TILE}",
        ),
        flag_axis("fused", "fused kernel", default=False, on_request="made up"),
        Axis(
            name="layout",
            title="memory layout",
            kind=AxisKind.CHOICE,
            values=(
                AxisValue(value="rows"),
                AxisValue(value="columns", on_request="made up"),
                AxisValue(value="blocks", obstacle=_NEEDS_GPU if device is DeviceType.CPU else None),
            ),
            default="rows",
            canonical=_layout_of_static_caches,
        ),
    )


def speed_factor(candidate: Candidate) -> float:
    """How long everything takes, by what a candidate chooses: 1 is plain. Four GPUs are twice as fast as one."""
    factor = _SPEED[candidate.cache] * _SPEED[candidate.attention] * _SPEED[candidate.dtype]
    factor /= math.sqrt(candidate.parallelism)
    settings = dict(candidate.settings)
    factor *= tile_factor(candidate)
    if settings.get("fused"):
        factor *= 0.85
    return factor * _LAYOUTS[str(settings.get("layout", "rows"))]


def tile_factor(candidate: Candidate) -> float:
    """How long everything takes by the tile alone: 1 where none is chosen."""
    tile = dict(candidate.settings).get("tile")
    return 0.7 + 0.05 * abs(math.log2(float(tile) / BEST_TILE)) if tile else 1.0


def kernel_on_device(candidate: Candidate, facts: SpaceFacts) -> str | None:
    """The fake runs on a CPU what PyTorch runs there."""
    if facts.device is DeviceType.CPU and candidate.attention in (
        AttentionBackend.SDPA_EFFICIENT,
        AttentionBackend.SDPA_CUDNN,
    ):
        return f"PyTorch has no {candidate.attention.removeprefix('sdpa_')} attention kernel for the CPU"
    return None


def _tile_within_cells(value: ParamValue, candidate: Candidate, profile: WorkloadProfile) -> AxisRequest:
    """A tile that is longer than the longest cell is as long as that cell."""
    cells = profile.cells(candidate.batch_size, rung=2)
    return min(int(value), max(cell.context_tokens + cell.output_tokens for cell in cells))


def _layout_of_static_caches(value: ParamValue, candidate: Candidate, profile: WorkloadProfile) -> AxisRequest:
    """A cache that grows has one layout only."""
    del profile
    return value if candidate.cache.has_fixed_size else None
