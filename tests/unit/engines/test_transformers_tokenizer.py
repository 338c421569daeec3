"""What is fed to a model: the texts as its tokenizer writes them, or random ids and the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import CONFIG_MAPPING, PreTrainedTokenizerFast

from kvray.engines.base import ModelRequest, UnsupportedError
from kvray.engines.hugging_face.ordinary_ids import ordinary_ids
from kvray.engines.hugging_face.texts import ModelTexts
from kvray.engines.hugging_face.tokenizer import choose_texts, encoded, has_tokenizer, load_tokenizer
from kvray.errors import ModelError
from kvray.workload import Cell

CHECKPOINT, RANDOM = ModelRequest(model_id="org/name"), ModelRequest(model_id="random:folder")
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
"""One for each byte; ids begin at 2."""


def for_bytes(*added: str) -> Any:
    words = {word: number for number, word in enumerate(["<s>", "</s>", *LETTERS])}
    made = Tokenizer(BPE(vocab=words, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    tokenizer.add_tokens(list(added))
    return tokenizer


def for_dna(*, unknown: str | None) -> Any:
    words = ["<s>", "</s>", "A", "C", "G", "T", *([unknown] if unknown else [])]
    made = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token=unknown or "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token=unknown)


def test_texts_are_written_where_the_tokenizer_fits() -> None:
    choice = choose_texts(CHECKPOINT, for_bytes(), 258)
    assert choice.note is None
    assert choice.texts is not None
    assert choice.texts.prefix == ()
    assert max(choice.texts.prompt) < 258


def test_tokens_beyond_the_vocabulary_that_no_text_needs_do_no_harm() -> None:
    assert len(for_bytes("<padding>", "<tool>")) == 260
    assert choose_texts(CHECKPOINT, for_bytes("<padding>", "<tool>"), 258).texts is not None


def test_a_checkpoint_with_the_tokenizer_of_another_model_is_refused_with_both_numbers() -> None:
    message = r"writes ids up to \d+ \(it has 258 tokens\), and the model's vocabulary has 96: they do not belong"
    with pytest.raises(ModelError, match=message) as error:
        choose_texts(CHECKPOINT, for_bytes(), 96)
    assert error.value.exit_code == 4


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (None, "there is no tokenizer beside the config"),
        (for_bytes(), r"the tokenizer writes ids up to \d+, and the vocabulary has 96"),
        (for_dna(unknown=None), r"the tokenizer cannot write English \(WordLevel error: Missing \[UNK\]"),
        (for_dna(unknown="?"), "the tokenizer is not made for English: most of it becomes unknown tokens"),
    ],
)
def test_random_ids_are_fed_and_noted_where_texts_cannot_be(tokenizer: Any, reason: str) -> None:
    choice = choose_texts(RANDOM, tokenizer, 96)
    assert choice.texts is None
    with pytest.raises(AssertionError, match=f"^Prompts are random token ids: {reason}"):
        raise AssertionError(choice.note)


def test_a_text_that_the_tokenizer_cannot_write_is_the_texts_fault() -> None:
    assert encoded(for_dna(unknown=None), "ACGT")["input_ids"] == [2, 3, 4, 5]
    with pytest.raises(UnsupportedError, match=r"cannot write this text \(WordLevel error"):
        encoded(for_dna(unknown=None), "Hello")


def test_random_prompts_hold_no_id_with_a_meaning() -> None:
    text = {"model_type": "llama", "vocab_size": 40, "bos_token_id": 1, "eos_token_id": [2, 5]}
    config = CONFIG_MAPPING["llava"](text_config=text, image_token_index=7)
    usual = ordinary_ids(config)
    assert {1, 2, 5, 7}.isdisjoint(usual)
    rows = ModelTexts(None, usual).prompts(Cell(500, 4, 2))
    assert set(rows[0]) == set(usual)
    assert rows[0] != rows[1]


def test_all_ids_are_drawn_where_every_one_has_a_meaning() -> None:
    assert ordinary_ids(CONFIG_MAPPING["llama"](vocab_size=2, bos_token_id=0, eos_token_id=1)) == [0, 1]


@pytest.mark.parametrize(
    ("names", "is_one"),
    [
        (["tokenizer.json"], True),
        (["tekken.json"], True),
        (["tokenizer.model"], True),
        (["vocab.json", "merges.txt"], True),
        (["source.spm"], True),
        (["config.json"], False),
        (["tokenizer_own.py"], False),
    ],
)
def test_files_of_a_tokenizer_are_known_by_their_names(names: list[str], is_one: bool, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert has_tokenizer(tmp_path) == is_one


def test_a_bare_config_needs_no_tokenizer_and_a_checkpoint_does(tmp_path: Path) -> None:
    assert load_tokenizer(RANDOM, tmp_path) is None
    with pytest.raises(ModelError, match=r"has no tokenizer\. Put it beside the weights"):
        load_tokenizer(CHECKPOINT, tmp_path)
