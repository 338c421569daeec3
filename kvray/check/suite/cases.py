"""The suite's cases: which configuration is measured with which model, and how far its outputs may stray.

The set is fixed: results are comparable as long as `SUITE_VERSION` is the same. What a machine cannot run is skipped,
with the reason of the engine's own menu.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kvray.candidate import AttentionBackend, CacheChoice, CacheStrategy, Candidate, CompileMode, DType
from kvray.check.suite.models import MODELS, Attention, SuiteModel
from kvray.workload import WorkloadProfile, get_profile

SUITE_VERSION = 1
"""Version of models, cases, workload and fed text together. A record of another version is not comparable."""
SUITE_PROFILE: WorkloadProfile = get_profile("ci-micro").without_quality_limit()
"""One cell of 512 prompt tokens and 32 of an answer."""
TOLD_TOKENS = 64
"""Tokens of a text whose log-probabilities are compared."""
_PIECE = 128
_SINKS, _WINDOW = 4, 128


class Arithmetic(enum.StrEnum):
    """In how many bits a case computes and keeps what it has read, which bounds how far its outputs move when only the
    order of operations changes."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    QUANTIZED = "quantized"


TOLERANCES: Mapping[Arithmetic, float] = {
    Arithmetic.FLOAT32: 1e-3,
    Arithmetic.FLOAT16: 0.05,
    Arithmetic.BFLOAT16: 0.5,
    Arithmetic.QUANTIZED: 0.25,
}
"""How far (nats) a log-probability may move between versions of a library, or between machines. Each is several times
what other instructions of the same CPU and other numbers of threads were seen to change (docs/suite.md)."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One configuration of one model.

    Attributes:
        name: e.g. `transformers/gqa/static`: engine, model, and what is tried.
        is_quick: whether it is in the reduced set (`--quick`).
    """

    name: str
    attention: Attention
    candidate: Candidate
    arithmetic: Arithmetic
    is_quick: bool = False

    @property
    def engine(self) -> str:
        """Name of the engine that runs it."""
        return self.candidate.engine

    @property
    def model(self) -> SuiteModel:
        """The model that it runs."""
        return MODELS[self.attention]

    @property
    def tolerance(self) -> float:
        """Nats, see `TOLERANCES`."""
        return TOLERANCES[self.arithmetic]


def suite_cases() -> tuple[Case, ...]:
    """All cases of all engines, in a fixed order."""
    return (*_transformers(), *_llama_cpp(), *_vllm())


def _transformers() -> Iterator[Case]:
    for attention in Attention:
        yield _of_transformers("dynamic", attention, is_quick=True)
        yield _of_transformers("static", attention, cache="static", is_quick=attention is Attention.GROUPED)
    yield _of_transformers("batch4", batch_size=4)
    yield _of_transformers("static-batch4", cache="static", batch_size=4)
    yield _of_transformers("pieces", prefill_chunk=_PIECE)
    yield _of_transformers("pieces", Attention.SLIDING, prefill_chunk=_PIECE)
    yield _of_transformers("bfloat16", dtype=DType.BFLOAT16)
    for backend in _PLAIN_BACKENDS:
        yield _of_transformers(backend.value, backend=backend)
    for backend in _HALF_BACKENDS:
        yield _of_transformers(backend.value, backend=backend, dtype=DType.BFLOAT16)
    yield _of_transformers("window", cache=f"sliding_window(sinks={_SINKS},window={_WINDOW})", is_quick=True)
    yield _of_transformers("offloaded", cache="offloaded")
    yield _of_transformers("offloaded-static", cache="offloaded_static")
    yield _of_transformers("paged", cache="paged")
    for name, settings in _QUANTIZED.items():
        yield _of_transformers(name, cache=f"quantized({settings})", is_quick=name == "quanto-4")


_PLAIN_BACKENDS = (AttentionBackend.EAGER, AttentionBackend.SDPA_MATH, AttentionBackend.SDPA_EFFICIENT)
_HALF_BACKENDS = (
    AttentionBackend.SDPA_FLASH,
    AttentionBackend.SDPA_CUDNN,
    AttentionBackend.FLASH_ATTENTION_2,
    AttentionBackend.FLASH_ATTENTION_3,
    AttentionBackend.XFORMERS,
)
"""Those that take 16-bit types only on a GPU."""
_QUANTIZED = {
    "quanto-4": "backend=quanto,nbits=4",
    "quanto-2": "backend=quanto,nbits=2",
    "hqq-8": "backend=hqq,nbits=8",
    "hqq-4": "backend=hqq,nbits=4",
    "hqq-2": "backend=hqq,nbits=2",
    "fp8": "backend=fp8",
}


def _of_transformers(
    what: str,
    attention: Attention = Attention.GROUPED,
    *,
    cache: str = "dynamic",
    backend: AttentionBackend = AttentionBackend.SDPA,
    dtype: DType = DType.FLOAT32,
    is_quick: bool = False,
    **more: Any,
) -> Case:
    choice = CacheChoice.parse(cache)
    is_rounded = choice.strategy is CacheStrategy.QUANTIZED
    return Case(
        name=f"transformers/{attention}/{what}",
        attention=attention,
        candidate=Candidate(
            engine="transformers",
            cache=choice.strategy,
            cache_params=choice.params,
            attention=backend,
            dtype=dtype,
            **more,
        ),
        arithmetic=Arithmetic.QUANTIZED if is_rounded else Arithmetic(dtype.value),
        is_quick=is_quick,
    )


def _llama_cpp() -> Iterator[Case]:
    for attention in Attention:
        yield _of_llama_cpp("flash", attention, is_quick=True)
    yield _of_llama_cpp("eager", backend=AttentionBackend.EAGER)
    yield _of_llama_cpp("batch4", batch_size=4)
    yield _of_llama_cpp("unified4", batch_size=4, settings={"kv_unified": True})
    yield _of_llama_cpp("pieces", settings={"n_ubatch": _PIECE})
    yield _of_llama_cpp("swa-full", Attention.SLIDING, settings={"swa_full": True})
    for kind in ("f32", "bf16"):
        yield _of_llama_cpp(kind, backend=AttentionBackend.EAGER, settings={"type_k": kind, "type_v": kind})
    for kind in ("q8_0", "q5_1", "q5_0", "iq4_nl", "q4_1", "q4_0"):
        yield _of_llama_cpp(kind, settings={"type_k": kind, "type_v": kind}, is_quick=kind == "q8_0")


_LLAMA_ARITHMETIC = {"f32": Arithmetic.FLOAT32, "f16": Arithmetic.FLOAT16, "bf16": Arithmetic.BFLOAT16}
"""By the type of keys and values. The weights are float32."""


def _of_llama_cpp(
    what: str,
    attention: Attention = Attention.GROUPED,
    *,
    backend: AttentionBackend = AttentionBackend.FLASH,
    batch_size: int = 1,
    settings: Mapping[str, Any] | None = None,
    is_quick: bool = False,
) -> Case:
    chosen = dict(settings or {})
    arithmetic = _LLAMA_ARITHMETIC.get(str(chosen.get("type_k", "f16")), Arithmetic.QUANTIZED)
    is_rounded = arithmetic is Arithmetic.QUANTIZED
    return Case(
        name=f"llama_cpp/{attention}/{what}",
        attention=attention,
        candidate=Candidate(
            engine="llama_cpp",
            cache=CacheStrategy.QUANTIZED if is_rounded else CacheStrategy.STATIC,
            attention=backend,
            dtype=DType.FLOAT32,
            batch_size=batch_size,
            settings=tuple(chosen.items()),
        ),
        arithmetic=arithmetic,
        is_quick=is_quick,
    )


def _vllm() -> Iterator[Case]:
    for attention in Attention:
        yield _of_vllm("paged", attention, is_quick=attention is Attention.GROUPED)
    yield _of_vllm("batch4", batch_size=4)
    yield _of_vllm("fp8", settings={"kv_cache_dtype": "fp8"})


def _of_vllm(
    what: str,
    attention: Attention = Attention.GROUPED,
    *,
    batch_size: int = 1,
    settings: Mapping[str, Any] | None = None,
    is_quick: bool = False,
) -> Case:
    return Case(
        name=f"vllm/{attention}/{what}",
        attention=attention,
        candidate=Candidate(
            engine="vllm",
            cache=CacheStrategy.QUANTIZED if settings else CacheStrategy.PAGED,
            attention=AttentionBackend.FLASH,
            dtype=DType.BFLOAT16,
            compile=CompileMode.OFF,  # it would take longer than all else together
            batch_size=batch_size,
            settings=tuple((settings or {}).items()),
        ),
        arithmetic=Arithmetic.QUANTIZED if settings else Arithmetic.BFLOAT16,
        is_quick=is_quick,
    )
