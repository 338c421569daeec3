"""Sequences, mappings and sets that are made when somebody asks: of ten thousand candidates few are shown."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from typing import TypeVar, overload

from typing_extensions import override

T_co = TypeVar("T_co", covariant=True)
V_co = TypeVar("V_co", covariant=True)


class MadeLater(Sequence[T_co]):
    """Like a tuple, and equal to one."""

    @abstractmethod
    def _make(self) -> tuple[T_co, ...]:
        """All of them; asked once."""

    @abstractmethod
    @override
    def __len__(self) -> int: ...

    @cached_property
    def _made(self) -> tuple[T_co, ...]:
        return self._make()

    @overload
    def __getitem__(self, place: int) -> T_co: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[T_co, ...]: ...

    @override
    def __getitem__(self, place: int | slice) -> T_co | tuple[T_co, ...]:
        return self._made[place]

    @override
    def __iter__(self) -> Iterator[T_co]:
        return iter(self._made)

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._made == tuple(other)

    @override
    def __hash__(self) -> int:
        return hash(self._made)

    @override
    def __repr__(self) -> str:
        return repr(self._made)


class FoundLater(Mapping[str, V_co]):
    """Like a dictionary of what `find` says of each key, and equal to one."""

    def __init__(self, keys: Iterable[str], find: Callable[[str], V_co]) -> None:
        self._find = find
        self._known: dict[str, V_co | None] = dict.fromkeys(keys)

    @override
    def __getitem__(self, key: str) -> V_co:
        known = self._known[key]
        if known is None:
            known = self._known[key] = self._find(key)
        return known

    @override
    def __contains__(self, key: object) -> bool:
        return key in self._known

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    @override
    def __len__(self) -> int:
        return len(self._known)

    @override
    def __repr__(self) -> str:
        return repr(dict(self))


class ChosenLater(Set[str]):
    """Like the set of those of `keys` that `is_chosen`, and equal to one."""

    def __init__(self, keys: Iterable[str], is_chosen: Callable[[str], bool]) -> None:
        self._answers = FoundLater(keys, is_chosen)

    @override
    def __contains__(self, key: object) -> bool:
        return key in self._answers and self._answers[str(key)]

    @override
    def __iter__(self) -> Iterator[str]:
        return (key for key in self._answers if key in self)

    @override
    def __len__(self) -> int:
        return sum(1 for _ in self)

    @override
    def __repr__(self) -> str:
        return repr(set(self))
