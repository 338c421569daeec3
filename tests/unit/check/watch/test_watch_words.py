from __future__ import annotations

import dataclasses

import pytest
from observations import plain_observation

from kvray.analysis.comparison import ComparedMetric
from kvray.analysis.intervals import Interval
from kvray.check.watch.events import EventKind, WatchState
from kvray.check.watch.levels import Change, Watched
from kvray.check.watch.states import Judged, Standing
from kvray.check.watch.telling import events_of
from kvray.check.watch.words import confirmed_text, observation_text, suspicion_text
from kvray.store.history import ObservationRole


def judged(watched: Watched, before: float, now: float) -> Judged:
    value = now / before - 1
    change = Change(
        observation_id="5",
        at_s=1_795_000_000.0,
        size=0.1,
        sittings=2,
        noise_sds=6.0,
        change=Interval(value=value, low=value - 0.02, high=value + 0.02),
        before=before,
        now=now,
        machine=None,
        level=0.0,
    )
    return Judged(watched=watched, standing=Standing(), was=WatchState.OK, change=change)


@pytest.mark.parametrize(
    ("watched", "before", "now", "said"),
    [
        (ComparedMetric.TTFT, 100.0, 112.0, "Time to first token of X is 11 % slower (−"),
        (ComparedMetric.TTFT, 100.0, 288.0, "Time to first token of X is 2.88× as long (2.86× to 2.90×) since"),
        (ComparedMetric.DECODE, 100.0, 88.0, "X reaches 12 % fewer tok/s (−"),
        (ComparedMetric.DECODE, 140.0, 82.0, "X reaches 41 % fewer tok/s (−43 % to −39 %) since"),
        (ComparedMetric.DECODE, 100.0, 40.0, "X reaches 0.40× the tok/s ("),
        (ComparedMetric.MEMORY, 100.0, 112.0, "X takes 12 % more memory (+"),
        (None, 100.0, 88.0, "The machine is 12 % slower (−"),
        (None, 100.0, 34.7, "The machine takes 2.88× as long (2.72× to 3.06×) since"),
    ],
)
def test_a_change_reads_as_a_colleague_would_say_it(watched: Watched, before: float, now: float, said: str) -> None:
    assert confirmed_text(judged(watched, before, now), "X", []).startswith(said)


def test_a_suspicion_claims_no_more_than_it_knows() -> None:
    slow = suspicion_text(judged(None, 100.0, 34.7), "X")
    assert slow.startswith("The machine seems to take 2.88× as long (")
    assert suspicion_text(judged(ComparedMetric.DECODE, 100.0, 88.0), "X").startswith("X seems to reach 12 % fewer")


def test_the_rounds_after_a_suspicion_say_why_they_were_measured() -> None:
    row = plain_observation(role=ObservationRole.CONFIRM, processes=6, ttft_ms=493.0)
    assert observation_text(row).startswith("measured again to confirm: 493 ms to the first token in 6 processes")
    assert observation_text(plain_observation(processes=3, ttft_ms=493.0)).startswith("493 ms to the first token in 3")


def test_what_else_changed_is_told_from_the_last_that_was_measured() -> None:
    rows = [
        plain_observation(observation_id="3", processes=3, variables={}, anchor="CPU, 2 threads, NumPy 2.4"),
        plain_observation(observation_id="4", role=ObservationRole.ANCHOR, anchor=None),
        plain_observation(
            observation_id="5", processes=3, variables={"OMP_NUM_THREADS": "1"}, anchor="CPU, 1 thread, NumPy 2.4"
        ),
    ]
    told = confirmed_text(judged(ComparedMetric.TTFT, 100.0, 112.0), "X", rows)
    assert told.endswith(" Changed at that time: threads: 2 → 1, OMP_NUM_THREADS: not set → 1.")


@pytest.mark.parametrize(("noise_sds", "said"), [(3.5, True), (1.5, False)])
def test_rounds_that_look_like_a_recovery_and_do_not_prove_it_are_told_as_that(noise_sds: float, said: bool) -> None:
    found = judged(ComparedMetric.DECODE, 80.0, 140.0)
    assert found.change is not None
    unsure = dataclasses.replace(
        found,
        standing=Standing(state=WatchState.CONFIRMED, reference=0.0),
        was=WatchState.CONFIRMED,
        change=dataclasses.replace(found.change, size=-0.5, noise_sds=noise_sds),
    )
    row = plain_observation(role=ObservationRole.CONFIRM, processes=6)
    _, *told = events_of(row, [unsure], [row], "X")
    assert len(told) == said
    for one in told:
        assert one.text.startswith("X seems to reach 1.75× the tok/s (")
        assert one.text.endswith(": 80 → 140 tok/s. It may be back: the next observation tells.")
        assert (one.kind, one.change_point, one.is_alert) == (EventKind.OBSERVATION, None, False)
    regular = plain_observation(role=ObservationRole.WINNER, processes=3)
    assert len(events_of(regular, [unsure], [regular], "X")) == 1, "it is measured again first"
