"""What llama.cpp's log tells of a model and a context: buffers, keys and values, graph splits. Pure parsing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_MIB = 1024 * 1024
_NUMBER = r"\s*(\d+(?:\.\d+)?)"
_CACHE = re.compile(
    rf"size ={_NUMBER} MiB \(\s*(\d+) cells,\s*(\d+) layers,\s*(\d+)/(\d+) seqs\), "
    rf"K \((\w+)\):{_NUMBER} MiB, V \((\w+)\):{_NUMBER} MiB"
)
_BUFFER = re.compile(rf"^\w+:\s+(\S+)\s+(model|KV|RS|output|compute) buffer size ={_NUMBER} MiB")
_MEMORY_CLASS = re.compile(r"^(llama_(?:kv_cache|memory)\w*):")
_SPLITS = re.compile(r"splits = (\d+)(?: / (\d+))?")
_ROTATED = re.compile(r"attn_rot_([kv]) = 1")
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")


_REARRANGED = ("AMX", "CPU_KLEIDIAI", "CPU_REPACK", "CPU_RISCV64_SPACEMIT")
"""Buffers of weights in another order than the file's."""


@dataclass(frozen=True, kw_only=True)
class CachePart:
    """Layers whose keys and values lie in tensors of one length. A model with a sliding window has two parts.

    Attributes:
        cells: tokens that each stream holds.
        streams: buffers of that many cells: one for each sequence, or one for all.
        k_mib, v_mib: rounded to hundredths, as the log has them.
    """

    cells: int
    layers: int
    sequences: int
    streams: int
    type_k: str
    type_v: str
    k_mib: float
    v_mib: float


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """Memory on a device, e.g. `CPU`, `CUDA0` or `CPU_REPACK`, by what it is for: model, KV, RS, output, compute."""

    device: str
    use: str
    mib: float

    @property
    def is_on_gpu(self) -> bool:
        """Whether it lies in a device's own memory."""
        return not self.device.startswith(("AMX", "CPU")) and not self.device.endswith("_Host")

    @property
    def is_rearranged(self) -> bool:
        """Whether it holds weights that were rearranged for the CPU's instructions."""
        return self.device in _REARRANGED


@dataclass(frozen=True, kw_only=True)
class Said:
    """What the log tells of one context.

    Attributes:
        memory_classes: classes of the objects that hold keys and values or states, in the order of their making.
        splits_prefill, splits_decode: parts into which the graph falls, one for each change of device.
        offloaded: layers on the GPU, and layers in all; `None` where the build has no GPU.
        rotated: `k`, `v` or both: what is rotated before it is quantised, which makes it lose less.
    """

    parts: tuple[CachePart, ...]
    buffers: tuple[Buffer, ...]
    memory_classes: tuple[str, ...]
    splits_prefill: int | None
    splits_decode: int | None
    offloaded: tuple[int, int] | None
    rotated: str

    @classmethod
    def of(cls, lines: Sequence[str]) -> Said:
        """What `lines` tell."""
        splits, offloaded = _last(_SPLITS, lines), _last(_OFFLOADED, lines)
        return cls(
            parts=tuple(part for line in lines if (part := _cache_part(line))),
            buffers=tuple(buffer for line in lines if (buffer := _buffer(line))),
            memory_classes=tuple(dict.fromkeys(found[1] for line in lines if (found := _MEMORY_CLASS.match(line)))),
            splits_prefill=None if splits is None else int(splits[1]),
            splits_decode=None if splits is None else int(splits[2] or splits[1]),
            offloaded=None if offloaded is None else (int(offloaded[1]), int(offloaded[2])),
            rotated="".join(sorted({found[1] for line in lines if (found := _ROTATED.search(line))})),
        )

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys, values and states, from figures that are rounded to hundredths of a MiB."""
        return round(sum(buffer.mib for buffer in self.buffers if buffer.use in ("KV", "RS")) * _MIB)

    def mib_by_device(self, use: str) -> str:
        """Buffers of one use, e.g. `CPU 16.88, CUDA0 8.00`."""
        return ", ".join(f"{one.device} {one.mib:.2f}" for one in self.buffers if one.use == use)

    @property
    def gpu_mib(self) -> float:
        """All that lies in GPU memory."""
        return sum(buffer.mib for buffer in self.buffers if buffer.is_on_gpu)

    @property
    def host_mib(self) -> float:
        """What a context has in host memory beside the weights."""
        return sum(one.mib for one in self.buffers if not one.is_on_gpu and one.use != "model")

    @property
    def cache_class(self) -> str | None:
        """The outermost class: a cache for sliding windows is made of two plain ones."""
        made = self.memory_classes
        has_states = "llama_memory_recurrent" in made
        if has_states and len(made) > 1:
            return " + ".join(made)
        return max(made, key=len, default=None)

    @property
    def cache_layers(self) -> str | None:
        """E.g. `30 layers × 768 cells`, or two of these."""
        return (
            " + ".join(
                f"{part.layers} layers × {part.cells} cells" + (f" × {part.streams}" if part.streams > 1 else "")
                for part in self.parts
            )
            or None
        )


def _cache_part(line: str) -> CachePart | None:
    found = _CACHE.search(line)
    if found is None:
        return None
    _, cells, layers, sequences, streams, type_k, k_mib, type_v, v_mib = found.groups()
    return CachePart(
        cells=int(cells),
        layers=int(layers),
        sequences=int(sequences),
        streams=int(streams),
        type_k=type_k,
        type_v=type_v,
        k_mib=float(k_mib),
        v_mib=float(v_mib),
    )


def _buffer(line: str) -> Buffer | None:
    found = _BUFFER.match(line)
    return None if found is None else Buffer(device=found[1], use=found[2], mib=float(found[3]))


def _last(pattern: re.Pattern[str], lines: Sequence[str]) -> re.Match[str] | None:
    return next((found for line in reversed(lines) if (found := pattern.search(line))), None)
