"""How this process holds memory while it reads the records of a large sweep."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator

import pyarrow as pa


@contextlib.contextmanager
def reading_once() -> Iterator[None]:
    """For a command that reads a sweep, shows it and ends.

    Of Arrow's allocators the one is used that keeps least of what was freed, unless the user has named one. Python does
    not search for cycles meanwhile: among so many objects that takes a tenth of the time, and there are none. Nor does
    it search among these objects when the process ends.
    """
    before, was_on = pa.default_memory_pool(), gc.isenabled()
    if "ARROW_DEFAULT_MEMORY_POOL" not in os.environ:
        with contextlib.suppress(NotImplementedError):  # not every platform's Arrow has it
            pa.set_memory_pool(pa.jemalloc_memory_pool())
    gc.disable()
    try:
        yield
    finally:
        pa.set_memory_pool(before)
        gc.freeze()
        if was_on:
            gc.enable()
