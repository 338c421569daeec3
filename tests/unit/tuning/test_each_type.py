"""One type of GPU on which something cannot be done."""

from __future__ import annotations

import pytest

from kvray.errors import ModelError
from kvray.tuning.each_type import each_type


def refusing(*refused: str) -> object:
    def ask(name: str) -> str:
        if name in refused:
            raise ModelError(f"no room on {name}")
        return name.lower()

    return ask


def test_the_others_go_on_without_it_and_the_reason_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert each_type(["A", "B"], refusing("A")) == ["b"]  # type: ignore[arg-type]
    assert "left out: no room on A" in caplog.text


def test_what_fails_on_every_type_is_the_sweeps_own_error() -> None:
    with pytest.raises(ModelError, match="no room on A"):
        each_type(["A", "B"], refusing("A", "B"))  # type: ignore[arg-type]
