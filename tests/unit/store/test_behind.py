"""Writing behind the back of who measures."""

from __future__ import annotations

import threading

import pytest

from kvray.store.behind import WriteBehind

LONG_S = 30.0


def test_who_asks_waits_no_longer_than_it_wants_and_later_requests_are_one_write() -> None:
    goes_on, begun, writes = threading.Event(), threading.Event(), []

    def write() -> None:
        begun.set()
        assert goes_on.wait(LONG_S)
        writes.append(threading.current_thread().name)

    behind = WriteBehind(write)
    assert not behind.ask(within_s=0.0)
    assert begun.wait(LONG_S)
    assert not any(behind.ask(within_s=0.0) for _ in range(3))
    assert writes == []
    goes_on.set()
    behind.wait()
    assert len(writes) == 2, "the one under way, and one for the three that were asked for meanwhile"
    assert behind.ask(within_s=LONG_S)
    assert len(writes) == 3
    assert threading.current_thread().name not in writes


def test_what_a_write_raises_is_raised_once_in_who_waits() -> None:
    def write() -> None:
        raise ZeroDivisionError("a fault")

    behind = WriteBehind(write)
    with pytest.raises(ZeroDivisionError, match="a fault"):
        behind.ask(within_s=LONG_S)
    behind.wait()


def test_where_no_further_thread_can_be_started_who_asks_writes_and_the_next_one_has_a_thread_again() -> None:
    writers: list[str] = []
    behind = WriteBehind(lambda: writers.append(threading.current_thread().name))
    before = threading.stack_size(2**46)  # more than there are addresses
    try:
        assert behind.ask(within_s=0.0)
    finally:
        threading.stack_size(before)
    assert behind.ask(within_s=LONG_S)
    assert writers == [threading.current_thread().name, "kvray-write-behind"]
