"""Every error: one line of text, an exit code of its own."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from kvray import errors
from kvray.candidate import DType
from kvray.errors import InvalidValueError, KvrayError, describe_problems, did_you_mean, sentence_of


def test_every_error_has_an_exit_code_of_its_own() -> None:
    classes = [
        one
        for _, one in inspect.getmembers(errors, inspect.isclass)
        if issubclass(one, KvrayError) and one is not KvrayError
    ]
    codes = {one.__name__: one.exit_code for one in classes}
    assert len(set(codes.values())) == len(codes) == 15
    assert KvrayError.exit_code not in codes.values(), "that one is for what nobody foresaw"
    assert [name for name, code in codes.items() if code == 1] == ["RegressionError"]


def test_the_page_of_exit_codes_lists_those_of_all_errors() -> None:
    page = (Path(__file__).parents[2] / "docs" / "faults.md").read_text(encoding="utf-8")
    listed = [int(code) for code in re.findall(r"^\| (\d+) \|", page.partition("## Exit codes")[2], re.MULTILINE)]
    classes = inspect.getmembers(errors, lambda one: inspect.isclass(one) and issubclass(one, KvrayError))
    assert listed == sorted({0, *(one.exit_code for _, one in classes)})


def test_the_hint_follows_the_message() -> None:
    assert str(KvrayError("It failed.", hint="Do that.")) == "It failed. Do that."
    assert str(KvrayError("It failed.")) == "It failed."


def test_what_is_not_allowed_is_named_with_what_is() -> None:
    error = InvalidValueError.not_one_of("colour", 7, ["red", "blue"])
    assert str(error) == "Unknown colour '7'. Allowed: red, blue."


class Sample(BaseModel):
    model_config = ConfigDict(extra="forbid")

    number: int
    names: tuple[str, ...] = ()


def problems(**values: object) -> str:
    with pytest.raises(ValidationError) as caught:
        Sample.model_validate(values)
    return describe_problems(caught.value)


def test_all_problems_stand_on_one_line_with_field_and_value() -> None:
    text = problems(number="x", names=("a", 2), more=1)
    assert [part.partition(":")[0] for part in text.split("; ")] == ["number", "names.1", "more"]
    assert text.endswith("more: there is no such key")
    assert "(got 'x')" in text


def test_a_missing_field_is_not_shown_with_the_whole_input() -> None:
    assert problems() == "number: Field required"


def test_a_long_value_is_shortened() -> None:
    text = problems(number="x" * 1000)
    assert text.endswith("xxx...)")
    assert len(text) < 200


@pytest.mark.parametrize(
    ("given", "meant"),
    [("bfloat61", "bfloat16"), ("BF16", "bfloat16"), ("fp16", "float16"), ("floa32", "float32"), ("int4", None)],
)
def test_a_typo_or_another_word_is_answered_with_what_may_have_been_meant(given: str, meant: str | None) -> None:
    error = InvalidValueError.not_one_of("dtype", given, list(DType))
    suggestion = f"Did you mean {meant!r}? " if meant else ""
    assert str(error) == f"Unknown dtype {given!r}. {suggestion}Allowed: float32, float16, bfloat16."


def test_another_word_is_only_suggested_where_it_is_allowed() -> None:
    assert did_you_mean("gpu", ["cpu", "cuda"]) == "Did you mean 'cuda'? "
    assert did_you_mean("half", ["latency", "memory"]) == ""
    assert did_you_mean("x" * 100_000, ["latency"]) == ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\n\n  one\ntwo", "one"),
        (
            "Class validation error for validator 'validate_architecture':\n    ValueError: The hidden size is odd.",
            "Class validation error for validator 'validate_architecture': ValueError: The hidden size is odd.",
        ),
        (
            "backend='inductor' raised:\nInductorError:\nNo C compiler.\n\nSet TORCHDYNAMO_VERBOSE=1 for more.",
            "backend='inductor' raised: InductorError: No C compiler.",
        ),
        ("it ends so:", "it ends so:"),
        (
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79.11 GiB, of which 1.2 GiB are free. "
            + "If reserved memory is large, try PYTORCH_ALLOC_CONF=expandable_segments:True. " * 5,
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79.11 GiB, of which 1.2 GiB are free. "
            "If reserved memory is large, try PYTORCH_ALLOC_CONF=expandable_segments:True.",
        ),
        ("No such file: /a.b/c.d. version 1.2. is not 3.4.", "No such file: /a.b/c.d. version 1.2. is not 3.4."),
        ("word " * 100, "word " * 47 + "…"),
    ],
)
def test_a_librarys_error_is_told_in_the_sentence_that_tells(text: str, told: str) -> None:
    assert sentence_of(ValueError(text)) == told


def test_an_error_of_kvrays_own_is_told_whole() -> None:
    error = KvrayError("It\nfailed. " * 40, hint="Do that.")
    assert sentence_of(error) == " ".join(str(error).split())
    assert sentence_of(error).endswith("Do that.")


def test_an_error_without_words_is_told_by_its_type() -> None:
    assert sentence_of(KeyboardInterrupt()) == "KeyboardInterrupt"
