from __future__ import annotations

import io

import pytest

from kvray.cli.encoding import show_all_signs


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", r"2.5x - +40 % -> 1-3 ... \u9053\xfc"),
        ("latin-1", "2.5× · +40 % -> 1-3 ... \\u9053ü"),
        ("utf-8", "2.5× · +40 % → 1–3 … 道ü"),
    ],
)
def test_what_a_terminal_lacks_is_spelled_plainly_and_nothing_is_lost(encoding: str, shown: str) -> None:
    bytes_ = io.BytesIO()
    stream = io.TextIOWrapper(bytes_, encoding=encoding)
    show_all_signs([stream])
    stream.write("2.5× · +40 % → 1–3 … 道ü")
    stream.flush()
    assert bytes_.getvalue().decode(encoding) == shown


def test_a_stream_that_cannot_be_told_is_left_alone() -> None:
    show_all_signs([io.StringIO()])
