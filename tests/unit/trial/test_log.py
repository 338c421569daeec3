from __future__ import annotations

from pathlib import Path

from kvray.trial import log
from kvray.trial.log import LIMIT_BYTES, TrialLog


def test_the_tail_is_the_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {number}\n" for number in range(10_000)))
    tail = TrialLog(path).tail()
    assert tail is not None
    assert tail.splitlines() == [f"line {number}" for number in range(9970, 10_000)]


def test_what_is_no_text_is_shown_as_far_as_it_can_be(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\0\0\xff\xfeend\0\n")
    assert TrialLog(path).tail() == "��end"


def test_without_a_log_or_a_word_there_is_no_tail(tmp_path: Path) -> None:
    assert TrialLog(tmp_path / "log").tail() is None
    (tmp_path / "log").touch()
    assert TrialLog(tmp_path / "log").tail() is None


def test_a_long_log_keeps_its_end_and_the_process_goes_on_writing_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("ab", buffering=0) as process:
        process.write(b"x" * LIMIT_BYTES + b"\nbefore\n")
        TrialLog(path).bound()
        process.write(b"after\n")
    assert path.stat().st_size < 2 * log._TAIL_BYTES
    assert str(TrialLog(path).tail()).endswith("\nbefore\nafter")


def test_a_short_log_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a" * LIMIT_BYTES)
    TrialLog(path).bound()
    assert path.stat().st_size == LIMIT_BYTES
