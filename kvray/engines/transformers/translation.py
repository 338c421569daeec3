"""From what torch and Transformers raise to the contract's errors, the library's own words inside."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kvray.engines.base import OutOfMemoryError, UnsupportedError
from kvray.errors import KvrayError, sentence_of

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
    """Turn what torch and Transformers raise into the contract's errors. Anything else passes as it is.

    So does what a line of kvray raises in between: that is a bug of kvray, not a limit of the library.
    """
    try:
        yield
    except KvrayError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemoryError(sentence_of(error)) from error
    except (ImportError, NotImplementedError) as error:
        raise UnsupportedError(sentence_of(error)) from error
    except (ValueError, AssertionError, AttributeError) as error:
        if _is_raised_by_kvray(error):
            raise
        raise UnsupportedError(sentence_of(error)) from error
    except RuntimeError as error:
        text = sentence_of(error)
        if is_out_of_memory(error):
            raise OutOfMemoryError(text) from error
        if "No available kernel" in text or "No viable backend" in text:
            raise UnsupportedError(f"PyTorch: {text}") from error
        raise


def _is_raised_by_kvray(error: BaseException) -> bool:
    """Whether the innermost line that was running is one of kvray's."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "kvray"
