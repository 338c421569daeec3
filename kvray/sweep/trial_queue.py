"""The trial queue of a sweep: what is launched next and when enough is known. Decides, runs nothing.

First the search: the baseline, then what `Sampler` proposes. Then confirming: rounds of fresh processes for winner,
rivals and baseline (`Phase`). Tune asks through `sweep.searcher` and `sweep.scheduler`, in the driver's process.
"""

from __future__ import annotations

import enum
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from typing_extensions import override

from kvray.analysis.aggregate import aggregate
from kvray.analysis.confirming import MOST_CONTENDERS, MOST_IN_ROUND, next_round
from kvray.analysis.evidence import confirm_round, confirm_trial_id, gather_evidence
from kvray.analysis.limits import missed_limits
from kvray.analysis.sampler import Sampler
from kvray.analysis.score import utility_weights
from kvray.analysis.shared_error import most_unlike, same_error
from kvray.candidate import Candidate
from kvray.record import Role, TrialResult
from kvray.sweep.outlook import Outlook, Range
from kvray.sweep.recording import rung_cells
from kvray.sweep.trial_task import TrialTask
from kvray.trial.spec import ALL_RUNGS, CONFIRM_RUNGS, SEARCH_RUNGS
from kvray.workload import WorkloadProfile

CONFIRM_SHARE = 0.3
"""Share of the budget that is kept for confirming, so that the result is also sure."""


class MakeTask(Protocol):
    """Everything that a slot needs for one trial of a candidate."""

    def __call__(
        self,
        candidate: Candidate,
        *,
        role: Role,
        trial_id: str,
        rungs: tuple[int, ...],
        confirm_round: int | None = None,
    ) -> TrialTask:
        """The task; in the records the trial is called as its spec says, which may not be `trial_id` alone."""


class TrialQueue(Protocol):
    """What Tune is driven by; `SweepQueue` is the one that searches and confirms.

    Attributes:
        stops_early: whether a trial may be stopped between rungs because it is poor.
        is_over: whether nothing runs and nothing is to be launched. Ask after `next_trial` has returned `None`.
    """

    stops_early: bool

    @property
    def is_over(self) -> bool: ...  # noqa: D102

    def next_trial(self) -> TrialTask | None:
        """The next trial; `None` when there is none before a running one has ended, or none at all."""

    def rung_finished(self, result: TrialResult) -> None:
        """A trial completed `result.record.rung`; told before `win_chance` is asked."""

    def trial_finished(self, result: TrialResult) -> None:
        """A trial ended in whatever way."""

    def trial_lost(self, task: TrialTask) -> None:
        """A trial's slot died; what it had measured is not known here. It runs again unless `task` was its last
        attempt."""

    def is_out_of_time(self) -> bool:
        """Whether the budget is spent."""

    def outlook(self) -> Outlook:
        """What is still to come, as far as can be guessed now."""

    def win_chance(self, candidate_id: str) -> float:
        """Probability that a launched candidate is clearly the best of those launched."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How far a sweep may go.

    Attributes:
        deadline_s: by the queue's clock; after it nothing is launched, and a trial ends with the rung it is in.
        budget_s: seconds from the sweep's start to the deadline.
        max_trials: launches of the search, the baseline's among them.
        confirm_rounds: at most.
    """

    deadline_s: float | None = None
    budget_s: float = 0.0
    max_trials: int | None = None
    confirm_rounds: int = 0


class Phase(enum.Enum):
    """What a queue launches. It never goes back."""

    SEARCHING = "searching"
    """What the sampler proposes. It may have nothing now, and more when a running trial has ended."""
    CONFIRMING = "confirming"
    """Members of rounds. A round is planned when nothing runs any more; if none is worth it, the sweep is over."""


@dataclass(kw_only=True)
class _Round:
    """A confirming round.

    Attributes:
        number: from 1; 0 before the first.
        size: candidates that this attempt at the sweep planned it with.
        waiting: ids of those not launched yet.
    """

    number: int = 0
    size: int = 0
    waiting: deque[str] = field(default_factory=deque)


class SweepQueue(TrialQueue):
    """Decides what is launched next, and when enough is known.

    Args:
        candidates: of the space, the baseline first.
        recorded: what earlier attempts at the sweep have left; it is not measured again.
        defaults: ids of candidates that are launched right after the baseline, whatever is expected of them: what each
            further engine does with nothing set.
        retry: ids of candidates that failed then and are launched again first, however little is expected of them.
        stops_early: whether a trial may be stopped between rungs because it is poor.
        expected_launches: how many the search will make in all; by default every candidate.
        repeats_apart: whether a searched candidate measures every cell once, and again only in the confirm phase, in
            processes of its own: a second process tells more than a second run. The baseline's trial has all repeats.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        *,
        sampler: Sampler,
        profile: WorkloadProfile,
        make_task: MakeTask,
        bounds: Bounds,
        recorded: Iterable[TrialResult] = (),
        defaults: Iterable[str] = (),
        retry: Iterable[str] = (),
        stops_early: bool = True,
        repeats_apart: bool = False,
        expected_launches: Range | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stops_early = stops_early
        self._search_rungs = SEARCH_RUNGS if repeats_apart and bounds.confirm_rounds else ALL_RUNGS
        self._baseline_id = candidates[0].candidate_id
        self._by_id = {candidate.candidate_id: candidate for candidate in candidates}
        self._witness = most_unlike(candidates[0], candidates)
        self._numbers = {candidate.candidate_id: number for number, candidate in enumerate(candidates)}
        self._sampler = sampler
        self._profile = profile
        self._make_task = make_task
        self._bounds = bounds
        self._expected_launches = expected_launches or (len(candidates), len(candidates))
        self._clock = clock
        self._first = (*defaults, *retry)
        self._results: list[TrialResult] = []
        self._running: set[str] = set()
        self._launched: set[str] = set()
        self._phase = Phase.SEARCHING
        self._end_reason = "too unlikely to win"
        self._round = _Round()
        self._interrupted_round: int | None = None
        self._confirming = 0
        self._lost: deque[TrialTask] = deque()
        for result in recorded:
            self._recall(result)

    @property
    @override
    def is_over(self) -> bool:
        is_searching = self._phase is Phase.SEARCHING
        return not (self._running or self._lost or is_searching or self._round.waiting)

    def never_launched(self) -> tuple[tuple[Candidate, str], ...]:
        """The candidates that no process was started for, now or in an earlier attempt, each with what is expected."""
        expected = {one.candidate.candidate_id: one.text for one in self._sampler.predictions()}
        left = [(key, one) for key, one in self._by_id.items() if key not in self._launched]
        told = self._end_reason
        return tuple((one, "; ".join(filter(None, (told, expected.get(key))))) for key, one in left)

    @override
    def next_trial(self) -> TrialTask | None:
        if self._lost:
            return self._lost.popleft()
        if self._phase is Phase.SEARCHING and (candidate := self._next_searched()) is not None:
            return self._search_task(candidate)
        if self._phase is Phase.SEARCHING:
            return None
        if not (self._round.waiting or self._running):
            self._plan_round()
        return self._confirm_task(self._round.waiting.popleft()) if self._round.waiting else None

    @override
    def rung_finished(self, result: TrialResult) -> None:
        record = result.record
        cells = rung_cells(result.runs, record.rung)
        if cells and record.rung is not None and record.role is not Role.CONFIRM:
            misses = missed_limits(record, cells, self._profile.limits)
            self._sampler.measured(
                record.candidate_id,
                record.rung,
                aggregate(cells),
                may_keep_limits=all(miss.is_doubtful() for miss in misses),
                is_disturbed=any(cell.is_disturbed for cell in cells),
            )

    @override
    def trial_finished(self, result: TrialResult) -> None:
        self._running.discard(result.record.trial_id)
        self._note(result)

    @override
    def trial_lost(self, task: TrialTask) -> None:
        if not task.is_last_attempt:
            self._lost.append(replace(task, attempt=task.attempt + 1))
            return
        self._running.discard(task.spec.trial_id)
        if task.spec.role is not Role.CONFIRM:
            self._sampler.ended(task.spec.candidate.candidate_id, failed=True, seconds=None)

    @override
    def is_out_of_time(self) -> bool:
        return self._remaining_s() <= 0

    @override
    def outlook(self) -> Outlook:
        to_search = self._launches_to_come()
        to_confirm = self._confirming_to_come()
        return Outlook(
            confirming=self._confirming,
            confirming_most=self._confirming + to_confirm[1] if self._round.number else 0,
            left_s=self._seconds_for(to_search, to_confirm),
        )

    @override
    def win_chance(self, candidate_id: str) -> float:
        return self._sampler.win_chance(candidate_id)

    def _recall(self, result: TrialResult) -> None:
        record = result.record
        if not record.status.was_launched or record.candidate_id not in self._by_id:
            return
        if record.role is Role.CONFIRM:
            self._round.number = max(self._round.number, confirm_round(record) or 0)
            self._interrupted_round = self._round.number
        else:
            self._sampler.launched(record.candidate_id)
            self._launched.add(record.candidate_id)
            for rung in range((-1 if record.rung is None else record.rung) + 1):
                self.rung_finished(TrialResult(record=record.with_(rung=rung), runs=result.runs))
        self._note(result)

    def _note(self, result: TrialResult) -> None:
        record = result.record
        self._results.append(result)
        if record.role is not Role.CONFIRM:
            self.rung_finished(result)
            self._sampler.ended(record.candidate_id, failed=record.status.is_failure, seconds=record.wall_s)

    def _next_searched(self) -> Candidate | None:
        """The search's next candidate. The search is over when it has none and none of its trials can change that."""
        has_room = self._bounds.max_trials is None or len(self._launched) < self._bounds.max_trials
        candidate: Candidate | None = None
        if self._baseline_id not in self._launched:
            # Whatever the bounds and the records of an earlier attempt: without it there is no result.
            candidate = self._by_id[self._baseline_id]
        elif self._everybodys_error():
            self._end_reason = "the same error ended every trial before it"
            has_room = False
        elif not has_room:
            self._end_reason = f"--max-trials {self._bounds.max_trials} was reached"
        elif not self._has_time_to_search():
            self._end_reason = f"the budget of {self._bounds.budget_s:g} s left no time for another launch"
        elif self._is_doubtful() and self._witness is not None and self._witness.candidate_id not in self._launched:
            candidate = self._witness
        elif self._is_doubtful() and self._running:
            return None  # what runs now decides whether it is everybody's error
        else:
            candidate = self._asked_first() or self._sampler.proposal()
        if candidate is None:
            if not (self._running and has_room):
                self._phase = Phase.CONFIRMING
            return None
        self._sampler.launched(candidate.candidate_id)
        self._launched.add(candidate.candidate_id)
        return candidate

    def _everybodys_error(self) -> bool:
        """Whether the baseline's error ended the candidate least like it, too, and nothing else came out."""
        ended = {one.record.candidate_id for one in self._results}
        return self._is_doubtful() and self._witness is not None and self._witness.candidate_id in ended

    def _is_doubtful(self) -> bool:
        return same_error((one.record for one in self._results), self._baseline_id) is not None

    def _asked_first(self) -> Candidate | None:
        left = (key for key in self._first if key in self._by_id and key not in self._launched)
        return next((self._by_id[key] for key in left), None)

    def _has_time_to_search(self) -> bool:
        if self._bounds.deadline_s is None:
            return True
        kept_s = CONFIRM_SHARE * self._bounds.budget_s if self._bounds.confirm_rounds else 0.0
        return self._remaining_s() - kept_s > self._launch_s() / 2

    def _plan_round(self) -> None:
        """Plan the next round: who runs once more. Nobody does when enough is known or no time is left."""
        planned = self._rest_of_interrupted_round() or self._new_round()
        if planned is not None and self._remaining_s() >= planned.size * self._typical_s(Role.CONFIRM):
            self._round = planned

    def _rest_of_interrupted_round(self) -> _Round | None:
        """What an earlier attempt at the sweep left of its last round, if anything; asked once."""
        number, self._interrupted_round = self._interrupted_round, None
        if not number:
            return None
        rounds = [confirm_round(one.record) or 0 for one in self._results]
        before = [one for one, its in zip(self._results, rounds, strict=True) if its < number]
        ran = {one.record.candidate_id for one, its in zip(self._results, rounds, strict=True) if its == number}
        left = [key for key in self._members(number, before) if key not in ran]
        return _Round(number=number, size=len(left), waiting=deque(left)) if left else None

    def _new_round(self) -> _Round | None:
        number = self._round.number + 1
        members = self._members(number, self._results)
        if number == 1 and members:
            # The search's model may see a winner that its own few measurements do not show, or that was stopped.
            members = tuple(dict.fromkeys([*members, *self._sampler.contenders()[:MOST_CONTENDERS]]))
        return _Round(number=number, size=len(members), waiting=deque(members)) if len(members) > 1 else None

    def _members(self, round_number: int, results: Sequence[TrialResult]) -> tuple[str, ...]:
        """Ids of the candidates that run in a confirming round, by what `results` say."""
        return next_round(
            gather_evidence(results, self._profile),
            baseline_id=self._baseline_id,
            round_number=round_number,
            most_rounds=self._bounds.confirm_rounds,
            weights=utility_weights(self._profile),
        )

    def _search_task(self, candidate: Candidate) -> TrialTask:
        key = candidate.candidate_id
        role = Role.BASELINE if key == self._baseline_id else Role.SEARCH
        rungs = ALL_RUNGS if role is Role.BASELINE else self._search_rungs
        return self._started(
            self._make_task(candidate, role=role, trial_id=f"{self._numbers[key]:04d}-{key}", rungs=rungs)
        )

    def _confirm_task(self, candidate_id: str) -> TrialTask:
        self._confirming += 1
        number = self._round.number
        return self._started(
            self._make_task(
                self._by_id[candidate_id],
                role=Role.CONFIRM,
                trial_id=confirm_trial_id(number, candidate_id),
                rungs=CONFIRM_RUNGS,
                confirm_round=number,
            )
        )

    def _started(self, task: TrialTask) -> TrialTask:
        self._running.add(task.spec.trial_id)
        return task

    def _launches_to_come(self) -> tuple[int, int]:
        """Least and most launches that the search still makes, running trials included."""
        if self._phase is not Phase.SEARCHING:
            return 0, 0
        ended = len({one.record.candidate_id for one in self._results if one.record.role is not Role.CONFIRM})
        least, most = (max(1, round(bound) - ended) for bound in self._expected_launches)
        return least, most

    def _confirming_to_come(self) -> tuple[int, int]:
        """The same of confirming trials. Before the first round nobody knows how many there will be."""
        rounds = self._bounds.confirm_rounds
        if self._round.number == 0:
            return (2, rounds * MOST_IN_ROUND) if rounds and len(self._by_id) > 1 else (0, 0)
        now = len(self._round.waiting)
        return now, now + max(0, rounds - self._round.number) * self._round.size

    def _seconds_for(self, launches: tuple[int, int], confirming: tuple[int, int]) -> Range | None:
        if not any(one.record.wall_s for one in self._results):
            return None
        launch_s, confirm_s = self._launch_s(), self._confirm_s()
        least, most = (
            searched * launch_s + confirmed * confirm_s
            for searched, confirmed in zip(launches, confirming, strict=True)
        )
        return min(least, self._remaining_s()), min(most, self._remaining_s())

    def _confirm_s(self) -> float:
        """A confirming trial takes about as long as a launch of the search, until one has told."""
        has_confirmed = any(one.record.role is Role.CONFIRM for one in self._results)
        return self._typical_s(Role.CONFIRM) if has_confirmed else self._launch_s()

    def _remaining_s(self) -> float:
        return float("inf") if self._bounds.deadline_s is None else self._bounds.deadline_s - self._clock()

    def _launch_s(self) -> float:
        """What a launch usually takes. While only the baseline is known, whose trial has all rungs: a third of that,
        for a launch out of time ends with its first rung."""
        has_searched = any(one.record.role is Role.SEARCH for one in self._results)
        return self._typical_s(Role.SEARCH) if has_searched else self._typical_s(Role.BASELINE) / 3

    def _typical_s(self, role: Role) -> float:
        """Median seconds of a trial of this role; of any role while none of this one has ended, 0 before any has."""
        known = [one.record for one in self._results if one.record.wall_s is not None]
        alike = [record for record in known if record.role is role] or known
        return statistics.median([record.wall_s or 0.0 for record in alike] or [0.0])
