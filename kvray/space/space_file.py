"""A space in a YAML file: a list of blocks, each a mapping from axes to lists of values.

    - cache: [dynamic, static, "quantized(backend=hqq,nbits=4)"]
      attention: [sdpa, sdpa_flash]
      dtype: [bfloat16]
      compile: [off, default]
    - cache: [sliding_window]
      prefill_chunk: [none, 512]

The axes are those that the engine declares, `batch_size` and `parallelism`. An axis that a block leaves out takes the
values of the engine's default space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kvray.candidate import MOST_DIGITS
from kvray.errors import InvalidValueError, did_you_mean, sentence_of
from kvray.files.documents import read_document
from kvray.space.axis import Axis, AxisKind, Scale
from kvray.space.search_space import MOST_CANDIDATES, SpaceBlock

_MOST_BYTES = 100_000
"""The parser needs seconds for a megabyte."""


def load_space(path: str | Path, *, axes: Sequence[Axis], otherwise: SpaceBlock) -> tuple[SpaceBlock, ...]:
    """The blocks in the file at `path`.

    Args:
        axes: what the engine declares.
        otherwise: has the values of axes that a block leaves out.

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
    known = {axis.name: axis for axis in (*axes, *_COUNTS)}
    return tuple(
        otherwise.having(_values(block, f"Block {number} of {str(path)!r}", known))
        for number, block in enumerate(data, 1)
    )


def _check_size(data: object, path: str | Path) -> None:
    """A few kilobytes of aliases can stand for millions of values."""
    blocks = [block for block in data if isinstance(block, dict)] if isinstance(data, list) else []
    values = sum(len(one) for block in blocks for one in block.values() if isinstance(one, list))
    if values > MOST_CANDIDATES:
        raise InvalidValueError(
            f"Space file {str(path)!r} has {values:,} values.", hint=f"A space may have {MOST_CANDIDATES:,} candidates."
        )


def _values(block: Mapping[str, Any], where: str, known: Mapping[str, Axis]) -> dict[str, tuple[Any, ...]]:
    if unknown := sorted(set(map(str, block)) - set(known)):
        hint = f"There are {', '.join(known)}. {did_you_mean(unknown[0], known)}".strip()
        raise InvalidValueError(f"{where}: there is no axis {unknown[0]!r}.", hint=hint)
    found: dict[str, tuple[Any, ...]] = {}
    for axis, values in block.items():
        if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            raise InvalidValueError(f"{where}: {axis} is not a list of values.", hint=f"Write it like {axis}: [a, b].")
        try:
            found[axis] = tuple(dict.fromkeys(known[axis].parse(value) for value in values))
        except InvalidValueError as error:
            hint = f"{error.hint or ''} A value with commas needs quotes.".strip()
            raise InvalidValueError(f"{where}: {error.message}", hint=hint) from error
    return found


def _count_of(name: str) -> Axis:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS and int(text) > 0):
            raise InvalidValueError(f"{name} {text!r} is not a positive whole number.")
        return int(text)

    return Axis(name=name, title=name.replace("_", " "), kind=AxisKind.NUMBER, scale=Scale.LOG, parser=parse)


_COUNTS = tuple(_count_of(name) for name in ("batch_size", "parallelism"))
"""Axes that no engine declares: sequences, which are the workload's, and GPUs."""


def _reason(error: Exception) -> str:
    """What is wrong and where; the parser says first what it was reading."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem}, in line {mark.line + 1}, column {mark.column + 1}"
    return sentence_of(error)
