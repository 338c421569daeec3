"""How many tokens a config says that its model holds."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from kvray.engines.transformers.context_limit import context_limit

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}


@pytest.mark.parametrize(
    ("model_type", "settings", "tokens"),
    [
        ("llama", {"max_position_embeddings": 1024}, 1024),
        ("gpt2", {"n_positions": 300}, 300),
        ("ctrl", {"n_positions": 300}, 300),
        ("mpt", {"max_seq_len": 256}, 256),
        ("bloom", {}, None),
        ("mistral3", {"text_config": {"model_type": "mistral", "max_position_embeddings": 700}}, 700),
        # Makers who leave the trained length in place, and makers who write the stretched one.
        ("qwen2", {"max_position_embeddings": 512, "rope_scaling": YARN}, 2048),
        ("qwen2", {"max_position_embeddings": 2048, "rope_scaling": YARN}, 2048),
        ("llama", {"max_position_embeddings": 512, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 2048),
        ("llama", {"max_position_embeddings": 512, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 1024),
        # The number contains the factor, or the original times the factor is more than the makers claim.
        (
            "llama",
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8192},
            },
            131072,
        ),
        (
            "phi3",
            {
                "hidden_size": 256,
                "num_attention_heads": 8,
                "max_position_embeddings": 2048,
                "original_max_position_embeddings": 256,
                "rope_scaling": LONGROPE,
            },
            2048,
        ),
        ("gemma3_text", {"max_position_embeddings": 4096}, 4096),
        ("cohere", {"max_position_embeddings": 8192, "model_max_length": 131072}, 131072),
        ("cohere", {"max_position_embeddings": 8192, "model_max_length": 1e30}, 8192),
        ("gpt2", {"n_positions": 300, "model_max_length": 4096}, 300),
        ("roberta", {"max_position_embeddings": 514, "pad_token_id": 1}, 512),
    ],
)
def test_the_limit_is_what_the_library_takes(model_type: str, settings: dict[str, Any], tokens: int | None) -> None:
    assert context_limit(CONFIG_MAPPING[model_type](**settings)) == tokens


@pytest.mark.parametrize("wrong", [-1, 0])
def test_a_limit_that_is_no_number_of_tokens_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"max_position_embeddings {wrong} is not a number of tokens"):
        context_limit(CONFIG_MAPPING["llama"](max_position_embeddings=wrong))
