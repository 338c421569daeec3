"""What really ran, and each difference from what was asked for, one sentence each. Pure comparison."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from kvray.candidate import ParamValue
from kvray.engines.base import Observed
from kvray.engines.llama_cpp.binding import Build
from kvray.engines.llama_cpp.graph import FUSED, Step
from kvray.engines.llama_cpp.said import CachePart, Said
from kvray.engines.llama_cpp.settings import ALL_LAYERS, ContextSettings, padded

_ROUNDING_MIB = 0.006
"""The log rounds to hundredths."""
_MIB = 1024 * 1024
_TYPE_BYTES = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "iq4_nl": (32, 18),
    "q5_0": (32, 22),
    "q5_1": (32, 24),
}
"""Elements and bytes of a block of each type."""


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Elements of one token's keys and of its values in a layer; the same in all layers."""

    keys: int
    values: int


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Layers of the model, and how many of them have their weights on a GPU."""

    all: int
    on_gpu: int


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a context shows.

    Attributes:
        sizes: what it says of itself, by the names of `ContextSettings`.
        window: tokens that a layer with a sliding window sees; 0: the model has none.
        heads: `None` where layers are unlike, so that there is no formula.
    """

    said: Said
    sizes: Mapping[str, int]
    window: int
    heads: Heads | None


def observed_context(asked: ContextSettings, evidence: Evidence) -> Observed:
    """What a context uses as far as it shows without a look into the graph."""
    said = evidence.said
    return Observed(
        cache_class=said.cache_class,
        cache_layers=said.cache_layers,
        kv_dtype=_kv_dtype(said),
        threads=evidence.sizes["threads"],
        substitutions=tuple(_context_differences(asked, evidence)),
    )


def resolved(evidence: Evidence, build: Build) -> dict[str, ParamValue]:
    """What llama.cpp made of the settings, and how it was built."""
    said = evidence.said
    told: dict[str, ParamValue | None] = {
        "llama_cpp": build.version,
        "build": build.system_info.strip(" |"),
        "build_leaves_out": ", ".join(build.left_out) or "nothing",
        **evidence.sizes,
        **{f"{use.lower()}_mib": said.mib_by_device(use) for use in ("model", "KV", "RS", "output", "compute")},
        "rotated_before_quantising": said.rotated,
        "splits_prefill": said.splits_prefill,
        "splits_decode": said.splits_decode,
        "layers_on_gpu": None if said.offloaded is None else said.offloaded[0],
    }
    return {name: value for name, value in told.items() if value not in (None, "")}


def observed_attention(asked: ContextSettings, step: Step, seen: Mapping[str, int], layers: Layers) -> Observed:
    """What the graphs of `step` show: `seen` are attention operators with their devices, and how many of each."""
    kernel = " + ".join(seen) or None
    differences = tuple(_attention_differences(asked, step, seen, layers))
    if step is Step.PREFILL:
        return Observed(kernel_prefill=kernel, substitutions=differences)
    return Observed(kernel_decode=kernel, substitutions=differences)


def observed_tokens(held: Collection[int], fed: int) -> Observed:
    """Whether each sequence's cache has taken the tokens that were fed: `held` are the numbers of them."""
    if set(held) == {fed}:
        return Observed()
    return Observed(substitutions=(f"fed {fed} tokens to each sequence, the cache has taken {_listed(sorted(held))}",))


def layers_on_gpu(said: Said, layers: int) -> Layers:
    """Where the weights of the model's `layers` are. The first that llama.cpp moves is the output layer."""
    moved = 0 if said.offloaded is None else said.offloaded[0]
    return Layers(all=layers, on_gpu=min(layers, max(0, moved - 1)))


def expected_cells(asked: ContextSettings, window: int) -> tuple[int, ...]:
    """Cells of the parts of the cache. Source: `llama_kv_cache_iswa` of llama.cpp."""
    whole = asked.n_ctx if asked.kv_unified else asked.n_ctx // asked.n_seq_max
    if window == 0:
        return (whole,)
    sequences = asked.n_seq_max if asked.kv_unified else 1
    windowed = padded(min(whole, window * sequences + asked.n_ubatch))
    return whole, whole if asked.swa_full else windowed


def part_bytes(part: CachePart, heads: Heads) -> tuple[int, int]:
    """Bytes of keys and of values in `part`."""

    def held(type_name: str, elements: int) -> int:
        block, block_bytes = _TYPE_BYTES[type_name]
        return part.layers * part.cells * part.streams * (elements // block) * block_bytes

    return held(part.type_k, heads.keys), held(part.type_v, heads.values)


def cache_bytes(evidence: Evidence) -> int:
    """Bytes of the cache: exact where there is a formula, else from the log's rounded figures."""
    said = evidence.said
    has_states = any(buffer.use == "RS" for buffer in said.buffers)
    if evidence.heads is None or has_states or not said.parts:
        return said.cache_bytes
    return sum(sum(part_bytes(part, evidence.heads)) for part in said.parts)


def _context_differences(asked: ContextSettings, evidence: Evidence) -> Iterator[str]:
    for name, has in evidence.sizes.items():
        wished = getattr(asked, name)
        if has != wished:
            yield f"asked for {name} {wished}, llama.cpp has {has}"
    said = evidence.said
    types = {(part.type_k, part.type_v) for part in said.parts}
    if types - {(asked.type_k, asked.type_v)}:
        yield f"asked for keys in {asked.type_k} and values in {asked.type_v}, the cache has {_kv_dtype(said)}"
    yield from _size_differences(asked, evidence)
    yield from _placement_differences(asked, said)


def _size_differences(asked: ContextSettings, evidence: Evidence) -> Iterator[str]:
    parts, expected = evidence.said.parts, expected_cells(asked, evidence.window)
    cells = tuple(part.cells for part in parts)
    if parts and not set(cells) <= set(expected):
        yield f"asked for a cache of {_listed(expected)} cells, it has {_listed(cells)}"
    if any(part.streams != (1 if asked.kv_unified else asked.n_seq_max) for part in parts):
        shared = "one buffer for all sequences" if asked.kv_unified else "a buffer for each sequence"
        yield f"asked for {shared}, the cache has {_listed(part.streams for part in parts)}"
    for part in parts if evidence.heads is not None else ():
        assert evidence.heads is not None
        wished = sum(part_bytes(part, evidence.heads)) / _MIB
        if abs(wished - part.k_mib - part.v_mib) > 2 * _ROUNDING_MIB:
            yield f"{part.layers} layers hold {part.k_mib + part.v_mib:.2f} MiB where {wished:.2f} MiB were expected"


def _placement_differences(asked: ContextSettings, said: Said) -> Iterator[str]:
    if not asked.repack and any(buffer.is_rearranged for buffer in said.buffers):
        yield "asked for weights as the file has them, they were rearranged"
    if asked.n_gpu_layers == 0:
        return
    if said.offloaded is None:
        yield "asked for layers on the GPU, this build of llama.cpp has none"
        return
    there, all_layers = said.offloaded
    wished = all_layers if asked.n_gpu_layers == ALL_LAYERS else min(asked.n_gpu_layers, all_layers)
    if there != wished:
        yield f"asked for {wished} layers on the GPU, {there} of {all_layers} are there"


def _attention_differences(
    asked: ContextSettings, step: Step, seen: Mapping[str, int], layers: Layers
) -> Iterator[str]:
    ran, all_of_them = " + ".join(seen), sum(seen.values())
    fused = sum(count for name, count in seen.items() if name.startswith(FUSED))
    if asked.flash_attention and fused < all_of_them:
        yield f"asked for flash attention, {step.value} ran {ran}"
    if not asked.flash_attention and fused:
        yield f"asked for no flash attention, {step.value} ran {ran}"
    on_gpu = sum(count for name, count in seen.items() if not name.endswith(("(CPU)", "_Host)")))
    wished = layers.on_gpu if asked.offload_kqv else 0
    if on_gpu * layers.all < wished * all_of_them:
        yield f"asked for attention on the GPU in {wished} of {layers.all} layers, {step.value} ran {ran}"


def _kv_dtype(said: Said) -> str | None:
    """E.g. `f16`, or `K q8_0, V f16`."""
    types = dict.fromkeys((part.type_k, part.type_v) for part in said.parts)
    return " | ".join(k if k == v else f"K {k}, V {v}" for k, v in types) or None


def _listed(values: Iterable[int]) -> str:
    return " and ".join(f"{value}" for value in dict.fromkeys(values))
