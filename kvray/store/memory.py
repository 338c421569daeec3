"""How Arrow, in which records are read, holds memory."""

from __future__ import annotations

import contextlib
import os

import pyarrow as pa


def hold_little_memory() -> None:
    """Use the allocator of Arrow's that keeps least of what was freed, unless the user has named one. For a command of
    its own: it is the whole process's."""
    if "ARROW_DEFAULT_MEMORY_POOL" not in os.environ:
        with contextlib.suppress(NotImplementedError):  # not every platform's Arrow has it
            pa.set_memory_pool(pa.jemalloc_memory_pool())
