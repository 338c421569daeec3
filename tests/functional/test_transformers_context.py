"""The context limit is the number of tokens that the library takes, for models with a table of positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING

from kvray.engines.transformers.context_limit import context_limit
from kvray.engines.transformers.model_class import model_class
from kvray.engines.transformers.small_config import small_config

pytestmark = pytest.mark.usefixtures("one_thread")

MOST = 48
TABLES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_positions": MOST},
    "opt": {"max_position_embeddings": MOST},
    "gpt_neo": {"max_position_embeddings": MOST},
    "gpt_bigcode": {"n_positions": MOST},
    "gptj": {"n_positions": MOST},
    "codegen": {"n_positions": MOST},
    "ctrl": {"n_positions": MOST},
    "biogpt": {"max_position_embeddings": MOST},
    "mpt": {"max_seq_len": MOST},
    "trocr": {"max_position_embeddings": MOST},
    "bert": {"is_decoder": True, "max_position_embeddings": MOST},
    "roberta": {"is_decoder": True, "max_position_embeddings": MOST},
    "xlm-roberta": {"is_decoder": True, "max_position_embeddings": MOST, "pad_token_id": 3},
    "camembert": {"is_decoder": True, "max_position_embeddings": MOST},
    "data2vec-text": {"is_decoder": True, "max_position_embeddings": MOST},
}
WITHOUT: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": MOST},
    "falcon": {"max_position_embeddings": MOST},
    "gpt_neox": {"max_position_embeddings": MOST},
    "xglm": {"max_position_embeddings": MOST},
    "qwen2": {
        "max_position_embeddings": MOST,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": MOST},
    },
}


def feed(config: Any, tokens: int) -> torch.Tensor:
    """The logits of a small model of `config` for so many tokens."""
    small = small_config(config, heads=4)
    made_of: Any = model_class(small, Path(), trust_remote_code=False)
    with torch.no_grad():
        logits: torch.Tensor = made_of._from_config(small).eval()(torch.full((1, tokens), 7)).logits
    return logits


@pytest.mark.parametrize("model_type", TABLES)
def test_a_table_of_positions_ends_where_the_limit_says(model_type: str) -> None:
    config = CONFIG_MAPPING[model_type](**TABLES[model_type])
    limit = context_limit(config)
    assert limit is not None
    assert feed(config, limit).shape[1] == limit
    with pytest.raises((IndexError, RuntimeError)):
        feed(config, limit + 1)


@pytest.mark.parametrize("model_type", WITHOUT)
def test_without_a_table_the_limit_is_what_the_makers_claim_and_nothing_fails_beyond(model_type: str) -> None:
    config = CONFIG_MAPPING[model_type](**WITHOUT[model_type])
    limit = context_limit(config)
    assert limit == (MOST * 4 if model_type == "qwen2" else MOST)
    assert feed(config, limit + 9).shape[1] == limit + 9
