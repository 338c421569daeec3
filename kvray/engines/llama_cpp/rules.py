"""What cannot be combined in llama.cpp, or would not be what it says, each with the reason that a user reads."""

from __future__ import annotations

from collections.abc import Callable

from kvray.candidate import AttentionBackend, Candidate, DeviceType
from kvray.engines.base import ModelInfo
from kvray.engines.llama_cpp.axes import GPU_AXES, cache_of_types
from kvray.engines.llama_cpp.settings import BLOCK_ELEMENTS, DEFAULT_TYPE, PLAIN_TYPES, SplitMode
from kvray.engines.llama_cpp.shapes import LATENT
from kvray.space.constraints import Constraint, SpaceFacts


def rules(model: ModelInfo) -> tuple[Constraint, ...]:
    """The rules for one model."""
    return (
        Constraint(name="cache-settings", check=_ignoring_facts(_no_cache_settings)),
        Constraint(name="cache-types", check=_ignoring_facts(_cache_agrees_with_types)),
        Constraint(name="quantized-values", check=_ignoring_facts(_quantized_values_need_flash)),
        Constraint(name="model-attention", check=_ignoring_facts(lambda one: _attention_of_model(one, model))),
        Constraint(name="block-divides-head", check=_ignoring_facts(lambda one: _block_divides_head(one, model))),
        Constraint(name="one-latent", check=_ignoring_facts(lambda one: _one_type_of_latents(one, model))),
        Constraint(name="window-of-model", check=_ignoring_facts(lambda one: _window_of_model(one, model))),
        Constraint(name="gpu", check=_needs_gpu),
        Constraint(name="split-needs-flash", check=_ignoring_facts(_split_needs_flash)),
    )


def _ignoring_facts(check: Callable[[Candidate], str | None]) -> Callable[[Candidate, SpaceFacts], str | None]:
    return lambda candidate, facts: check(candidate)  # noqa: ARG005


def _no_cache_settings(candidate: Candidate) -> str | None:
    if not candidate.cache_params:
        return None
    return "llama.cpp's caches have no settings: --set type_k=… and --set type_v=… choose the types"


def _cache_agrees_with_types(candidate: Candidate) -> str | None:
    fitting = cache_of_types(candidate)
    if candidate.cache is fitting:
        return None
    types = " and ".join(f"{name} {_type(candidate, name)}" for name in ("type_k", "type_v"))
    return f"{types} make a {fitting} cache: --set type_k=q8_0, for example, makes a quantized one"


def _quantized_values_need_flash(candidate: Candidate) -> str | None:
    kind = _type(candidate, "type_v")
    if kind in PLAIN_TYPES or candidate.attention is AttentionBackend.FLASH:
        return None
    return f"llama.cpp keeps values as {kind} with flash attention only"


def _attention_of_model(candidate: Candidate, model: ModelInfo) -> str | None:
    if candidate.attention in model.missing_attentions:
        return f"llama.cpp turns {candidate.attention} attention off for {model.architecture}"
    return None


def _block_divides_head(candidate: Candidate, model: ModelInfo) -> str | None:
    layers = model.shape.layers if model.shape is not None else ()
    for name, sizes in (
        ("type_k", {layer.key_dim for layer in layers}),
        ("type_v", {layer.value_dim for layer in layers}),
    ):
        kind = _type(candidate, name)
        odd = [size for size in sorted(sizes) if size % BLOCK_ELEMENTS]
        if kind not in PLAIN_TYPES and odd:
            return f"a block of {kind} has {BLOCK_ELEMENTS} elements, which do not divide a head of {odd[0]}"
    return None


def _one_type_of_latents(candidate: Candidate, model: ModelInfo) -> str | None:
    if LATENT not in model.layer_kinds or _type(candidate, "type_k") == _type(candidate, "type_v"):
        return None
    return "the model keeps one latent for keys and values: type_k and type_v must be the same"


def _window_of_model(candidate: Candidate, model: ModelInfo) -> str | None:
    if not candidate.setting("swa_full") or not model.layer_kinds or "sliding_attention" in model.layer_kinds:
        return None
    return "the model has no layer with a sliding window: swa_full changes nothing"


def _needs_gpu(candidate: Candidate, facts: SpaceFacts) -> str | None:
    chosen = [name for name in GPU_AXES if candidate.setting(name) is not None]
    return f"{chosen[0]} needs a GPU" if chosen and facts.device is DeviceType.CPU else None


def _split_needs_flash(candidate: Candidate) -> str | None:
    if candidate.setting("split_mode") != SplitMode.TENSOR or candidate.attention is AttentionBackend.FLASH:
        return None
    return "llama.cpp splits tensors over GPUs with flash attention only"


def _type(candidate: Candidate, name: str) -> str:
    return str(candidate.setting(name) or DEFAULT_TYPE)
