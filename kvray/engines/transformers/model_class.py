"""Which class of Transformers a model is of, and what attention that class picks when none is asked for.

The one source for describing a model, loading it and printing the code that loads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvray.candidate import AttentionBackend, AttentionChoice
from kvray.errors import InvalidValueError

CAUSAL_LM = "AutoModelForCausalLM"
IMAGE_TEXT_TO_TEXT = "AutoModelForImageTextToText"
"""Loads models that take images too; they are used with text alone."""
MULTIMODAL_LM = "AutoModelForMultimodalLM"
"""Loads those that take sound instead."""
LOADERS = (CAUSAL_LM, IMAGE_TEXT_TO_TEXT, MULTIMODAL_LM)

SUPPORT_FLAGS = {
    "_supports_sdpa": (
        AttentionBackend.SDPA,
        AttentionBackend.SDPA_FLASH,
        AttentionBackend.SDPA_EFFICIENT,
        AttentionBackend.SDPA_MATH,
        AttentionBackend.SDPA_CUDNN,
    ),
    "_supports_flash_attn": (AttentionBackend.FLASH_ATTENTION_2, AttentionBackend.FLASH_ATTENTION_3),
    "_supports_flex_attn": (AttentionBackend.FLEX_ATTENTION,),
    "_supports_attention_backend": (AttentionBackend.XFORMERS,),
}
"""Attributes of a model's class by which Transformers refuses an attention implementation."""


def architecture_of(config: Any) -> str:
    """The name of the model's class: the one that its config says, where that writes text, else the one that its type
    has; the type itself where there is none."""
    named = [str(one) for one in getattr(config, "architectures", None) or ()]
    mappings = classes_by_type().values()
    if named and (getattr(config, "auto_map", None) or any(named[0] in mapping.values() for mapping in mappings)):
        return named[0]
    by_type = next((mapping[config.model_type] for mapping in mappings if config.model_type in mapping), None)
    return str(by_type or (named or [config.model_type])[0])


def auto_class_name(architecture: str) -> str:
    """The `AutoModel…` class that loads a model of `architecture` (see `architecture_of`): that for text wherever there
    is one. Imports no torch."""
    mappings = classes_by_type()
    types = {kind for mapping in mappings.values() for kind, name in mapping.items() if architecture in (kind, name)}
    return next((name for name, mapping in mappings.items() if types & mapping.keys()), CAUSAL_LM)


def classes_by_type() -> dict[str, dict[str, str]]:
    """For each loader, in the order in which they are preferred, the model's class by the model's type."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    )

    return {
        CAUSAL_LM: dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        IMAGE_TEXT_TO_TEXT: dict(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
        MULTIMODAL_LM: dict(MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES),
    }


def model_class(config: Any, folder: Path, *, trust_remote_code: bool) -> type | None:
    """The class that the library makes a model of; `None` if it is the model's own and its code is not trusted.

    Imports torch, and the model's own code where that is trusted.
    """
    import transformers
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    name = auto_class_name(architecture_of(config))
    own = (getattr(config, "auto_map", None) or {}).get(name)
    if own is not None and trust_remote_code:
        loaded: type = get_class_from_dynamic_module(own, folder)
        return loaded
    known = getattr(transformers, name)._model_mapping
    if type(config) not in known:
        return None
    found = known[type(config)]
    classes: tuple[type, ...] = tuple(found) if isinstance(found, list | tuple) else (found,)
    return next((one for one in classes if one.__name__ == architecture_of(config)), classes[0])


def missing_attentions(found: type | None) -> tuple[AttentionBackend, ...]:
    """What the class has no code for; nothing is said of a class that is not known."""
    if found is None:
        return ()
    return tuple(
        one for flag, attentions in SUPPORT_FLAGS.items() if not getattr(found, flag, True) for one in attentions
    )


def named_attention(config: Any) -> AttentionChoice | None:
    """The attention that config.json asks for, as few do, and as `output_attentions` there does.

    Raises:
        ValueError: it is none that there is.
    """
    named = getattr(config, "_attn_implementation", None)
    if named is None:
        return None
    try:
        return AttentionChoice.parse(str(named))
    except InvalidValueError as error:
        raise ValueError(f"attn_implementation: {error}") from error
