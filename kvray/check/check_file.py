"""`check.json`: written whole, read with every problem named."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from kvray.check.result import CHECK_VERSION, CheckResult
from kvray.errors import OutputError, ResultsError, describe_problems
from kvray.files.documents import read_document, shown_document, write_document
from kvray.files.file_systems import write_whole
from kvray.files.remote import is_uri

MOST_BYTES = 64 << 20
_OTHER_FILES = {
    "plan_version": "it is a plan",
    "manifest_version": "it is the manifest of a sweep",
    "context_lengths": "it is the profile of a workload",
    "model_type": "it is the config of a model",
}
"""Files that are mistaken for results of a check, each by a key that it has."""


def write_check(result: CheckResult, path: str | Path) -> None:
    """Write `result` to `path`, which may be a URI, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    write_output(path, result.to_json())


def write_output(path: str | Path, text: str) -> None:
    """Put `text` at `path`, which may be a URI, in place of what was there.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        if is_uri(path):
            write_document(path, text)
        else:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_whole(Path(path), text.encode())
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise OutputError(f"Cannot write {shown_document(path)!r}: {why.rstrip('.')}.") from error


def read_check(path: str | Path) -> CheckResult:
    """The result in the file at `path`, which may be a URI.

    Raises:
        ResultsError: it is missing, no result of a check, damaged, or of a version that this kvray does not read.
    """
    return parse_check(read_text(path, most_bytes=MOST_BYTES, hint=_WHERE_THEY_ARE), shown=shown_document(path))


def read_text(path: str | Path, *, most_bytes: int, hint: str) -> str:
    """The text of the file at `path`, which may be a URI.

    Raises:
        ResultsError: it cannot be read, or has more than `most_bytes`.
    """
    try:
        return read_document(path, most_bytes=most_bytes)
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ResultsError(f"Cannot read {shown_document(path)!r}: {why.rstrip('.')}.", hint=hint) from error


def parse_json(text: str, problem: str) -> object:
    """What `text` holds.

    Raises:
        ResultsError: it is not JSON; `problem` begins the message.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{problem}: it is not JSON ({error}).") from error


def parse_check(text: str, *, shown: str) -> CheckResult:
    """The result that `text` holds, called `shown` in messages.

    Raises:
        ResultsError: as `read_check`.
    """
    _check_version(parse_json(text, f"{shown!r} is not a result of a check"), shown)
    try:
        return CheckResult.model_validate_json(text)
    except ValidationError as error:
        raise ResultsError(f"{shown!r} is not a valid result of a check: {describe_problems(error)}.") from error


_WHERE_THEY_ARE = "kvray check writes check.json into its output folder."


def _check_version(data: object, shown: str) -> None:
    if not isinstance(data, dict) or "check_version" not in data:
        keys = data if isinstance(data, dict) else {}
        what = next((known for key, known in _OTHER_FILES.items() if key in keys), "it has no check_version")
        raise ResultsError(f"{shown!r} is not a result of a check: {what}.", hint=_WHERE_THEY_ARE)
    version = data["check_version"]
    if version == CHECK_VERSION and not isinstance(version, bool):
        return
    newer = isinstance(version, int) and version > CHECK_VERSION
    raise ResultsError(
        f"{shown!r} has check_version {version!r}; this kvray reads version {CHECK_VERSION}.",
        hint="Upgrade kvray, or check again." if newer else "Check again.",
    )
