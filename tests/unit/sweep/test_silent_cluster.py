"""A sweep asks nothing of a cluster that does not answer: it waits, and says so once."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from typing_extensions import override

from kvray.errors import SweepError
from kvray.sweep import session
from kvray.sweep.liveness import Liveness
from kvray.sweep.session import RaySession


class Silent(Liveness):
    """A cluster that does not answer when it is first asked, as often as it is told."""

    def __init__(self, times: int, *, death: str | None = None) -> None:
        self.asked = 0
        self._times = times
        self._death = death

    @override
    def death(self) -> str | None:
        return self._death

    @override
    def is_silent(self) -> bool:
        self.asked += 1
        return self.asked <= self._times


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("kvray"), "propagate", True)
    monkeypatch.setattr(session, "_SILENCE_S", 0.0)
    monkeypatch.setattr(session, "_TOLD_AFTER_S", -1.0)
    return caplog


def joined(liveness: Liveness, scratch: Path) -> RaySession:
    ray = RaySession(address="h:1", scratch=scratch)
    ray._liveness = liveness
    return ray


def test_a_silent_cluster_is_waited_for_and_that_is_said_once(said: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    liveness = Silent(3)
    joined(liveness, tmp_path).wait_while_silent()
    assert liveness.asked == 4
    assert said.messages == ["The Ray cluster does not answer; nothing is started until it does, or is given up."]


def test_one_that_answers_is_not_waited_for(said: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    joined(Silent(0), tmp_path).wait_while_silent()
    assert said.messages == []


def test_an_error_of_rays_is_told_as_the_death_that_explains_it(said: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    joined(Silent(0), tmp_path).look_once_more()
    with pytest.raises(SweepError, match=r"Ray broke down: its head was started anew\."):
        joined(Silent(0, death="its head was started anew"), tmp_path).look_once_more()
