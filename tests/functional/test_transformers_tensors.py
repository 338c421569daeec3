"""Whether a checkpoint's tensors are its model's, known from headers before any trial, and as the library sees it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers_samples import save_tiny_model

from kvray.engines.base import ModelRequest
from kvray.engines.transformers import TransformersAdapter, tensors
from kvray.errors import ModelError
from kvray.models.weight_files import WEIGHTS_INDEX

Tensors = dict[str, torch.Tensor]
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model")


def check(folder: Path, *, quick: bool = False) -> None:
    TransformersAdapter().check_weights(ModelRequest(model_id=str(folder)), quick=quick)


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    weights = folder / "model.safetensors"
    save_file(change(load_file(weights)), weights, metadata={"format": "pt"})


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda held: {name: tensor for name, tensor in held.items() if name not in names}


def with_prefix(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda held: {prefix + name: tensor for name, tensor in held.items()}


def edit_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize(
    ("architecture", "saved_as"), [("LlamaModel", r": they were saved as LlamaModel"), ("LlamaForCausalLM", "")]
)
def test_weights_without_a_language_models_head_are_called_so(architecture: str, saved_as: str, folder: Path) -> None:
    edit_config(folder, architectures=[architecture])
    rewrite(folder, without("lm_head.weight"))
    with pytest.raises(ModelError, match=rf"no language model's head \(lm_head\.weight\){saved_as}\. Give a model"):
        check(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("model.norm.weight"), r"lack 1 tensor of the model, model\.norm\.weight\. Download"),
        (without("model.norm.weight", "lm_head.weight"), r"lack 2 tensors of the model, such as lm_head\.weight\."),
        (with_prefix("base_model.model."), r"begin with 'base_model\.model\.', which an adapter's training.*peft"),
        (with_prefix("_orig_mod."), r"which torch\.compile adds"),
        (with_prefix("decoder."), r"lack 21 tensors.*have other names, such as decoder\.lm_head\.weight"),
    ],
)
def test_what_the_checkpoint_lacks_is_named_with_its_likely_cause(
    change: Callable[[Tensors], Tensors], message: str, folder: Path
) -> None:
    rewrite(folder, change)
    with pytest.raises(ModelError, match=message):
        check(folder)


def test_other_shapes_than_the_configs_are_named_on_both_sides(folder: Path) -> None:
    edit_config(folder, intermediate_size=96)
    with pytest.raises(ModelError, match=r"down_proj\.weight is 64 × 128 there and 64 × 96 by the config, and 5 more"):
        check(folder)


def test_weights_that_mlx_packed_are_called_so(folder: Path) -> None:
    edit_config(folder, quantization={"group_size": 64, "bits": 4})
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(folder, lambda held: {**held, name: torch.zeros(128, 8, dtype=torch.uint32)})
    with pytest.raises(ModelError, match="packed in the way of MLX"):
        check(folder)


def test_an_index_of_another_model_is_told_by_what_no_shard_holds(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", max_shard_size="100KB")
    index = json.loads((folder / WEIGHTS_INDEX).read_text())
    shard = folder / index["weight_map"]["model.norm.weight"]
    save_file(without("model.norm.weight")(load_file(shard)), shard, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"The index names tensors that no shard holds, such as model\.norm\.weight"):
        check(folder)


def test_an_index_that_is_wrong_of_where_tensors_lie_does_not_matter(tmp_path: Path) -> None:
    """`from_pretrained` reads whole shards."""
    folder = save_tiny_model(tmp_path / "model", max_shard_size="100KB")
    index = json.loads((folder / WEIGHTS_INDEX).read_text())
    shards = sorted(set(index["weight_map"].values()))
    index["weight_map"] = {name: shards[number % len(shards)] for number, name in enumerate(index["weight_map"])}
    (folder / WEIGHTS_INDEX).write_text(json.dumps(index))
    check(folder)


def test_tensors_beyond_the_models_are_no_obstacle(folder: Path) -> None:
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8), "value_head.weight": torch.zeros(1, 64)}
    rewrite(folder, lambda held: {**held, **more})
    check(folder)


def test_a_quick_look_leaves_out_what_has_very_many_tensors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(folder, without("model.norm.weight"))
    monkeypatch.setattr(tensors, "MOST_IN_A_SECOND", 19)
    check(folder, quick=True)
    with pytest.raises(ModelError, match=r"model\.norm\.weight"):
        check(folder)


def test_the_look_says_nothing_of_its_own(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check(folder)
    rewrite(folder, without("model.norm.weight"))
    with pytest.raises(ModelError):
        check(folder)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("config", "more"),
    [
        ("LlamaConfig", {"tie_word_embeddings": True}),
        ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4}),
        ("BloomConfig", {}),
        ("FalconConfig", {}),
        ("Gemma2Config", {"head_dim": 16, "num_key_value_heads": 2}),
        ("MixtralConfig", {"num_key_value_heads": 2, "num_local_experts": 4}),
        ("Qwen2MoeConfig", {"num_key_value_heads": 2, "num_experts": 4, "moe_intermediate_size": 32}),
        ("OPTConfig", {"ffn_dim": 96, "word_embed_proj_dim": 32}),
        ("MptConfig", {"d_model": 64, "n_heads": 4, "n_layers": 2}),
        ("GPTNeoXConfig", {}),
    ],
)
def test_whatever_the_library_saves_and_loads_passes(config: str, more: dict[str, Any], tmp_path: Path) -> None:
    """Tied heads, fused and per-expert tensors, transposed and prefixed names."""
    made = getattr(transformers, config)(**SIZES, **more)
    folder = tmp_path / "model"
    transformers.AutoModelForCausalLM.from_config(made).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    check(folder)

    base = transformers.AutoModel.from_config(made)  # without a head, and without the prefix before each name
    shutil.rmtree(folder)
    base.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    _, told = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    if told["missing_keys"]:
        with pytest.raises(ModelError, match="no language model's head"):
            check(folder)
    else:
        check(folder)
