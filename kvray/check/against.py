"""What the other side of a check differs in: `--against python=PATH` and `--against env=FILE`."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvray.errors import InvalidValueError, did_you_mean
from kvray.files.documents import read_document, shown_document

_FORMS = "Give python=PATH (another virtual environment's Python) or env=FILE (lines of NAME=VALUE), or both."
_KEYS = ("python", "env")
_MOST_BYTES = 1_000_000
_logger = logging.getLogger("kvray.check")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


@dataclass(frozen=True, kw_only=True)
class Against:
    """The Python and the variables of the other side.

    Attributes:
        python: absolute path of an interpreter, never resolved: an environment's is a link. `None`: this one.
        variables: to be set there. They may be secrets, so only their names may be shown.
    """

    python: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)


def parse_against(values: Sequence[str]) -> Against:
    """What the options `--against` ask for.

    Raises:
        InvalidValueError: one of them has another form, comes twice, or names a file that cannot be used.
    """
    given: dict[str, str] = {}
    for value in values:
        key, separator, rest = value.partition("=")
        if key not in _KEYS or not separator or not rest:
            raise InvalidValueError(f"--against {value!r} is not allowed.", hint=f"{did_you_mean(key, _KEYS)}{_FORMS}")
        if key in given:
            raise InvalidValueError(f"--against {key}= is given twice.", hint=_FORMS)
        given[key] = rest
    return Against(
        python=_interpreter(given["python"]) if "python" in given else None,
        variables=read_variables(given["env"]) if "env" in given else {},
    )


def read_variables(path: str) -> dict[str, str]:
    """The variables in the file at `path`: lines of NAME=VALUE, as in a `.env` file. `#` begins a comment, `export` may
    come first, and values may be quoted. No line of it is shown, as it may hold a secret.

    Raises:
        InvalidValueError: it cannot be read, or lines of it have another form; all of them are named.
    """
    shown = shown_document(path)
    try:
        text = read_document(path, most_bytes=_MOST_BYTES)
    except OSError as error:
        raise InvalidValueError(f"Cannot read variables from {shown!r}: {error.strerror}.", hint=_FORMS) from error
    except ValueError as error:
        raise InvalidValueError(f"Cannot read variables from {shown!r}: it is not UTF-8.", hint=_FORMS) from error
    found: dict[str, str] = {}
    problems: list[str] = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        try:
            parsed = _parsed(line.strip())
            if parsed is not None and parsed[0] in found:
                raise ValueError(f"{parsed[0]} is set a second time")
            found.update([parsed] if parsed is not None else [])
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        raise InvalidValueError(
            f"{shown!r} is not a list of variables: {'; '.join(problems[:10])}.",
            hint="Write NAME=VALUE on each line, with quotes where a value holds '#', quotes or outer spaces.",
        )
    if not found:
        _logger.warning("%r sets no variable, so both sides have the same environment variables.", shown)
    return found


def _interpreter(path: str) -> str:
    """The interpreter at `path`, or that of the virtual environment in the folder `path`."""
    named = Path(path).expanduser().absolute()
    inside = named / "bin" / "python"
    return str(inside if inside.exists() else named)


def _parsed(line: str) -> tuple[str, str] | None:
    """Name and value in `line`; `None` in an empty one or a comment."""
    if not line or line.startswith("#"):
        return None
    name, separator, rest = line.removeprefix("export ").partition("=")
    name = name.strip()
    if not separator:
        raise ValueError("there is no '='")
    if not _NAME.fullmatch(name):
        raise ValueError("what comes before '=' is no variable's name")
    value = _value(rest.strip())
    if "\0" in value:
        raise ValueError(f"the value of {name} holds a null character")
    return name, value


def _value(text: str) -> str:
    if text[:1] not in ("'", '"'):
        return re.split(r"(?:^|\s)#", text, maxsplit=1)[0].strip()
    quote = text[0]
    inner = r"(?:\\.|[^\"\\])*" if quote == '"' else r"[^']*"
    quoted = re.fullmatch(rf"{quote}({inner}){quote}(?:\s*|\s+#.*)", text)
    if quoted is None:
        raise ValueError("a quoted value does not end, or something follows it")
    if quote == "'":
        return quoted[1]
    return re.sub(r"\\(.)", lambda escaped: _ESCAPES.get(escaped[1], escaped[1]), quoted[1])
