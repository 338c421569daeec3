"""What a model does, seen in a small one of its kind: does it look ahead, take a KV cache, and work on text alone?

The small model has the same class and switches (`small_config`) and random weights. It runs on the CPU in the calling
process, for less than a second, and leaves threads and random numbers there as they were.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kvray.engines.hugging_face.ordinary_ids import ordinary_ids
from kvray.engines.hugging_face.quiet import quiet_library
from kvray.engines.transformers.small_config import small_config
from kvray.errors import sentence_of

_TOKENS, _PREFIX, _NEW = 24, 16, 2
_MOST_PARAMETERS = 50_000_000
_HEADS = (4, 2, 1)
"""Heads of the small model, in the order in which they are tried: fewer where heads are large."""
_LOOKS_AHEAD = 1e-3
"""Change of a prefix's logits when tokens follow, in their standard deviations. Decoders change by up to 1e-5, which is
rounding; encoders by 0.02 or more."""
_OWN_STATES = ("state", "mems", "cache_params", "past_buckets_states")
"""What models that keep something other than keys and values call it."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What trying a small model has shown.

    Attributes:
        objection: why there is no KV cache to choose, as a sentence that goes on from "which"; `None`: nothing shows
            that there is none.
        looks_ahead: whether that is because later tokens change what it makes of earlier ones.
        was_tried: whether the small model wrote text through a cache, so that no objection means that it can.
    """

    objection: str | None = None
    looks_ahead: bool = False
    was_tried: bool = False


def examine(model_class: type, config: Any) -> Finding:
    """Try what models of `config` do.

    Args:
        model_class: the class that the library makes a model of. Its code runs.
    """
    parameters = frozenset(inspect.signature(model_class.forward).parameters)  # type: ignore[attr-defined]
    if "past_key_values" not in parameters and "args" not in parameters:
        named = next((name for name in _OWN_STATES if name in parameters), None)
        if named is not None:
            return Finding(objection=f"keeps a state of its own ({named}) instead of keys and values")
        return Finding(objection=f"keeps no keys and values: {model_class.__name__} takes no past_key_values")
    with quiet_library(), _apart():
        model = _small_model(model_class, config)
        return Finding() if model is None else _tried(model, parameters)


def _small_model(model_class: Any, config: Any) -> Any | None:
    """A small model with random weights; `None` if the config cannot be made small."""
    import torch

    options = {"dtype": torch.float32, "attn_implementation": _attention(model_class)}
    for heads in _HEADS:
        # Anything may go wrong in a model's code when it is given a config that nobody has tried.
        with contextlib.suppress(Exception):
            small = small_config(_own_config(model_class, config), heads=heads)
            with torch.device("meta"):
                parameters = sum(one.numel() for one in model_class._from_config(small, **options).parameters())
            if parameters <= _MOST_PARAMETERS:
                return model_class._from_config(small, **options).eval()
    return None


def _own_config(model_class: Any, config: Any) -> Any:
    """The part of `config` that the class takes: some classes are the text model of a type with several parts."""
    text = config.get_text_config(decoder=True)
    return text if type(text) is model_class.config_class else config


def _attention(model_class: Any) -> str:
    """The library's choice. It matters: masks are made differently for each."""
    return "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"


def _tried(model: Any, parameters: frozenset[str]) -> Finding:
    import torch

    usual = ordinary_ids(model.config)
    prompt = torch.tensor([[usual[(7 * number) % len(usual)] for number in range(_TOKENS)]])
    try:
        change = _change_by_later_tokens(model, prompt)
    except Exception as error:  # noqa: BLE001  (the model's code, as above)
        return Finding(objection=_needs_more(error, parameters))
    if change > _LOOKS_AHEAD:
        words = "looks ahead: what it makes of a token changes with the tokens after it, as in an encoder"
        return Finding(objection=words, looks_ahead=True)
    return _tried_with_cache(model, prompt)


def _change_by_later_tokens(model: Any, prompt: Any) -> float:
    whole, prefix = (model(ids, use_cache=False).logits.float() for ids in (prompt, prompt[:, :_PREFIX]))
    return float((whole[:, :_PREFIX] - prefix).abs().max() / prefix.std())


def _needs_more(error: Exception, parameters: frozenset[str]) -> str | None:
    """An objection where `error` names another input than the text."""
    words = sentence_of(error)
    others = {name for name in parameters if name.startswith(("pixel", "image", "input_features", "audio", "bbox"))}
    return f"does not write from text alone: {words}" if any(name in words for name in others) else None


def _tried_with_cache(model: Any, prompt: Any) -> Finding:
    from transformers import DynamicCache

    try:
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        _generate(model, prompt, past_key_values=cache)
    except Exception as refusal:  # noqa: BLE001  (the model's code, as above)
        with contextlib.suppress(Exception):
            _generate(model, prompt)
            return Finding(objection=f"takes no cache but its own: {sentence_of(refusal).removesuffix('.')}")
        return Finding()
    if not any(getattr(layer, "keys", None) is not None and layer.keys.numel() for layer in cache.layers):
        return Finding(objection="keeps no keys and values in the cache that it is given")
    return Finding(was_tried=True)


def _generate(model: Any, prompt: Any, **cache: Any) -> None:
    import torch

    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=_NEW,
        min_new_tokens=_NEW,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        **cache,
    )


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """One thread, no gradients and random numbers of its own."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(threads)
