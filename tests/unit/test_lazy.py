"""What is made later is what would have been made at once, and nothing is made for somebody who did not ask."""

from __future__ import annotations

import pytest
from typing_extensions import override

from kvray.lazy import ChosenLater, FoundLater, MadeLater


class Letters(MadeLater[str]):
    def __init__(self) -> None:
        self.made = 0

    @override
    def _make(self) -> tuple[str, ...]:
        self.made += 1
        return tuple("abc")

    @override
    def __len__(self) -> int:
        return 3


def test_a_sequence_is_made_once_by_whoever_looks_into_it() -> None:
    letters = Letters()
    assert len(letters) == 3
    assert not letters.made
    expected = ("a", "b", "c")
    assert (letters[0], letters[1:], [*letters]) == ("a", ("b", "c"), ["a", "b", "c"])
    assert letters == expected
    assert expected == letters
    assert letters != expected[:2]
    assert (hash(letters), repr(letters), letters.made) == (hash(tuple("abc")), repr(tuple("abc")), 1)


def test_a_mapping_finds_what_it_is_asked_for_once() -> None:
    asked: list[str] = []

    def find(key: str) -> str:
        asked.append(key)
        return key.upper()

    found = FoundLater("abc", find)
    assert (len(found), [*found], "a" in found, "d" in found, found.get("d")) == (3, ["a", "b", "c"], True, False, None)
    assert not asked
    assert (found["b"], found["b"], asked) == ("B", "B", ["b"])
    with pytest.raises(KeyError):
        _ = found["d"]
    assert found == {"a": "A", "b": "B", "c": "C"}
    assert repr(found) == repr(dict(found))


def test_a_set_asks_of_those_that_somebody_looks_for() -> None:
    asked: list[str] = []

    def is_chosen(key: str) -> bool:
        asked.append(key)
        return key != "b"

    chosen = ChosenLater("abc", is_chosen)
    assert ("a" in chosen, "b" in chosen, "d" in chosen, asked) == (True, False, False, ["a", "b"])
    expected: object = {"a", "c"}
    assert chosen == expected
    assert repr(chosen) == repr({*chosen})
