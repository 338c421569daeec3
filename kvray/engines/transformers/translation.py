"""From what torch and Transformers raise to the contract's errors, the library's own words inside."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kvray.engines.base import OutOfMemoryError, UnsupportedError
from kvray.errors import KvrayError, first_line

_NO_MEMORY = ("can't allocate memory", "not enough memory", "cannot allocate memory", "std::bad_alloc")
"""What PyTorch's own RuntimeErrors say where the host has no memory left: its allocator, a file's mapping, C++."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether host or device memory ran out, whatever type PyTorch gives that."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    told = (*_NO_MEMORY, os.strerror(errno.ENOMEM).lower())  # the system speaks the user's language
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in told)


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn what torch and Transformers raise into the contract's errors; anything else passes as it is."""
    try:
        yield
    except KvrayError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemoryError(first_line(error)) from error
    except (ImportError, NotImplementedError, ValueError, AssertionError, AttributeError) as error:
        raise UnsupportedError(first_line(error)) from error
    except RuntimeError as error:
        text = first_line(error)
        if is_out_of_memory(error):
            raise OutOfMemoryError(text) from error
        if "No available kernel" in text or "No viable backend" in text:
            raise UnsupportedError(f"PyTorch: {text}") from error
        raise
