"""Small files that people write and pass around: plans, profiles, spaces, snippets. Read whole, up to a size that none
has, and written in one go; by path or URI."""

from __future__ import annotations

import errno
from pathlib import Path

from kvray.files.remote import is_uri, read_uri, without_secrets, write_uri


def read_document(path: str | Path, *, most_bytes: int) -> str:
    """The text (UTF-8) of the file at `path`, which may be a device, a pipe or a URI such as `s3://bucket/plan.json`.

    Raises:
        OSError: it cannot be read, or has more than `most_bytes`.
        ValueError: it is not UTF-8, or `path` cannot be one.
    """
    if is_uri(path):
        data = read_uri(str(path), most_bytes=most_bytes + 1)
    else:
        with Path(path).open("rb") as file:
            data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"it has more than {most_bytes:,} bytes")
    return data.decode("utf-8")


def write_document(path: str | Path, text: str) -> None:
    """Put `text` (UTF-8) into the file at `path`, which may be a URI, in place of what was there.

    Raises:
        OSError: it cannot be written; `strerror` says why.
        ValueError: `path` cannot be one.
    """
    if is_uri(path):
        write_uri(str(path), text.encode())
    else:
        Path(path).write_text(text, encoding="utf-8")


def shown_document(path: str | Path) -> str:
    """`path` for messages: a URI without credentials."""
    return without_secrets(str(path)) if is_uri(path) else str(path)
