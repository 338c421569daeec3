"""A space in a YAML file: a list of blocks, each a mapping from axes to lists of values.

    - cache: [dynamic, static, "quantized(backend=hqq,nbits=4)"]
      attention: [sdpa, sdpa_flash]
      dtype: [bfloat16]
      compile: [off, default]
    - cache: [sliding_window]
      prefill_chunk: [none, 512]

An axis that a block leaves out takes the values of the engine's default space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from kvray.candidate import MOST_DIGITS, AttentionChoice, CacheChoice, CompileMode, DType
from kvray.errors import InvalidValueError, did_you_mean, sentence_of
from kvray.files.documents import read_document
from kvray.space.search_space import MOST_CANDIDATES, Axes

_MOST_BYTES = 100_000
"""The parser needs seconds for a megabyte."""
_NONE = ("none", "null", "~")


def load_space(path: str | Path, *, otherwise: Axes) -> tuple[Axes, ...]:
    """The blocks in the file at `path`; `otherwise` has the values of axes that a block leaves out.

    Raises:
        InvalidValueError: the file cannot be read, is not such a list, or names an axis or value that does not exist.
    """
    try:
        # Plain strings only: no objects, and `off` is not made a truth value.
        data = yaml.load(read_document(path, most_bytes=_MOST_BYTES), Loader=yaml.BaseLoader)
    except OSError as error:
        raise InvalidValueError(
            f"Cannot read space file {str(path)!r}: {error.strerror}.",
            hint=f"{did_you_mean(path, ('default', 'full'))}A space is default, full, or a YAML file.",
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidValueError(f"Space file {str(path)!r} is not valid YAML: {_reason(error)}.") from error
    _check_size(data, path)
    if not isinstance(data, list) or not data or not all(isinstance(block, dict) for block in data):
        raise InvalidValueError(
            f"Space file {str(path)!r} is not a list of blocks.", hint="Begin each block with a dash: - cache: [static]"
        )
    return tuple(_block(block, f"Block {number} of {str(path)!r}", otherwise) for number, block in enumerate(data, 1))


def _check_size(data: object, path: str | Path) -> None:
    """A few kilobytes of aliases can stand for millions of values."""
    blocks = [block for block in data if isinstance(block, dict)] if isinstance(data, list) else []
    values = sum(len(one) for block in blocks for one in block.values() if isinstance(one, list))
    if values > MOST_CANDIDATES:
        raise InvalidValueError(
            f"Space file {str(path)!r} has {values:,} values.", hint=f"A space may have {MOST_CANDIDATES:,} candidates."
        )


def _block(block: Mapping[str, Any], where: str, otherwise: Axes) -> Axes:
    if unknown := sorted(set(map(str, block)) - set(_AXES)):
        raise InvalidValueError(f"{where}: there is no axis {unknown[0]!r}.", hint=f"There are {', '.join(_AXES)}.")
    changes: dict[str, Any] = {}
    for axis, values in block.items():
        if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            raise InvalidValueError(f"{where}: {axis} is not a list of values.", hint=f"Write it like {axis}: [a, b].")
        field, parse = _AXES[axis]
        try:
            changes[field] = tuple(dict.fromkeys(parse(value) for value in values))
        except InvalidValueError as error:
            hint = f"{error.hint or ''} A value with commas needs quotes.".strip()
            raise InvalidValueError(f"{where}: {error.message}", hint=hint) from error
    return replace(otherwise, **changes)


def _optional_integer(text: str) -> int | None:
    if text.lower() in _NONE:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS and int(text) > 0):
        raise InvalidValueError(f"{text!r} is neither a positive whole number nor none.")
    return int(text)


def _batch_size(text: str) -> int:
    value = _optional_integer(text)
    if value is None:
        raise InvalidValueError(f"batch_size {text!r} is not a positive whole number.")
    return value


_AXES: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "cache": ("caches", CacheChoice.parse),
    "attention": ("attentions", AttentionChoice.parse),
    "dtype": ("dtypes", DType.parse),
    "compile": ("compiles", CompileMode.parse),
    "prefill_chunk": ("prefill_chunks", _optional_integer),
    "weights_limit_mib": ("weights_limits_mib", _optional_integer),
    "batch_size": ("batch_sizes", _batch_size),
}


def _reason(error: Exception) -> str:
    """What is wrong and where; the parser says first what it was reading."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem}, in line {mark.line + 1}, column {mark.column + 1}"
    return sentence_of(error)
