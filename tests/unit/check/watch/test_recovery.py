"""A watched configuration becomes slow for a moment and is back: the first observation that shows it says so."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence
from itertools import cycle

import pytest
from observations import WATCH_START, plain_observation

from kvray.analysis.comparison import ComparedMetric
from kvray.check.watch.events import EventKind, WatchEvent, WatchState
from kvray.check.watch.levels import Watched
from kvray.check.watch.observed import levels
from kvray.check.watch.states import Standing, judge, standing_json
from kvray.check.watch.telling import event_json, events_of
from kvray.store.history import Observation, ObservationRole

BEFORE = 7
FIGURES = {
    ComparedMetric.TTFT: ("ttft_ms", 500.0, 856.0),
    ComparedMetric.DECODE: ("decode_tok_s", 140.0, 83.0),
    ComparedMetric.MEMORY: ("peak_mib", 292.0, 292.0),
}
SITTINGS = (0.3, -0.9, 1.1, 0.0, -0.4, 0.8, -1.2, 0.6, -0.2, -0.7, 0.5, 1.0)
"""In standard deviations: how far each sitting is off."""
PROCESSES = (0.7, -1.0, 0.2, -0.4, 1.1, -0.6)


class SlowedWatch:
    """Seven observations of 500 ms, `slow` of 856 ms, and then again 500 ms, each of them `noise` off."""

    def __init__(self, slow: int, noise: float) -> None:
        self._noise = noise
        self._standings: Mapping[Watched, Standing] = {}
        self._luck = cycle(SITTINGS)
        self.rows: list[Observation] = []
        self.events: list[WatchEvent] = []
        for number in range(BEFORE + slow):
            self.observe(is_slow=number >= BEFORE)

    def observe(self, *, is_slow: bool = False) -> list[WatchState]:
        luck = {metric: next(self._luck) for metric in FIGURES}
        if self._take(ObservationRole.WINNER, 3, luck, is_slow):
            self._take(ObservationRole.CONFIRM, 6, luck, is_slow)
        return [self._standings[metric].state for metric in (ComparedMetric.TTFT, ComparedMetric.DECODE)]

    def _take(self, role: ObservationRole, processes: int, luck: Mapping[ComparedMetric, float], is_slow: bool) -> bool:
        number = sum(one.role is ObservationRole.WINNER for one in self.rows) - (role is ObservationRole.CONFIRM)
        figures: dict[str, object] = {}
        for metric, (name, usual, slow) in FIGURES.items():
            off = self._noise * (0.1 if metric is ComparedMetric.MEMORY else 1.0)
            level = (slow if is_slow else usual) * (1 + 0.7 * off * luck[metric])
            each = tuple(level * (1 + off * one) for one in PROCESSES[:processes])
            figures |= {name: sum(each) / processes, f"{name}_each": each}
        row = plain_observation(
            observation_id=f"{number:04}-{list(ObservationRole).index(role)}",
            observed_at=WATCH_START + dt.timedelta(minutes=number),
            role=role,
            processes=processes,
            anchor=f"CPU, {1 if is_slow else 2} threads",
            copy_gb_s=70.0,
            matmul_gflop_s=35.0,
            **figures,
        )
        judged = judge([*self.rows, row], self._standings, after_rounds=role is ObservationRole.CONFIRM)
        self._standings = {one.watched: one.standing for one in judged}
        events = events_of(row, judged, [*self.rows, row], "c of m")
        self.events += events
        self.rows.append(dataclasses.replace(row, standing=standing_json(self._standings), events=event_json(events)))
        return any(one.needs_rounds for one in judged)


def recoveries(events: Sequence[WatchEvent]) -> dict[ComparedMetric | None, WatchEvent]:
    return {one.metric: one for one in events if one.kind is EventKind.RECOVERED}


@pytest.mark.parametrize("slow", [1, 2, 3])
@pytest.mark.parametrize("noise", [0.02, 0.04])
def test_the_first_observation_that_is_back_is_told_as_recovered_with_its_date_and_size(
    slow: int, noise: float
) -> None:
    watch = SlowedWatch(slow, noise)
    assert watch.observe() == [WatchState.RECOVERED, WatchState.RECOVERED]
    assert watch.observe() == [WatchState.OK, WatchState.OK]
    for metric in (ComparedMetric.TTFT, ComparedMetric.DECODE):
        _, usual, slow_figure = FIGURES[metric]
        point = recoveries(watch.events)[metric].change_point
        assert point is not None
        assert point.at == WATCH_START + dt.timedelta(minutes=BEFORE + slow)
        assert point.before == pytest.approx(slow_figure, rel=2 * noise)
        assert point.after == pytest.approx(usual, rel=2 * noise)
        assert levels(metric, watch.rows)[-1][2] == pytest.approx(usual, rel=2 * noise)


@pytest.mark.parametrize("slow", [1, 2, 3])
def test_much_noise_delays_the_recovery_by_two_observations_at_most(slow: int) -> None:
    watch = SlowedWatch(slow, 0.1)
    back = [watch.observe() for _ in range(4)]
    assert back[-1] == [WatchState.OK, WatchState.OK]
    found = recoveries(watch.events)
    confirmed = {one.metric for one in watch.events if one.kind is EventKind.CONFIRMED}
    assert found.keys() == confirmed
    for metric, event in found.items():
        assert event.change_point is not None
        assert event.change_point.at == WATCH_START + dt.timedelta(minutes=BEFORE + slow), metric
