"""`MadeLater`: a sequence whose objects are made when somebody asks for one. Of ten thousand candidates few are shown."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TypeVar, overload

from typing_extensions import override

T_co = TypeVar("T_co", covariant=True)


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
