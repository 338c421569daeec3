"""Small files that people write and pass around: plans, profiles, spaces. Read whole, up to a size that none has."""

from __future__ import annotations

import errno
from pathlib import Path


def read_document(path: str | Path, *, most_bytes: int) -> str:
    """The text (UTF-8) of the file at `path`, which may be a device or a pipe.

    Raises:
        OSError: it cannot be read, or has more than `most_bytes`.
        ValueError: it is not UTF-8, or `path` cannot be one.
    """
    with Path(path).open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"it has more than {most_bytes:,} bytes")
    return data.decode("utf-8")
