"""The suite's models must be the same bits everywhere: what is pinned here may never change within a suite version."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from kvray.check.suite.files import byte_signs, write_folder, write_gguf
from kvray.check.suite.models import MODELS, Attention
from kvray.check.suite.weights import Tensor, digest_of, fill
from kvray.engines.base import ModelRequest
from kvray.engines.prompts import forced_text, prompt_text
from kvray.engines.transformers import TransformersAdapter
from kvray.models.gguf_header import check_gguf_file

DIGESTS = {
    Attention.FULL: "d869d0cabeb83e63bb198153fe057d9763215f4496813cabadfd8e86cc8001f7",
    Attention.GROUPED: "6461fa8c7e0af75a175e94fa1a95a9596e13b6556000294b0d9454ea1a47a209",
    Attention.SLIDING: "89965500aff823702dcc8c862bf5472927526dbfa3206221e16b7cce335c133c",
}


@pytest.mark.parametrize("attention", list(Attention))
def test_weights_are_the_bits_that_they_were_when_the_suite_was_made(attention: Attention) -> None:
    assert MODELS[attention].digest == DIGESTS[attention]


def test_every_draw_is_exact_and_scales_of_norms_are_round() -> None:
    tensors = {"a": Tensor((3, 5), spread=1.0), "n": Tensor((7,), spread=0.25, centre=1.0, is_norm=True)}
    weights = fill(tensors, seed=1)
    assert weights["a"].dtype == np.float32
    assert np.all(np.abs(weights["a"]) <= 1.0)
    assert np.array_equal(weights["a"] * 2.0**23, np.round(weights["a"] * 2.0**23)), "a draw has 24 bits"
    assert np.array_equal(weights["n"] * 256, np.round(weights["n"] * 256))
    assert np.array_equal((weights["n"] - 1) + np.float32(1), weights["n"])
    assert digest_of(weights) == digest_of(dict(reversed(weights.items())))
    assert digest_of(weights) != digest_of(fill(tensors, seed=2))


@pytest.mark.parametrize("attention", list(Attention))
def test_a_folder_is_a_checkpoint_that_an_engine_takes(attention: Attention, tmp_path: Path) -> None:
    model = MODELS[attention]
    folder = write_folder(model, tmp_path / "model")
    read = load_file(folder / "model.safetensors")
    assert digest_of(read) == model.digest
    TransformersAdapter().check_model(ModelRequest(model_id=str(folder), offline=True))


def test_a_folder_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    model = MODELS[Attention.SLIDING]
    first, second = (write_folder(model, tmp_path / name) for name in ("one", "two"))
    names = sorted(path.name for path in first.iterdir())
    assert names == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in names:
        assert _sha(first / name) == _sha(second / name)


@pytest.mark.parametrize("attention", list(Attention))
def test_a_gguf_file_holds_the_same_weights_in_llama_cpp_s_order(attention: Attention, tmp_path: Path) -> None:
    model = MODELS[attention]
    header = check_gguf_file(write_gguf(model, tmp_path / "model.gguf"))
    assert header.architecture == ("gemma3" if model.has_window else "llama")
    assert len(header.tensors) == len(model.weights)
    assert header.own("attention.head_count_kv") == model.kv_heads
    assert header.own("attention.sliding_window") == model.window


def test_each_byte_of_a_text_is_one_token_that_reads_the_same_everywhere(tmp_path: Path) -> None:
    signs = byte_signs()
    assert len(set(signs)) == 256
    assert (signs[0], signs[ord("A")], signs[ord(" ")]) == ("Ā", "A", "Ġ")
    tokenizer = json.loads((write_folder(MODELS[Attention.FULL], tmp_path / "m") / "tokenizer.json").read_text())
    merged = {"".join(pair) for pair in tokenizer["model"]["merges"]}
    for text in (prompt_text(), forced_text()):
        written = "".join(signs[byte] for byte in text.encode())
        assert not any(pair in written for pair in merged), "a pair that is one token would be two elsewhere"


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
