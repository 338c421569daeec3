"""What is wrong with one value of a batch file, in plain words instead of Pydantic's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KINDS = {
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be on or off",
    "string": "must be one text",
}
_LONGEST = 60


def plain_problem(key: str, problem: Mapping[str, Any]) -> str:
    """One of `ValidationError.errors()`, told of the value of `key`, the whole file where that is empty."""
    kind, value = str(problem["type"]), problem["input"]
    if kind == "value_error":
        return f"{key}: {problem['msg'].removeprefix('Value error, ')}"
    if kind in ("too_short", "string_too_short"):
        return f"{key} is empty"
    if kind == "tuple_type":
        return _no_list(key, value)
    if kind in ("model_type", "dict_type"):
        return _no_mapping(key, value)
    return f"{key}: {_what_it_must_be(kind, problem)} (got {str(value)[:_LONGEST]!r})"


def split_name(entry: object) -> str | None:
    """The model that `- random: ./tiny` means: YAML reads a colon with a space after it as a key."""
    if isinstance(entry, Mapping) and len(entry) == 1 and isinstance(path := entry.get("random"), str):
        return f"random:{path}"
    return None


def _no_list(key: str, value: object) -> str:
    if value == "":
        return f"{key} is empty: write one value a line below it, each after a dash"
    if isinstance(value, str):
        return f"{key} takes a list: write [{value[:_LONGEST]}]"
    return f"{key} takes a list: write each value after a dash"


def _no_mapping(key: str, value: object) -> str:
    if not key:
        return "the file has keys: models, and defaults where there are some"
    if value == "":
        return f"{key} is empty: write KEY: VALUE below it, or leave it out"
    return f"{key} takes keys of its own: write KEY: VALUE below it"


def _what_it_must_be(kind: str, problem: Mapping[str, Any]) -> str:
    if kind == "enum":
        return f"must be one of {problem['ctx']['expected']}"
    if kind.endswith(("_type", "_parsing")):
        return _KINDS.get(kind.partition("_")[0], str(problem["msg"]))
    return str(problem["msg"]).replace("Input should be", "must be")
