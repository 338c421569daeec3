"""What follows from the history: the state of each metric and of the machine, and what is to be told. Pure functions.

A state is kept in the history's rows, so that a killed process, or a reboot, loses none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvray.analysis.comparison import ComparedMetric
from kvray.check.watch.events import WatchState
from kvray.check.watch.levels import SPEEDS, Change, Watched, latest_change, levels_of
from kvray.errors import InvalidValueError
from kvray.store.history import Observation

PROCESSES = 3
"""Fresh processes of a regular observation."""
CONFIRMING = 6
"""Further ones, measured at once after a suspicion."""
LEAST_CHANGE = {ComparedMetric.TTFT: 0.04, ComparedMetric.DECODE: 0.04, ComparedMetric.MEMORY: 0.02, None: 0.04}
"""Smaller changes are not told."""
CERTAIN_SDS = 4.3
"""In standard deviations of the history's own noise, from which on a change is confirmed."""
LEAST_SITTINGS = 2
OBVIOUS_SDS = 8.0
"""From which on one sitting is enough."""
REFUTED_SDS = 2.0
"""Below which a suspicion is dropped, once it was looked into."""
MACHINE = "machine"
_LEAST_MACHINE = 0.02
"""Slowness of the anchor from which on it can explain a change."""
_MOST_STARTS = 50
ALL_WATCHED: tuple[Watched, ...] = (None, *ComparedMetric)
"""The machine first: whether it explains a change is known when the metrics are judged."""


def name_of(watched: Watched) -> str:
    """As the history calls it."""
    return MACHINE if watched is None else watched.value


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where one metric, or the machine, stands.

    Attributes:
        starts: observations from which on the level was another one, oldest first.
        reference: logarithm of the level that counts as healthy, while it is confirmed to be worse; more is worse.
    """

    state: WatchState = WatchState.OK
    starts: tuple[str, ...] = ()
    reference: float | None = None


Standings = Mapping[Watched, Standing]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One metric, or the machine, after an observation.

    Attributes:
        change: what was found; `None`: nothing.
        needs_rounds: it may have changed, and has to be looked into at once.
        is_new: the change is confirmed, now for the first time.
        by_machine: the machine explains it.
        was: state before.
    """

    watched: Watched
    standing: Standing
    was: WatchState
    change: Change | None = None
    needs_rounds: bool = False
    is_new: bool = False
    by_machine: bool = False


def judge(rows: Sequence[Observation], standings: Standings, *, after_rounds: bool) -> tuple[Judged, ...]:
    """How the machine and each metric stand after the last of `rows`.

    Args:
        standings: before it.
        after_rounds: whether the last of `rows` are the confirming rounds of a suspicion.
    """
    return tuple(_judged(rows, one, standings.get(one, Standing()), after_rounds) for one in ALL_WATCHED)


def _judged(rows: Sequence[Observation], watched: Watched, before: Standing, after_rounds: bool) -> Judged:
    calm = replace(before, state=_calm(before))
    change = latest_change(levels_of(rows, watched, before.starts))
    if change is None or abs(change.size) < LEAST_CHANGE[watched]:
        return Judged(watched=watched, standing=calm, was=before.state)
    if not after_rounds:
        suspected = WatchState.SUSPECTED if change.is_worse and before.reference is None else calm.state
        return Judged(
            watched=watched,
            standing=replace(before, state=suspected),
            was=before.state,
            change=change,
            needs_rounds=True,
        )
    if change.noise_sds < REFUTED_SDS:
        return Judged(watched=watched, standing=calm, was=before.state, change=change)
    if not _is_confirmed(change, is_back=_is_back(before, watched, change)):
        return Judged(watched=watched, standing=before, was=before.state, change=change)
    by_machine = watched in SPEEDS and _is_the_machines(change)
    return Judged(
        watched=watched,
        standing=_after(before, watched, change, by_machine=by_machine),
        was=before.state,
        change=change,
        is_new=True,
        by_machine=by_machine,
    )


def _is_confirmed(change: Change, *, is_back: bool) -> bool:
    """All processes of one sitting have something in common that another sitting has not, so it takes two, unless the
    change is far beyond that, or leads back to a level that is known."""
    is_lasting = is_back or change.sittings >= LEAST_SITTINGS or change.noise_sds >= OBVIOUS_SDS
    return is_lasting and change.is_certain and change.noise_sds >= CERTAIN_SDS


def _calm(standing: Standing) -> WatchState:
    """The state where nothing is suspected."""
    return WatchState.OK if standing.reference is None else WatchState.CONFIRMED


def _after(before: Standing, watched: Watched, change: Change, *, by_machine: bool) -> Standing:
    """The standing after a confirmed change."""
    starts = (*before.starts, change.observation_id)[-_MOST_STARTS:]
    if by_machine:  # a new level, and nobody's fault; what was worse before stays so
        moved = None if before.reference is None else before.reference + change.size
        return Standing(state=_calm(before), starts=starts, reference=moved)
    if change.is_worse:
        reference = change.level if before.reference is None else before.reference
        return Standing(state=WatchState.CONFIRMED, starts=starts, reference=reference)
    if before.reference is None:
        return Standing(state=WatchState.OK, starts=starts)
    if _is_back(before, watched, change):
        return Standing(state=WatchState.RECOVERED, starts=starts)
    return Standing(state=WatchState.CONFIRMED, starts=starts, reference=before.reference)


def _is_back(before: Standing, watched: Watched, change: Change) -> bool:
    """Whether the change leads from a confirmed regression back to the level before it."""
    if before.reference is None or change.is_worse:
        return False
    lost = change.level - before.reference
    return change.level + change.size - before.reference <= max(LEAST_CHANGE[watched], lost / 2)


def _is_the_machines(change: Change) -> bool:
    """Whether the anchor changed as much, in the same direction. What the history taught of the anchor is taken out of
    `change.size` already, so that only what is left must be explained."""
    machine = change.machine or 0.0
    if machine * change.size <= 0 or abs(machine) < _LEAST_MACHINE:
        return False
    return abs(change.size) <= 1.25 * abs(machine) + _LEAST_MACHINE


def standings_of(rows: Sequence[Observation]) -> dict[Watched, Standing]:
    """The standings after the last of `rows`, as it tells them.

    Raises:
        InvalidValueError: it tells something else.
    """
    if not rows:
        return {}
    try:
        told: Mapping[str, Any] = json.loads(rows[-1].standing)
        return {one: _standing(told[name_of(one)]) for one in ALL_WATCHED if name_of(one) in told}
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidValueError(
            f"Observation {rows[-1].observation_id} tells no state that this kvray knows: {error}."
        ) from error


def standing_json(standings: Standings) -> str:
    """As a row of the history holds it."""
    return json.dumps(
        {
            name_of(one): {
                "state": standing.state.value,
                "starts": list(standing.starts),
                "reference": standing.reference,
            }
            for one, standing in standings.items()
        }
    )


def _standing(told: Mapping[str, Any]) -> Standing:
    reference = told["reference"]
    return Standing(
        state=WatchState(told["state"]),
        starts=tuple(str(one) for one in told["starts"]),
        reference=None if reference is None else float(reference),
    )
