from __future__ import annotations

import pytest

from kvray.analysis.comparison import ComparedMetric
from kvray.analysis.intervals import Interval
from kvray.check.watch.events import WatchState
from kvray.check.watch.levels import Change, Watched
from kvray.check.watch.states import Judged, Standing
from kvray.check.watch.words import confirmed_text, suspicion_text


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
        (ComparedMetric.DECODE, 100.0, 40.0, "X reaches 1/2.5 of the tok/s ("),
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
