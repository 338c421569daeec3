"""A held file: one holder at a time, who says who it is."""

from __future__ import annotations

import contextlib
import shutil
import threading
from pathlib import Path

import pytest

from kvray.probes.holds import HeldError, exclusively, hold, holder_of


def test_a_held_file_says_who_holds_it_and_is_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.lock"
    with hold(path, {"pid": 7}):
        assert holder_of(path) == {"pid": 7}
    assert not path.exists()
    assert holder_of(path) is None


def test_a_second_holder_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with hold(tmp_path / "a.lock", {"pid": 7}):
        with pytest.raises(HeldError) as error, hold(tmp_path / "a.lock", {"pid": 8}):
            raise AssertionError("held twice")
        assert error.value.holder == {"pid": 7}
        assert holder_of(tmp_path / "a.lock") == {"pid": 7}
    with hold(tmp_path / "a.lock", {"pid": 8}):
        assert holder_of(tmp_path / "a.lock") == {"pid": 8}


def test_what_a_dead_holder_left_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "a.lock").write_text('{"pid": 1, "and": "much longer than what comes now"}')
    with hold(tmp_path / "a.lock", {"pid": 8}):
        assert holder_of(tmp_path / "a.lock") == {"pid": 8}


def test_whoever_asks_for_the_holder_of_what_nobody_holds_removes_it(tmp_path: Path) -> None:
    (tmp_path / "a.lock").write_text("{}")
    assert holder_of(tmp_path / "a.lock") is None
    assert not (tmp_path / "a.lock").exists()


def test_a_hold_ends_with_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(KeyError), hold(tmp_path / "a.lock", {}):
        raise KeyError
    assert not (tmp_path / "a.lock").exists()


def test_a_hold_whose_file_was_removed_keeps_others_out_again_once_it_is_renewed(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "a.lock"
    with hold(path, {"pid": 7}) as held:
        held.renew()
        shutil.rmtree(path.parent)
        held.renew()
        assert holder_of(path) == {"pid": 7}
        with pytest.raises(HeldError), hold(path, {"pid": 8}):
            raise AssertionError("held twice")
    assert not path.exists()


def test_whoever_was_faster_stays_the_holder_of_a_file_that_was_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with hold(path, {"pid": 7}) as first:
        path.unlink()
        with hold(path, {"pid": 8}):
            with pytest.raises(HeldError) as error:
                first.renew()
            assert error.value.holder == {"pid": 8}
        first.renew()
        assert holder_of(path) == {"pid": 7}


def test_the_end_of_a_hold_removes_no_file_that_another_has_made_since(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with contextlib.ExitStack() as other:
        with hold(path, {"pid": 7}):
            path.unlink()
            other.enter_context(hold(path, {"pid": 8}))
        assert holder_of(path) == {"pid": 8}
        with pytest.raises(HeldError), hold(path, {"pid": 9}):
            raise AssertionError("held twice")


def test_whoever_wants_a_file_exclusively_waits_for_the_other(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with exclusively(tmp_path / "a.lock"):
            order.append("second")

    with exclusively(tmp_path / "a.lock") as alone:
        assert alone
        other = threading.Thread(target=second)
        other.start()
        other.join(0.1)
        order.append("first")
    other.join(10)
    assert order == ["first", "second"]
