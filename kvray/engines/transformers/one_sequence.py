"""One greedy sequence, whatever a checkpoint's generation_config.json asks for: the settings for trial and snippet."""

from __future__ import annotations

import copy

from transformers import GenerationConfig

KEPT_SETTINGS = (
    *("bos_token_id", "eos_token_id", "pad_token_id"),
    *("repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
    *("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias"),
    *("remove_invalid_values", "renormalize_logits"),
)


def one_greedy_sequence(checkpoint: GenerationConfig) -> GenerationConfig:
    """The checkpoint's settings without those that ask for sampling, several sequences, another way of decoding, a
    fixed length or more than tokens. What changes the scores of tokens stays: `generate` applies it at every token."""
    settings = copy.deepcopy(checkpoint)
    for name in vars(GenerationConfig()):
        if not name.startswith("_") and name not in KEPT_SETTINGS:
            setattr(settings, name, None)
    if settings.pad_token_id is None:
        # `generate` would choose the same at every call, with a warning.
        ids = settings.eos_token_id
        settings.pad_token_id = ids[0] if isinstance(ids, list) else ids
    return settings
