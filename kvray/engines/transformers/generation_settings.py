"""Settings of every measured generation: what a plain `generate` does, for an exact number of tokens."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from transformers import CompileConfig, GenerationConfig

from kvray.engines.transformers.arguments import CallArguments
from kvray.engines.transformers.one_sequence import one_greedy_sequence


def measured_settings(checkpoint: GenerationConfig, arguments: CallArguments) -> GenerationConfig:
    """What holds for every measured call: one greedy sequence, and exactly as many tokens as asked for."""
    settings = one_greedy_sequence(checkpoint)
    settings.update(**arguments.generate_options, eos_token_id=None)
    return settings


def exact_settings(base: GenerationConfig, arguments: CallArguments, output_tokens: int) -> GenerationConfig:
    """`base` for exactly `output_tokens`, compiled where that is asked for. `generate` hands back the cache that it
    used: the model may have put away the one that it was given."""
    settings = copy.deepcopy(base)
    settings.max_new_tokens = output_tokens
    settings.return_dict_in_generate = True  # costs nothing: all else that could be returned is off
    if arguments.compile_mode is not None:
        settings.compile_config = CompileConfig(mode=arguments.compile_mode, fullgraph=False)
        # `generate` compiles on accelerators only, unless this private switch is set.
        settings.compile_config._compile_all_devices = True
    return settings


@contextlib.contextmanager
def bare_settings(model: Any, arguments: CallArguments) -> Iterator[GenerationConfig]:
    """Settings without what the checkpoint wants done to the logits. `generate` takes from the model's own whatever
    those of a call leave open, so these are set aside meanwhile."""
    checkpoint = model.generation_config
    model.generation_config = GenerationConfig(pad_token_id=checkpoint.pad_token_id, **arguments.generate_options)
    try:
        yield model.generation_config
    finally:
        model.generation_config = checkpoint
