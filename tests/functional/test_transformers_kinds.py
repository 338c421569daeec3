"""A model is tuned or refused by what it does: whether it looks ahead, takes a KV cache and works on text alone."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from test_transformers_shapes import KNOWN, SETTINGS, every_sixth
from transformers import CONFIG_MAPPING
from transformers_samples import change_config, give_own_code, load, make_candidate, save_tiny_model

from kvray.engines.base import ModelInfo, ModelRequest
from kvray.engines.transformers import TransformersAdapter, outline
from kvray.engines.transformers.architecture import is_known_decoder
from kvray.engines.transformers.behaviour import Finding, examine
from kvray.engines.transformers.class_source import declared_attentions
from kvray.engines.transformers.model_class import missing_attentions, model_class
from kvray.engines.transformers.small_config import small_config
from kvray.errors import ModelError
from kvray.search_paths import child_environment, python_command
from kvray.workload import Cell

pytestmark = pytest.mark.usefixtures("one_thread")

MROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
DECODERS: dict[str, dict[str, Any]] = {
    "biogpt": {},
    "gemma3": {},
    "jamba": {},
    "mistral3": {},
    "qwen2_5_vl": {"text_config": MROPE},
    "qwen2_audio": {},
    "recurrent_gemma": {},
    "trocr": {},
    "xglm": {},
    "bert": {"is_decoder": True},
    "roberta": {"is_decoder": True},
    "bart": {"is_decoder": True, "is_encoder_decoder": False},
}
"""Types that are tried whenever they are met, with what makes decoders of those that can be something else."""
ENCODER = "looks ahead: what it makes of a token changes with the tokens after it"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bart": ({}, "is an encoder-decoder"),
    "marian": ({}, "is an encoder-decoder"),
    "t5": ({}, "is an encoder-decoder"),
    "whisper": ({}, "is an encoder-decoder"),
    "florence2": ({}, "is an encoder-decoder"),
    "bert": ({}, ENCODER),
    "big_bird": ({}, ENCODER),
    "electra": ({}, ENCODER),
    "rembert": ({}, ENCODER),
    "xlm-roberta": ({"architectures": ["XLMRobertaModel"]}, ENCODER),
    "llama": ({"is_causal": False}, ENCODER),
    "gemma3_text": ({"use_bidirectional_attention": True}, ENCODER),
    "modernbert": ({}, "is an encoder: Transformers has a masked language model"),
    "mamba": ({}, r"keeps a state of its own \(cache_params\) instead of keys and values"),
    "rwkv": ({}, r"keeps a state of its own \(state\) instead of keys and values"),
    "xlnet": ({}, r"keeps a state of its own \(mems\) instead of keys and values"),
    "reformer": ({}, r"keeps a state of its own \(past_buckets_states\)"),
    "openai-gpt": ({}, "keeps no keys and values: OpenAIGPTLMHeadModel takes no past_key_values"),
    "xlm": ({}, "keeps no keys and values: XLMWithLMHeadModel takes no past_key_values"),
    "blip": ({}, "keeps no keys and values: BlipForConditionalGeneration takes no past_key_values"),
    "idefics": ({}, "does not write from text alone: .*pixel_values"),
    "vit": ({}, "has no causal language model in Transformers"),
    "qwen2": ({"architectures": ["Qwen2ForSequenceClassification"]}, ".* it has no language model's head"),
    "mistral": ({"architectures": ["MistralForTokenClassification"]}, ".* it has no language model's head"),
    "gemma2": ({"architectures": ["Gemma2RewardModel"]}, ".* it has no language model's head"),
}


def found(model_type: str, settings: dict[str, Any]) -> Finding:
    config = CONFIG_MAPPING[model_type](**settings)
    made_of = model_class(config, Path(), trust_remote_code=False)
    assert made_of is not None
    return examine(made_of, config)


def described(folder: Path, model_type: str, settings: dict[str, Any]) -> ModelInfo:
    config = CONFIG_MAPPING[model_type](**settings).to_dict()
    (folder / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    return TransformersAdapter().describe_model(ModelRequest(model_id=f"random:{folder}"))


@pytest.mark.parametrize("model_type", every_sixth(KNOWN))
def test_every_known_type_does_what_is_taken_for_granted_of_it(model_type: str) -> None:
    assert found(model_type, SETTINGS.get(model_type, {})) == Finding(was_tried=True)


@pytest.mark.parametrize("model_type", every_sixth(KNOWN))
def test_the_source_of_a_known_type_tells_its_attentions_as_the_class_does(model_type: str) -> None:
    config = CONFIG_MAPPING[model_type](**SETTINGS.get(model_type, {}))
    found = model_class(config, Path(), trust_remote_code=False)
    assert declared_attentions(config) in (missing_attentions(found), None)


def test_the_source_of_most_known_types_tells_their_attentions() -> None:
    silent = [one for one in KNOWN if declared_attentions(CONFIG_MAPPING[one](**SETTINGS.get(one, {}))) is None]
    assert len(silent) <= len(KNOWN) / 20


@pytest.mark.parametrize("model_type", DECODERS)
def test_a_decoder_of_any_other_type_is_known_by_what_it_does(model_type: str) -> None:
    assert found(model_type, DECODERS[model_type]) == Finding(was_tried=True)


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_is_no_decoder_with_a_cache_is_refused_with_the_reason(model_type: str, tmp_path: Path) -> None:
    settings, reason = REFUSED[model_type]
    with pytest.raises(ModelError, match=f"'{model_type}', which {reason}.* kvray tunes decoder-only models") as error:
        described(tmp_path, model_type, settings)
    assert error.value.exit_code == 4
    could_be_a_decoder = model_type in ("bert", "big_bird", "electra", "rembert", "xlm-roberta")
    assert ("lacks is_decoder: true" in str(error.value)) == could_be_a_decoder


def test_an_outline_takes_only_known_decoders_without_trying_them(tmp_path: Path) -> None:
    request = ModelRequest(model_id=f"random:{tmp_path}")
    described(tmp_path, "llama", {})
    assert outline.outline_model(request) is not None
    change_config(tmp_path, is_causal=False)
    assert outline.outline_model(request) is None


DESCRIBE = """
import sys
from kvray.engines.base import ModelRequest
from kvray.engines.transformers import TransformersAdapter
from kvray.errors import ModelError
try:
    TransformersAdapter().describe_model(ModelRequest(model_id=sys.argv[1]))
except ModelError as error:
    print(error)
print("torch" in sys.modules)
"""


def test_a_model_that_its_config_refuses_is_refused_without_torch(tmp_path: Path) -> None:
    request = ModelRequest(model_id=f"random:{tmp_path}")
    with pytest.raises(ModelError, match="is an encoder-decoder") as error:
        described(tmp_path, "t5", {})
    command = python_command("-c", DESCRIBE, request.model_id)
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=child_environment()).stdout
    assert told.splitlines() == [str(error.value), "False"]


def test_a_switch_that_makes_an_encoder_of_a_known_type_is_seen() -> None:
    assert is_known_decoder(CONFIG_MAPPING["llama"]())
    assert is_known_decoder(CONFIG_MAPPING["llama"](is_causal=True))
    assert not is_known_decoder(CONFIG_MAPPING["llama"](is_causal=False))
    assert not is_known_decoder(CONFIG_MAPPING["gemma3_text"](use_bidirectional_attention=True))


def test_code_that_a_model_brings_is_tried_only_where_it_is_trusted(tmp_path: Path) -> None:
    folder = give_own_code(save_tiny_model(tmp_path / "own"))
    change_config(folder, is_causal=False)
    with pytest.raises(ModelError, match="brings its own Python code"):
        TransformersAdapter().describe_model(ModelRequest(model_id=str(folder)))
    with pytest.raises(ModelError, match=ENCODER):
        TransformersAdapter().describe_model(ModelRequest(model_id=str(folder), trust_remote_code=True))


def test_trying_a_model_leaves_threads_and_random_numbers_as_they_were() -> None:
    torch.set_num_threads(2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    found("trocr", {})
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == 2


def test_no_number_of_a_small_model_is_large_whatever_its_name() -> None:
    huge = {"num_gadgets": 2**40, "gadget_sizes": [2**40] * 3, "num_hidden_layers": 9000, "vocab_size": 2**40}
    small = small_config(CONFIG_MAPPING["llama"](**huge, max_position_embeddings=2**40), heads=4)
    numbers = [value for value in vars(small).values() if type(value) is int] + small.gadget_sizes
    assert max(numbers) <= 4096


@pytest.mark.parametrize(
    ("model_type", "loader"),
    [
        ("gemma3", "AutoModelForCausalLM"),
        ("mistral3", "AutoModelForImageTextToText"),
        ("qwen2_5_vl", "AutoModelForImageTextToText"),
        ("qwen2_audio", "AutoModelForMultimodalLM"),
    ],
)
def test_a_model_that_also_takes_images_or_sound_is_measured_with_text_alone(
    model_type: str, loader: str, tmp_path: Path
) -> None:
    config = small_config(CONFIG_MAPPING[model_type](**DECODERS[model_type]), heads=4)
    (tmp_path / "config.json").write_text(json.dumps({**config.to_dict(), "model_type": model_type}))
    model_id = f"random:{tmp_path}"
    info = TransformersAdapter().describe_model(ModelRequest(model_id=model_id))
    assert (info.loader, info.max_context) == (loader, 512)
    answers = []
    for cache in ("dynamic", "static"):
        model = load(model_id, make_candidate(cache))
        model.prepare(Cell(72, 6, 2))
        answers.append(model.generate(6).tokens)
        assert model.observe().substitutions == ()
        model.close()
    assert answers[0] == answers[1]
