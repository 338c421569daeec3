"""Numbers of a config.json that are believed before the library makes lists as long as they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvray.errors import ModelError
from kvray.models.config_file import check_config_file


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


@pytest.mark.parametrize("name", ["num_hidden_layers", "n_layer", "depth", "num_blocks", "layers", "encoder_layers"])
def test_a_number_of_layers_that_no_model_has_is_refused(name: str, config: Path) -> None:
    config.write_text(json.dumps({"text_config": {name: 262144}}))
    with pytest.raises(ModelError, match=rf"{name} is 262144; 10,000 is the most that is believed"):
        check_config_file(config)


@pytest.mark.parametrize(
    "name",
    ["vocab_size_per_layer_input", "hidden_size_per_layer_input", "block_size", "attention_block_size", "vocab_size"],
)
def test_a_size_is_no_number_of_layers(name: str, config: Path) -> None:
    config.write_text(json.dumps({name: 262144}))
    check_config_file(config)
    config.write_text(json.dumps({name: 10**30}))
    with pytest.raises(ModelError, match="beyond 10\\^30; 9,007,199,254,740,992 is the most"):
        check_config_file(config)
