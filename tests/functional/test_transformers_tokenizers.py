"""Models with every kind of tokenizer file, with none that fits, and with one for something other than English."""

from __future__ import annotations

import base64
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from transformers_samples import MERGES, VOCABULARY, change_config, load, save_image_text_config, save_tiny_model

from kvray.engines.base import ModelInfo, ModelRequest, UnsupportedError
from kvray.engines.prompts import prompt_text
from kvray.engines.transformers import TransformersAdapter
from kvray.errors import ModelError
from kvray.workload import Cell

pytestmark = pytest.mark.usefixtures("one_thread")
CELL = Cell(24, 2, 1)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A checkpoint without its tokenizer."""
    folder = save_tiny_model(tmp_path / "model")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    return folder


def describe(model_id: object) -> ModelInfo:
    return TransformersAdapter().describe_model(ModelRequest(model_id=str(model_id)))


def fed(model_id: object) -> list[int]:
    """The prompt that a measurement feeds, which the model must take."""
    model = load(str(model_id))
    model.prepare(CELL)
    model.generate(2)
    prompt: list[int] = model._prompt_tensor[0].tolist()
    model.close()
    return prompt


def write_tekken(folder: Path) -> None:
    special = ["<unk>", "<s>", "</s>"]
    words = [bytes([byte]) for byte in range(256)]
    config = {
        "pattern": r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+",
        "num_vocab_tokens": len(words),
        "default_vocab_size": len(words) + len(special),
        "default_num_special_tokens": len(special),
        "version": "v3",
    }
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(word).decode(), "token_str": None}
        for rank, word in enumerate(words)
    ]
    controls = [{"rank": rank, "token_str": word, "is_control": True} for rank, word in enumerate(special)]
    (folder / "tekken.json").write_text(json.dumps({"config": config, "vocab": vocab, "special_tokens": controls}))


def write_vocab_and_merges(folder: Path) -> None:
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(VOCABULARY)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in MERGES)]) + "\n")
    change_config(folder, model_type="qwen2", architectures=["Qwen2ForCausalLM"])


def write_dna_tokenizer(folder: Path) -> None:
    made = Tokenizer(WordLevel({word: number for number, word in enumerate("ACGT")}))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(folder)


def test_tekken_json_alone_is_a_tokenizer(bare: Path) -> None:
    write_tekken(bare)
    assert describe(bare).notes == ()
    assert bytes(number - 3 for number in fed(bare)).decode() == prompt_text()[: CELL.context_tokens]


def test_a_vocabulary_and_its_merges_are_a_tokenizer(bare: Path) -> None:
    write_vocab_and_merges(bare)
    assert describe(f"random:{bare}").notes == ()
    assert max(fed(f"random:{bare}")) < len(VOCABULARY)


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="it is installed")
def test_the_library_that_reads_a_tokenizer_is_named_where_it_is_missing(bare: Path) -> None:
    (bare / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\x02")
    with pytest.raises(ModelError, match=r"cannot be read.*pip install sentencepiece\), which reads \*\.model"):
        describe(bare)


def test_a_model_whose_tokenizer_cannot_write_english_is_fed_random_ids(bare: Path) -> None:
    write_dna_tokenizer(bare)
    (note,) = describe(bare).notes
    assert note.startswith("Prompts are random token ids: the tokenizer cannot write English (WordLevel error")
    assert len(set(fed(bare))) > 4
    model = load(bare)
    assert model.count_tokens("ACGT") == 4
    with pytest.raises(UnsupportedError, match="cannot write this text"):
        model.complete("Hello", 2)


def test_a_config_with_a_smaller_vocabulary_than_the_tokenizer_beside_it_is_fed_ids_that_it_knows(bare: Path) -> None:
    folder = change_config(save_tiny_model(bare.parent / "reduced"), vocab_size=96)
    (note,) = describe(f"random:{folder}").notes
    assert note.endswith("and the vocabulary has 96.")
    assert max(fed(f"random:{folder}")) < 96


def test_a_checkpoint_with_another_models_tokenizer_is_refused_before_the_sweep(bare: Path) -> None:
    write_tekken(bare)
    data: dict[str, Any] = json.loads((bare / "tekken.json").read_text())
    data["special_tokens"] = [{"rank": rank, "token_str": f"<{rank}>", "is_control": True} for rank in range(200)]
    data["config"] |= {"default_num_special_tokens": 200, "default_vocab_size": 456}
    (bare / "tekken.json").write_text(json.dumps(data))
    with pytest.raises(ModelError, match=rf"\(it has 456 tokens\), and the model's vocabulary has {len(VOCABULARY)}: "):
        describe(bare)


def test_a_checkpoint_without_a_tokenizer_is_refused_before_the_sweep(bare: Path) -> None:
    with pytest.raises(ModelError, match=r"has no tokenizer\. Put it beside the weights"):
        describe(bare)


def test_the_place_of_an_image_is_in_no_random_prompt(tmp_path: Path) -> None:
    folder = change_config(save_image_text_config(tmp_path), image_token_index=3)
    assert describe(f"random:{folder}").notes == (
        "Prompts are random token ids: there is no tokenizer beside the config.",
    )
    model = load(f"random:{folder}")
    model.prepare(Cell(2000, 2, 1))
    assert 3 not in model._prompt_tensor[0].tolist()
