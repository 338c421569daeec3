"""`BatchBudget`: how the time of a batch is divided among its sweeps, by the time that their trials hold slots."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable

from typing_extensions import override

from kvray.record import TrialResult
from kvray.report.formats import duration
from kvray.store.batch_manifest import BatchAttempt
from kvray.sweep.observer import SweepObserver
from kvray.sweep.outlook import Outlook
from kvray.trial.spec import TrialSpec

_CLEARLY = 1.1


class BatchBudget:
    """Hears of the trials of all sweeps of a batch, and tells how many seconds each sweep has left.

    A sweep that has all slots uses one second a second; one that has a single slot of four, a quarter. What is left of
    the batch is shared equally by the sweeps that have not ended, so what one of them does not need goes to the others.

    Args:
        run_ids: of all sweeps that are to be measured.
        budget_s: seconds for all of them together; `None` without a bound.
    """

    def __init__(
        self, run_ids: Iterable[str], budget_s: float | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._end_s = None if budget_s is None else clock() + budget_s
        self._to_come = set(run_ids)
        self._used_s: defaultdict[str, float] = defaultdict(float)
        self._running: dict[tuple[str, str], tuple[float, int]] = {}
        self.slots = 1

    @property
    def is_spent(self) -> bool:
        """Whether nothing may be begun any more."""
        return self._end_s is not None and self._end_s - self._clock() <= 0

    def left_s(self, run_id: str, own_s: float | None = None) -> float | None:
        """Seconds that a sweep may still use, `own_s` being its own bound; `None` without any bound."""
        bounds = [] if own_s is None else [own_s - self._used(run_id)]
        if self._end_s is not None:
            left_s = self._end_s - self._clock()
            sharing = {*self._to_come, run_id}
            share_s = (left_s + sum(self._used(one) for one in sharing)) / len(sharing)
            bounds += [left_s, share_s - self._used(run_id)]
        return min(bounds, default=None)

    def ended(self, run_id: str) -> None:
        """A sweep needs nothing any more. Several threads call it."""
        self._to_come.discard(run_id)

    def trial_started(self, spec: TrialSpec) -> None:
        """It holds its slots from now on."""
        self._running[spec.run_id, spec.trial_id] = (self._clock(), spec.candidate.parallelism)

    def trial_lost(self, spec: TrialSpec) -> None:
        """It holds no slot any more."""
        self._charge(spec.run_id, spec.trial_id)

    def trial_finished(self, result: TrialResult) -> None:
        """As `trial_lost`."""
        self._charge(result.record.run_id, result.record.trial_id)

    def charged(self, observer: SweepObserver) -> SweepObserver:
        """What tells this budget of every trial at once, then `observer`, which may wait with its own news until a
        trial is written."""
        return _Charged(self, observer)

    def _charge(self, run_id: str, trial_id: str) -> None:
        if (started := self._running.pop((run_id, trial_id), None)) is not None:
            self._used_s[run_id] += self._share_s(*started)

    def _used(self, run_id: str) -> float:
        running = (self._share_s(*started) for (run, _), started in self._running.items() if run == run_id)
        return self._used_s[run_id] + sum(running)

    def _share_s(self, started_s: float, slots: int) -> float:
        return (self._clock() - started_s) * slots / self.slots


class _Charged(SweepObserver):
    """Tells a budget of each trial before it tells an observer."""

    def __init__(self, budget: BatchBudget, observer: SweepObserver) -> None:
        self._budget = budget
        self._observer = observer

    @override
    def trial_started(self, spec: TrialSpec) -> None:
        self._budget.trial_started(spec)
        self._observer.trial_started(spec)

    @override
    def rung_finished(self, result: TrialResult) -> None:
        self._observer.rung_finished(result)

    @override
    def trial_lost(self, spec: TrialSpec) -> None:
        self._budget.trial_lost(spec)
        self._observer.trial_lost(spec)

    @override
    def trial_finished(self, result: TrialResult) -> None:
        self._budget.trial_finished(result)
        self._observer.trial_finished(result)

    @override
    def outlook_changed(self, outlook: Outlook) -> None:
        self._observer.outlook_changed(outlook)


def excess_of(attempt: BatchAttempt) -> str | None:
    """Why an attempt that measured took clearly longer than its budget; `None` where it did not."""
    took_s = ((attempt.ended_at or attempt.started_at) - attempt.started_at).total_seconds()
    if not attempt.budget_s or took_s <= attempt.budget_s * _CLEARLY:
        return None
    return (
        f"the batch took {duration(took_s)} with a budget of {duration(attempt.budget_s)}: a sweep that has begun "
        "measures its baseline in any case, and a trial that runs is not broken off"
    )
