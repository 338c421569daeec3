"""A simulated history goes through the states: ok, suspected, confirmed, recovered; a slow machine is told apart."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping

import numpy as np
import pytest
from observations import WATCH_START, plain_observation

from kvray.analysis.comparison import ComparedMetric
from kvray.check.watch.events import EventKind, WatchState
from kvray.check.watch.levels import Watched
from kvray.check.watch.states import Judged, Standing, judge, standing_json, standings_of
from kvray.check.watch.telling import events_of
from kvray.errors import InvalidValueError
from kvray.store.history import Observation, ObservationRole

TTFT = ComparedMetric.TTFT
OK, SUSPECTED, CONFIRMED, RECOVERED = WatchState.OK, WatchState.SUSPECTED, WatchState.CONFIRMED, WatchState.RECOVERED
ROW = plain_observation(engine_versions={"torch": "2.12"})


class Simulated:
    """A watch whose measurements are made up; `slow` are factors of what is measured next."""

    def __init__(self) -> None:
        self.rows: list[Observation] = []
        self.standings: Mapping[Watched, Standing] = {}
        self.judged: tuple[Judged, ...] = ()
        self.told: list[tuple[str, str]] = []
        self.rounds = 0
        self._random = np.random.default_rng(3)

    def observe(self, count: int = 1, *, ttft: float = 1.0, memory: float = 1.0, machine: float = 1.0) -> WatchState:
        for _ in range(count):
            self._add(ObservationRole.WINNER, 3, ttft, memory, machine)
            if any(one.needs_rounds for one in self.judged):
                self.rounds += 1
                self._add(ObservationRole.CONFIRM, 6, ttft, memory, machine)
        return self.standings[TTFT].state

    def _add(self, role: ObservationRole, processes: int, ttft: float, memory: float, machine: float) -> None:
        number = len([one for one in self.rows if one.role is ObservationRole.WINNER]) - (role == "confirm")
        spread = np.exp(self._random.normal(0, 0.01, (4, processes)))
        times = tuple((10.0 * ttft * machine * spread[0]).tolist())
        rates = tuple((50.0 / machine * spread[1]).tolist())
        row = dataclasses.replace(
            ROW,
            observation_id=f"{number:04}-{role}",
            observed_at=WATCH_START + dt.timedelta(hours=6 * number),
            role=role,
            processes=processes,
            ttft_ms_each=times,
            decode_tok_s_each=rates,
            peak_mib_each=tuple((900 * memory * spread[2] ** 0.1).tolist()),
            copy_gb_s=float(20 / machine * spread[3, 0]),
            matmul_gflop_s=float(80 / machine * spread[3, 1]),
            engine_versions={"torch": "2.13" if ttft > 1 else "2.12"},
        )
        self.rows.append(row)
        self.judged = judge(self.rows, self.standings, after_rounds=role is ObservationRole.CONFIRM)
        self.standings = {one.watched: one.standing for one in self.judged}
        events = events_of(row, self.judged, self.rows, "c of m")
        self.told += [(one.kind.value, one.text) for one in events[1:]]

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.told]


@pytest.fixture
def watch() -> Simulated:
    simulated = Simulated()
    simulated.observe(40)
    return simulated


def test_a_quiet_history_is_ok_and_tells_nothing(watch: Simulated) -> None:
    assert {one.state for one in watch.standings.values()} == {OK}
    assert EventKind.CONFIRMED not in watch.kinds()


def test_a_regression_goes_through_all_states_and_is_told_once_each(watch: Simulated) -> None:
    watch.told.clear()
    states = [watch.observe(ttft=1.08) for _ in range(8)]
    assert set(states[:3]) <= {SUSPECTED, CONFIRMED}
    assert states[4:] == [CONFIRMED] * 4
    assert watch.kinds().count("suspected") == 1
    assert watch.kinds().count("confirmed") == 1
    rounds = watch.rounds
    back = [watch.observe() for _ in range(12)]
    assert RECOVERED in back
    assert back[-1] is OK
    assert watch.kinds().count("recovered") == 1
    assert watch.kinds().count("confirmed") == 1
    assert watch.rounds > rounds


def test_the_alert_says_what_when_how_much_and_what_changed_then(watch: Simulated) -> None:
    watch.told.clear()
    watch.observe(6, ttft=1.08)
    text = next(text for kind, text in watch.told if kind == "confirmed")
    assert text.startswith("Time to first token of c of m is ")
    assert "slower" in text
    assert "since 2026-03-12 " in text
    assert "→" in text
    assert text.endswith("Changed at that time: torch 2.12 → 2.13.")


def test_the_suspicion_is_looked_into_at_once(watch: Simulated) -> None:
    before = watch.rounds
    watch.observe(ttft=1.12)
    assert watch.rounds == before + 1
    assert watch.rows[-1].role is ObservationRole.CONFIRM


def test_a_slow_machine_is_told_as_such_and_the_configuration_is_not_blamed(watch: Simulated) -> None:
    watch.told.clear()
    assert watch.observe(8, machine=1.12) is OK
    assert watch.kinds().count("machine") == 1
    assert "confirmed" not in watch.kinds()
    assert next(text for kind, text in watch.told if kind == "machine").startswith("The machine is 1")
    watch.observe(10)
    assert watch.kinds().count("machine") == 2
    assert "The machine has recovered" in [text for kind, text in watch.told if kind == "machine"][-1]
    assert "confirmed" not in watch.kinds()


def test_memory_that_grows_is_told_though_the_machine_is_slow_too(watch: Simulated) -> None:
    watch.told.clear()
    watch.observe(6, memory=1.05, machine=1.12)
    assert "confirmed" in watch.kinds()
    assert watch.standings[ComparedMetric.MEMORY].state is CONFIRMED


def test_what_becomes_better_is_no_alert(watch: Simulated) -> None:
    watch.told.clear()
    assert watch.observe(8, ttft=0.85) is OK
    assert set(watch.kinds()) == {"observation"}
    assert any("faster" in text for _, text in watch.told)


def test_a_second_regression_is_a_second_alert(watch: Simulated) -> None:
    watch.told.clear()
    watch.observe(12, ttft=1.08)
    watch.observe(12, ttft=1.2)
    assert watch.kinds().count("confirmed") == 2
    watch.observe(14)
    assert watch.kinds().count("recovered") == 1
    assert watch.standings[TTFT].state is OK


def test_standings_come_back_from_a_row(watch: Simulated) -> None:
    watch.observe(6, ttft=1.08)
    row = dataclasses.replace(ROW, standing=standing_json(watch.standings))
    assert standings_of([row]) == watch.standings
    assert standings_of([]) == {}


def test_a_row_that_tells_no_state_is_one_line() -> None:
    with pytest.raises(InvalidValueError, match="tells no state that this kvray knows"):
        standings_of([dataclasses.replace(ROW, standing='{"ttft": {"state": "unheard of"}}')])
