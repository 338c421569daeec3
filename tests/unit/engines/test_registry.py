"""Engines by name."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from kvray.engines import registry
from kvray.engines.registry import get_engine, list_engines
from kvray.engines.transformers import TransformersAdapter
from kvray.errors import EngineError
from kvray.testing.fake import FakeAdapter


def test_the_engine_for_tests_is_listed_only_when_asked_for() -> None:
    assert "transformers" in list_engines()
    assert "fake" not in list_engines()
    assert set(list_engines(include_tests=True)) == {*list_engines(), "fake"}


def test_an_engine_is_found_by_its_name() -> None:
    assert isinstance(get_engine("transformers"), TransformersAdapter)
    assert isinstance(get_engine("fake"), FakeAdapter)


def test_each_call_makes_a_new_adapter() -> None:
    assert get_engine("fake") is not get_engine("fake")


def test_an_unknown_engine_is_named_with_those_that_are_installed() -> None:
    with pytest.raises(EngineError, match=r"^Unknown engine 'nope'\. Allowed: .*transformers.*\.$") as caught:
        get_engine("nope")
    assert "fake" not in str(caught.value)


def with_engine(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    point = EntryPoint(name="mine", value=value, group=registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])


def test_an_engine_whose_library_is_missing_says_what_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    with_engine(monkeypatch, "kvray_engine_that_is_not_installed:Adapter")
    with pytest.raises(
        EngineError, match=r"Engine 'mine' cannot be imported: No module named .* Install what it needs"
    ):
        get_engine("mine")


def test_what_is_no_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with_engine(monkeypatch, "pathlib:PurePath")
    with pytest.raises(EngineError, match=r"Engine 'mine' \(pathlib:PurePath\) is not an EngineAdapter"):
        get_engine("mine")
