"""What PyTorch really raises when memory runs out."""

from __future__ import annotations

import pytest
import torch

from kvray.engines.base import OutOfMemoryError, UnsupportedError
from kvray.engines.transformers.translation import is_out_of_memory, translated_errors


def test_an_allocation_that_the_host_refuses_is_out_of_memory() -> None:
    with pytest.raises(OutOfMemoryError, match="can't allocate memory: you tried to allocate"), translated_errors():
        torch.empty(1 << 50, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("unable to mmap 512 bytes from file </x>: Cannot allocate memory (12)"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("cannot allocate memory"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


@pytest.mark.parametrize("statement", ["None.missing", "int('x')", "raise AssertionError"])
def test_what_a_line_of_kvray_raises_is_a_bug_and_what_a_library_raises_is_not_supported(statement: str) -> None:
    for module, expected in (
        ("kvray.engines.transformers.loaded", (AttributeError, ValueError, AssertionError)),
        ("transformers.generation.utils", UnsupportedError),
    ):
        with pytest.raises(expected), translated_errors():
            exec(statement, {"__name__": module})
