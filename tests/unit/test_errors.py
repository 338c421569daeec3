"""Every error: one line of text, an exit code of its own."""

from __future__ import annotations

import inspect

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from kvray import errors
from kvray.candidate import DType
from kvray.errors import InvalidValueError, KvrayError, describe_problems, did_you_mean, first_line


def test_every_error_has_an_exit_code_of_its_own() -> None:
    classes = [
        one
        for _, one in inspect.getmembers(errors, inspect.isclass)
        if issubclass(one, KvrayError) and one is not KvrayError
    ]
    codes = {one.__name__: one.exit_code for one in classes}
    assert len(set(codes.values())) == len(codes) == 12
    assert all(code > 1 for code in codes.values()), "1 is for what nobody foresaw"


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


def test_the_first_line_of_an_error_is_its_first_line_with_text() -> None:
    assert first_line(ValueError("\n\n  one\ntwo")) == "one"


def test_an_error_without_text_is_named_by_its_type() -> None:
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"
