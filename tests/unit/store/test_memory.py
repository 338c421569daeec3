"""A command that reads a large sweep once leaves the process as it was."""

from __future__ import annotations

import gc

import pyarrow as pa
import pytest

from kvray.store.memory import reading_once


def test_cycles_are_not_searched_for_meanwhile_and_are_again_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARROW_DEFAULT_MEMORY_POOL", raising=False)
    before = pa.default_memory_pool().backend_name
    with reading_once():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert pa.default_memory_pool().backend_name == before


def test_an_allocator_that_the_user_has_named_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", "system")
    before = pa.default_memory_pool().backend_name
    with reading_once():
        assert pa.default_memory_pool().backend_name == before
