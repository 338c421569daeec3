"""Large arrays computed on several cores: numpy lets other threads run meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_THREADS = 2
_WORTH_A_THREAD = 2_000


def computed_ahead(do: Callable[[T], R], items: Iterable[T], *, rows: int) -> Iterator[R]:
    """What `do` returns for each of `items`, in their order. While the caller looks at one, threads compute the next.

    Args:
        rows: how many the arrays have that are computed; few are not worth a thread.
    """
    if rows < _WORTH_A_THREAD:
        yield from map(do, items)
        return
    with ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(do, items)
