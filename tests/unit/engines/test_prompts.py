from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvray.engines.prompts import ROW_STRIDE, prompt_text, tile_tokens


def test_the_text_is_real_and_in_several_languages() -> None:
    text = prompt_text()
    assert len(text) > 6000
    assert {"é", "ß"} <= set(text)
    assert "def " in text


@given(
    length=st.integers(1, 500),
    context=st.integers(1, 1200),
    rows=st.integers(1, 4),
    prefix=st.lists(st.integers(1000, 1001), max_size=2),
)
def test_every_row_has_exactly_the_asked_for_tokens(length: int, context: int, rows: int, prefix: list[int]) -> None:
    prompts = tile_tokens(range(length), context_tokens=context, rows=rows, prefix=prefix)
    assert [len(row) for row in prompts] == [context] * rows
    assert all(row[: len(prefix)] == prefix[:context] for row in prompts)


def test_a_prompt_longer_than_the_text_repeats_it() -> None:
    assert tile_tokens([7, 8, 9], context_tokens=8, rows=1) == [[7, 8, 9, 7, 8, 9, 7, 8]]


def test_each_row_starts_elsewhere_in_the_text() -> None:
    rows = tile_tokens(range(2000), context_tokens=50, rows=16)
    assert [row[0] for row in rows] == [number * ROW_STRIDE for number in range(16)]


def test_the_prefix_comes_once_per_row() -> None:
    assert tile_tokens([7, 8], context_tokens=5, rows=2, prefix=(1,)) == [[1, 7, 8, 7, 8], [1, 8, 7, 8, 7]]
    assert tile_tokens([7, 8], context_tokens=1, rows=1, prefix=(1,)) == [[1]]


def test_no_tokens_make_no_prompt() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        tile_tokens([], context_tokens=3, rows=1)
