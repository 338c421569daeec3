"""The baseline is what `from_pretrained` and a plain `generate` do with nothing set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers_samples import change_config, give_own_code, load, pickle_weights, save_tiny_model

from kvray.candidate import AttentionBackend, AttentionChoice, DeviceType
from kvray.engines.base import DeviceFacts, ModelInfo, ModelRequest, Observed
from kvray.engines.transformers import TransformersAdapter
from kvray.workload import Cell, get_profile

CPU = DeviceFacts(device=DeviceType.CPU, device_name="CPU")


def described(folder: Path | str, *, allow_pickle: bool = False, trust_remote_code: bool = False) -> ModelInfo:
    request = ModelRequest(model_id=str(folder), allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    return TransformersAdapter().describe_model(request)


@pytest.mark.parametrize("kind", ["one file", "shards", "pickled", "pickled long ago", "said by the index"])
def test_the_baselines_dtype_is_that_of_the_weights_where_the_config_names_none(kind: str, tmp_path: Path) -> None:
    shards = "100KB" if kind in ("shards", "said by the index") else "1GB"
    folder = change_config(save_tiny_model(tmp_path / "m", max_shard_size=shards, dtype=torch.float16), "dtype")
    if kind.startswith("pickled"):
        pickle_weights(folder, old_format=kind == "pickled long ago")
    if kind == "said by the index":
        index = folder / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        index.write_text(json.dumps({**content, "metadata": {**content["metadata"], "dtype": "bfloat16"}}))
    with_nothing_set = AutoModelForCausalLM.from_pretrained(folder)
    info = described(folder, allow_pickle=True)
    assert str(with_nothing_set.dtype) == f"torch.{info.native_dtype}"
    assert info.native_dtype == ("bfloat16" if kind == "said by the index" else "float16")
    assert info.notes == ()


def test_the_dtype_that_a_config_names_counts_before_that_of_the_weights(tmp_path: Path) -> None:
    folder = change_config(save_tiny_model(tmp_path / "m", dtype=torch.float16), dtype="bfloat16")
    assert AutoModelForCausalLM.from_pretrained(folder).dtype is torch.bfloat16
    assert described(folder).native_dtype == "bfloat16"


def test_random_weights_are_of_pytorchs_own_dtype_where_the_config_names_none(tmp_path: Path) -> None:
    folder = change_config(save_tiny_model(tmp_path / "m", dtype=torch.float16), "dtype")
    assert AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).dtype is torch.float32
    assert described(f"random:{folder}").native_dtype == "float32"


def test_a_dtype_that_is_not_measured_is_told(tmp_path: Path) -> None:
    folder = change_config(save_tiny_model(tmp_path / "m", dtype=torch.float64), "dtype")
    info = described(folder)
    assert (info.native_dtype, info.notes) == ("float32", ("Measured as float32: float64 weights are not measured.",))


def save_with_attention(folder: Path, kind: str) -> Path:
    match kind:
        case "own code":
            return give_own_code(save_tiny_model(folder))
        case "no SDPA in the library":
            size = {"d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 258}
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps({"model_type": "mpt", **size}))
            return folder
        case "named in the config":
            return change_config(save_tiny_model(folder), attn_implementation="eager")
        case "named as older versions did":
            return change_config(save_tiny_model(folder), _attn_implementation="eager")
    return save_tiny_model(folder)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("nothing said", "sdpa"),
        ("own code", "eager"),
        ("no SDPA in the library", "eager"),
        ("named in the config", "eager"),
        ("named as older versions did", "eager"),
    ],
)
def test_the_baselines_attention_is_what_the_library_picks(kind: str, expected: str, tmp_path: Path) -> None:
    folder = save_with_attention(tmp_path / "m", kind)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    picked = AutoModelForCausalLM.from_config(config, trust_remote_code=True).config._attn_implementation
    info = described(f"random:{folder}", trust_remote_code=True)
    baseline = TransformersAdapter().baseline(info, CPU, batch_size=1)
    assert (baseline.attention, picked) == (expected, expected)


def test_an_attention_that_is_named_and_cannot_be_had_gives_way_to_the_usual_one(tmp_path: Path) -> None:
    folder = change_config(save_tiny_model(tmp_path / "m"), attn_implementation="flash_attention_2")
    info = described(folder)
    assert info.default_attention == AttentionChoice(AttentionBackend.FLASH_ATTENTION_2)
    assert TransformersAdapter().baseline(info, CPU, batch_size=1).attention is AttentionBackend.SDPA


def test_what_generation_config_does_to_every_token_is_named_and_timed(tmp_path: Path) -> None:
    heavy: dict[str, Any] = {"no_repeat_ngram_size": 3, "repetition_penalty": 1.0, "remove_invalid_values": True}
    seen: dict[str, Observed] = {}
    for name, settings in {"plain": {"repetition_penalty": 1.0}, "heavy": heavy}.items():
        model = load(save_tiny_model(tmp_path / name, **settings))
        model.prepare(Cell(1500, 8, 1))
        seen[name] = model.observe(8)
        model.close()
    assert (seen["plain"].processors, seen["plain"].processor_share) == (None, None)
    assert seen["heavy"].processors == "no_repeat_ngram_size + remove_invalid_values"
    assert seen["heavy"].processor_share is not None
    assert 0 < seen["heavy"].processor_share < 1


def test_what_code_of_its_own_does_for_attention_is_its_baseline_and_is_recorded(tmp_path: Path) -> None:
    folder = give_own_code(save_tiny_model(tmp_path / "own_way"), calls_sdpa=True)
    request, adapter = ModelRequest(model_id=str(folder), trust_remote_code=True), TransformersAdapter()
    baseline = adapter.baseline(adapter.describe_model(request), CPU, batch_size=1)
    model = adapter.load(request, baseline, DeviceType.CPU, get_profile("ci-micro"))
    model.prepare(Cell(40, 8, 1))
    seen = model.observe(8)
    model.close()
    assert (baseline.attention, seen.kernel_prefill, seen.substitutions) == ("eager", "sdpa_flash", ())
