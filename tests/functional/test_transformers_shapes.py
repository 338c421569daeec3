"""What is forecast from a config is what the real model and the real caches take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_transformers_families import FAMILIES
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers_samples import load, make_candidate

from kvray.candidate import Candidate
from kvray.engines.base import ModelRequest
from kvray.engines.hugging_face import shapes
from kvray.engines.transformers import TransformersAdapter, description, outline
from kvray.engines.transformers.cost_memory import cache_bytes
from kvray.engines.transformers.loaded import TransformersModel
from kvray.forecast.shape import ModelShape
from kvray.workload import Cell

pytestmark = pytest.mark.usefixtures("one_thread")
CELL = Cell(72, 6, 2)
CONFIGS = Path(__file__).parent.parent / "assets" / "configs"
HYBRID = ("conv", "conv", "full_attention", "conv")
SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [9, 18, 27]},
    "deepseek_v2": {"num_experts_per_tok": 6, "moe_intermediate_size": 1408},
    "falcon": {
        "new_decoder_architecture": True,
        "hidden_size": 4096,
        "num_attention_heads": 64,
        "num_kv_heads": 8,
    },
    "gemma4_text": {"num_kv_shared_layers": 10, "use_double_wide_mlp": True},
    "granitemoehybrid": {"layer_types": ["mamba", "mamba", "attention", "mamba"] * 8},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 8, "moe_topk": 2},
    "lfm2": {"layer_types": list(HYBRID) * 8},
    "lfm2_moe": {"layer_types": list(HYBRID) * 8},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "stablelm": {"num_key_value_heads": 8},
}
"""Beside a type's defaults: what real models of it have and the defaults leave out."""
KNOWN = sorted(shapes.KNOWN_TYPES & set(CONFIG_MAPPING))
"""Those that the installed version of Transformers has."""


def every_sixth(names: list[str]) -> list[Any]:
    """All of them where slow tests run too: each makes a model."""
    return [name if place % 6 == 0 else pytest.param(name, marks=pytest.mark.slow) for place, name in enumerate(names)]


def shape_of(config: Any) -> ModelShape:
    shape = shapes.model_shape(config)
    assert shape is not None
    return shape


@pytest.mark.parametrize("model_type", every_sixth(KNOWN))
def test_parameters_and_cache_of_every_known_type_are_those_of_the_real_model(model_type: str) -> None:
    config = CONFIG_MAPPING[model_type](**SETTINGS.get(model_type, {}))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="eager").eval()
        cache = DynamicCache(config=config)
        with torch.no_grad():
            model(input_ids=torch.ones(1, 3, dtype=torch.long), past_key_values=cache, use_cache=True)
    shape = shape_of(config)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert shape.total_parameters == pytest.approx(counted, rel=0.003)
    kept = [(layer.kv_heads, layer.key_dim, layer.value_dim, layer.state_elements) for layer in shape.layers]
    held = [kept_by(layer) for layer in cache.layers]
    # Before Transformers 5.23 the cache has no layer where a model's layer reads the keys of an earlier one.
    assert kept == held + [(0, 0, 0, 0)] * (len(kept) - len(held))


def kept_by(layer: Any) -> tuple[int, int, int, int]:
    """Heads, key size, value size and elements of state that a layer of a real cache holds."""
    states = [getattr(layer, name, None) or {} for name in ("conv_states", "recurrent_states")]
    state = sum(tensor.numel() for one in states for tensor in one.values() if tensor is not None)
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if keys is None or values is None:
        return 0, 0, 0, state
    return keys.shape[1], keys.shape[3], values.shape[3], state


def test_deepseek_v2_lite_keeps_31104_bytes_a_token() -> None:
    config = AutoConfig.from_pretrained(CONFIGS / "deepseek_v2_lite_real")
    candidate = make_candidate(dtype="bfloat16")
    shorter, longer = (cache_bytes(shape_of(config), candidate, Cell(tokens, 128, 1)) for tokens in (16384, 32768))
    assert (longer - shorter) / 16384 == 27 * (512 + 64) * 2


@pytest.mark.parametrize("model_type", KNOWN)
def test_layer_kinds_are_told_without_torch_as_the_library_tells_them(model_type: str) -> None:
    config = CONFIG_MAPPING[model_type](**SETTINGS.get(model_type, {}))
    told, kinds = shapes.layer_kinds(config), tuple(get_layer_types_and_kwargs(config)[0])
    assert told == kinds + ("dummy",) * (len(told) - len(kinds))


@pytest.mark.parametrize(
    ("name", "cache"),
    [
        (name, cache)
        for name, family in FAMILIES.items()
        for cache in ("dynamic", "static", "sliding_window(window=24,sinks=4)", "paged")
        if cache not in family.rejected
    ],
)
def test_the_cache_of_every_family_holds_the_forecast_bytes(name: str, cache: str, tmp_path: Path) -> None:
    config = CONFIG_MAPPING[name](**FAMILIES[name].settings)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    candidate = make_candidate(cache)
    assert held_bytes(f"random:{tmp_path}", candidate, CELL) == pytest.approx(
        cache_bytes(shape_of(config), candidate, CELL), rel=0.02
    )


@pytest.mark.parametrize(
    "cache",
    [
        "dynamic",
        "static",
        "static(max_cache_len=300)",
        "quantized(backend=fp8)",
        "quantized(backend=hqq,nbits=8)",
        "quantized(backend=hqq,nbits=4)",
        "quantized(backend=hqq,nbits=2,q_group_size=32)",
        "quantized(backend=hqq,nbits=4,residual_length=4)",
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cache_holds_the_forecast_bytes_whatever_its_settings(tiny_model: str, cache: str, dtype: str) -> None:
    candidate = make_candidate(cache, dtype=dtype)
    shape = TransformersAdapter().describe_model(ModelRequest(model_id=tiny_model)).shape
    assert shape is not None
    expected = cache_bytes(shape, candidate, CELL)
    assert held_bytes(tiny_model, candidate, CELL) == pytest.approx(expected, rel=0.02)


def held_bytes(model_id: str, candidate: Candidate, cell: Cell) -> int:
    model: TransformersModel = load(model_id, candidate)
    model.prepare(cell)
    model.generate(cell.output_tokens)
    held = model.kv_cache_bytes()
    model.close()
    assert held is not None
    return held


def test_an_outline_says_what_the_whole_description_says(tiny_model: str) -> None:
    request = ModelRequest(model_id=tiny_model)
    assert outline.outline_model(request) == description.describe(request)


@pytest.mark.parametrize(
    ("model_type", "settings", "reason"),
    [
        ("jamba", {}, "kvray has no formulas for models of type 'jamba'"),
        (
            "llama",
            {"quantization_config": {"quant_method": "gptq"}},
            "its weights are packed with GPTQ, so that a dtype",
        ),
        ("gemma4_text", {"enable_moe_block": True}, "no formulas for models of type 'gemma4_text' with experts"),
    ],
)
def test_nothing_is_said_of_what_is_not_known_but_the_reason(
    model_type: str, settings: dict[str, Any], reason: str
) -> None:
    config = CONFIG_MAPPING[model_type](**settings)
    assert shapes.model_shape(config) is None
    assert reason in str(shapes.unknown_because(config))
