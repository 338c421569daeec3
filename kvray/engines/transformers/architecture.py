"""Which models can be tuned, as far as a config tells: decoders that write text from a KV cache. Imports no torch.

What a config does not tell, `behaviour` finds out with a small model of the same kind.
"""

from __future__ import annotations

import re
from typing import Any

from kvray.engines.hugging_face.shapes import KNOWN_TYPES
from kvray.engines.transformers.model_class import classes_by_type
from kvray.errors import ModelError

HINT = "kvray tunes decoder-only models, which write text and keep keys and values of what they have read."
_DECODER_HINT = "If this model was trained as one, its config.json lacks is_decoder: true."
_OTHER_HEADS = re.compile(r"For\w*(Classification|QuestionAnswering|MultipleChoice)$|RewardModel$")
"""Ends of class names whose model judges text and writes none."""


class OtherKindError(ModelError):
    """A model's config says that it is not a decoder with a language model's head. Nothing more has to be tried."""


def refuse_other_kinds(model_id: str, config: Any) -> None:
    """Refuse a model that is not a decoder with a language model's head, where its config says so.

    Raises:
        OtherKindError: with the reason.
    """
    reason = _other_kind(config)
    if reason is not None:
        refusal = not_tunable(model_id, config, reason)
        raise OtherKindError(refusal.message, hint=refusal.hint)


def check_behaviour(model_id: str, config: Any, model_class: type | None) -> None:
    """Refuse a model that looks ahead, keeps no keys and values or needs more than text. Types that are not known are
    tried, which imports torch.

    Args:
        model_class: what the library makes a model of; `None`: unknown, so nothing is said.

    Raises:
        ModelError: with the reason.
    """
    if model_class is None or is_known_decoder(config):
        return
    from kvray.engines.transformers.behaviour import examine

    finding = examine(model_class, config)
    if finding.objection is not None:
        could_decode = finding.looks_ahead and not getattr(config, "is_decoder", True)
        hint = f"{HINT} {_DECODER_HINT}" if could_decode else HINT
        raise not_tunable(model_id, config, finding.objection, hint=hint)


def not_tunable(model_id: str, config: Any, reason: str, *, hint: str = HINT) -> ModelError:
    """The error for a model that cannot be tuned; `reason` goes on from the model as its subject."""
    return ModelError(f"Model {model_id!r} is of type {config.model_type!r}, which {reason}.", hint=hint)


def is_known_decoder(config: Any) -> bool:
    """Whether this is a type that a test holds against `behaviour`, with no switch set that would make an encoder of
    it."""
    return config.model_type in KNOWN_TYPES and not any(
        (value is False and "causal" in name) or (value and "bidirectional" in name)
        for name, value in vars(config.get_text_config(decoder=True)).items()
    )


def _other_kind(config: Any) -> str | None:
    if any(getattr(part, "is_encoder_decoder", False) for part in (config, config.get_text_config(decoder=True))):
        return "is an encoder-decoder: its decoder continues what an encoder has made of another text"
    named = str((getattr(config, "architectures", None) or [""])[0])
    if _OTHER_HEADS.search(named):
        return f"is a {named} by its config: it has no language model's head"
    return _without_class(config)


def _without_class(config: Any) -> str | None:
    """What is missing where nothing, neither the library nor the model's own code, makes a language model of it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    own = getattr(config, "auto_map", None) or {}
    if own.keys() & classes_by_type().keys() or any(config.model_type in one for one in classes_by_type().values()):
        return None
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "is an encoder: Transformers has a masked language model of it, and no causal one"
    if own:
        return f"has no causal language model: its own code brings {', '.join(sorted(own))}"
    return "has no causal language model in Transformers"
