"""What is forecast from a config is what the real model and the real caches take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_transformers_families import FAMILIES
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers_samples import load, make_candidate

from kvray.candidate import Candidate
from kvray.engines.base import ModelRequest
from kvray.engines.transformers import TransformersAdapter, models, shapes
from kvray.engines.transformers.loaded import TransformersModel
from kvray.forecast.memory import cache_bytes
from kvray.forecast.shape import ModelShape
from kvray.workload import Cell

pytestmark = pytest.mark.usefixtures("one_thread")
CELL = Cell(72, 6, 2)
SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [9, 18, 27]},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "stablelm": {"num_key_value_heads": 8},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 8},
}
"""Beside a type's defaults: what real models of it have and the defaults leave out."""


def shape_of(config: Any) -> ModelShape:
    shape = shapes.model_shape(config)
    assert shape is not None
    return shape


@pytest.mark.parametrize("model_type", sorted(shapes.KNOWN_TYPES))
def test_the_parameters_of_every_known_type_are_those_of_the_real_model(model_type: str) -> None:
    config = CONFIG_MAPPING[model_type](**SETTINGS.get(model_type, {}))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert shape_of(config).total_parameters == pytest.approx(counted, rel=0.003)


@pytest.mark.parametrize("model_type", sorted(shapes.KNOWN_TYPES))
def test_layer_kinds_are_told_without_torch_as_the_library_tells_them(model_type: str) -> None:
    config = CONFIG_MAPPING[model_type](**SETTINGS.get(model_type, {}))
    assert list(shapes.layer_kinds(config)) == get_layer_types_and_kwargs(config)[0]


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
    outline, whole = TransformersAdapter().outline_model(request), models.describe(request)
    assert outline.shape is not None
    for name in ("model_id", "architecture", "max_context", "native_dtype", "random_weights", "layer_kinds", "shape"):
        assert getattr(outline, name) == getattr(whole, name), name


def test_nothing_is_said_of_a_type_that_is_not_known_or_of_packed_weights() -> None:
    assert shapes.model_shape(CONFIG_MAPPING["lfm2"]()) is None
    packed = CONFIG_MAPPING["llama"](quantization_config={"quant_method": "mxfp4"})
    assert shapes.model_shape(packed) is None
