"""The trial queue of a sweep: what is launched next and when enough is known. Decides, runs nothing.

First the search (`search_phase`), then confirming (`confirm_phase`); `Phase` says when one ends and the next begins.
Tune asks through `sweep.searcher` and `sweep.scheduler`, in the driver's process.
"""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from typing_extensions import override

from kvray.analysis.evidence import confirm_trial_id
from kvray.analysis.sampler import Sampler
from kvray.candidate import Candidate
from kvray.record import Role, TrialResult
from kvray.sweep.bounds import Bounds
from kvray.sweep.confirm_phase import ConfirmPhase, RoundMember
from kvray.sweep.outlook import Outlook, Range
from kvray.sweep.search_phase import SearchPhase
from kvray.sweep.trial_task import TrialTask
from kvray.sweep.trial_times import TrialTimes
from kvray.trial.spec import ALL_RUNGS, CONFIRM_RUNGS, SEARCH_RUNGS
from kvray.workload import WorkloadProfile


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
        """The next trial; `None` when there is none before a running one has ended, or none at all.

        After the first trial of a confirming round come all others of that round, and then `None` until they have
        ended.
        """

    def rung_finished(self, result: TrialResult) -> None:
        """A trial completed `result.record.rung`; told before `win_chance` is asked."""

    def trial_finished(self, result: TrialResult) -> None:
        """A trial ended in whatever way."""

    def trial_lost(self, task: TrialTask) -> None:
        """A trial's slot died; what it had measured is not known here. It runs again unless `task` was its last
        attempt."""

    def trial_spared(self, task: TrialTask) -> None:
        """A trial that was handed out will not be run: its slot's device has measured it before (`unless_on`)."""

    def is_out_of_time(self) -> bool:
        """Whether the budget is spent."""

    def outlook(self) -> Outlook:
        """What is still to come, as far as can be guessed now."""

    def win_chance(self, candidate_id: str) -> float:
        """Probability that a launched candidate is clearly the best of those launched."""

    def is_measured_whole(self, candidate_id: str) -> bool:
        """Whether a candidate is measured to its end however poor it is: others are told by their gain over it."""


class Phase(enum.Enum):
    """What a queue launches. It changes only in `SweepQueue.next_trial`, and never goes back.

    | phase      | launches                     | goes on to | as soon as                                         |
    |------------|------------------------------|------------|----------------------------------------------------|
    | SEARCHING  | what `SearchPhase` chooses   | CONFIRMING | it has nobody and no running trial can change that |
    | CONFIRMING | members of the current round | OVER       | nothing runs and no further round is worth it      |
    | OVER       | nothing                      |            |                                                    |

    A round is worth it only if there is time for it. A trial whose slot died runs again before anything else, in any
    phase; it counts as running meanwhile.
    """

    SEARCHING = "searching"
    CONFIRMING = "confirming"
    OVER = "over"


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
            processes of its own: a second process tells more than a second run. The baseline's trial and those of
            `defaults` have all repeats, which show how much the runs of each engine differ.
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
        defaults: Sequence[str] = (),
        retry: Iterable[str] = (),
        stops_early: bool = True,
        repeats_apart: bool = False,
        expected_launches: Range | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stops_early = stops_early
        self._search_rungs = SEARCH_RUNGS if repeats_apart and bounds.confirm_rounds else ALL_RUNGS
        self._baseline_id = candidates[0].candidate_id
        self._defaults = frozenset(defaults)
        self._by_id = {candidate.candidate_id: candidate for candidate in candidates}
        self._numbers = {candidate.candidate_id: number for number, candidate in enumerate(candidates)}
        self._make_task = make_task
        self._bounds = bounds
        self._expected_launches = expected_launches or (len(candidates), len(candidates))
        self._clock = clock
        self._phase = Phase.SEARCHING
        self._search = SearchPhase(
            candidates, sampler=sampler, bounds=bounds, limits=profile.limits, first=(*defaults, *retry)
        )
        self._confirm = ConfirmPhase(
            profile, baseline_id=self._baseline_id, most_rounds=bounds.confirm_rounds, defaults=defaults
        )
        self._confirmed = 0
        """Confirming trials of this attempt that have ended or were given up."""
        self._in_round: set[str] = set()
        """Ids of those that were handed out and have not ended: one of them runs, the others wait in its slot."""
        self._times = TrialTimes()
        self._results: list[TrialResult] = []
        self._running: set[str] = set()
        self._lost: deque[TrialTask] = deque()
        for result in recorded:
            self._recall(result)

    @property
    @override
    def is_over(self) -> bool:
        return self._phase is Phase.OVER

    def never_launched(self) -> tuple[tuple[Candidate, str], ...]:
        """The candidates that no process was started for, now or in an earlier attempt, each with what is expected."""
        return self._search.never_launched()

    @override
    def next_trial(self) -> TrialTask | None:
        if self._lost:
            return self._lost.popleft()
        if self._phase is Phase.SEARCHING:
            candidate = self._search.next_candidate(
                is_running=bool(self._running), left_s=self._left_s(), launch_s=self._times.launch_s
            )
            if candidate is not None:
                return self._search_task(candidate)
            if self._search.is_over:
                self._phase = Phase.CONFIRMING
        if self._phase is Phase.CONFIRMING and not (self._confirm.waiting or self._running):
            self._plan_round()
        return self._confirm_task(self._confirm.waiting.popleft()) if self._confirm.waiting else None

    @override
    def rung_finished(self, result: TrialResult) -> None:
        if result.record.role is not Role.CONFIRM:
            self._search.measured(result)

    @override
    def trial_finished(self, result: TrialResult) -> None:
        self._ended(result.record.trial_id)
        self._note(result)

    @override
    def trial_lost(self, task: TrialTask) -> None:
        if not task.is_last_attempt:
            self._lost.append(replace(task, attempt=task.attempt + 1))
            return
        self._ended(task.spec.trial_id)
        if task.spec.role is not Role.CONFIRM:
            self._search.lost(task.spec.candidate.candidate_id)

    @override
    def trial_spared(self, task: TrialTask) -> None:
        self._running.discard(task.spec.trial_id)
        self._in_round.discard(task.spec.trial_id)

    @override
    def is_out_of_time(self) -> bool:
        return self._left_s() <= 0

    @override
    def outlook(self) -> Outlook:
        to_search = self._search.launches_to_come(self._expected_launches)
        begun = self._confirmed + min(1, len(self._in_round))
        waiting = max(0, len(self._in_round) - 1)
        least, most = self._confirm.trials_to_come(candidates=len(self._by_id))
        return Outlook(
            confirming=begun,
            confirming_most=begun + waiting + most if self._confirm.round_number else 0,
            left_s=self._seconds_for(to_search, (least + len(self._in_round), most + len(self._in_round))),
        )

    @override
    def win_chance(self, candidate_id: str) -> float:
        return self._search.win_chance(candidate_id)

    @override
    def is_measured_whole(self, candidate_id: str) -> bool:
        return candidate_id in self._defaults

    def _recall(self, result: TrialResult) -> None:
        record = result.record
        if not record.status.was_launched or record.candidate_id not in self._by_id:
            return
        if record.role is Role.CONFIRM:
            self._confirm.recall(record)
        else:
            self._search.recall(result)
        self._note(result)

    def _note(self, result: TrialResult) -> None:
        self._results.append(result)
        self._times.ended(result.record)
        if result.record.role is not Role.CONFIRM:
            self._search.ended(result)

    def _plan_round(self) -> None:
        self._confirm.plan(
            self._results,
            contenders=self._search.contenders,
            left_s=self._left_s(),
            trial_s=self._times.confirm_or_any_s,
        )
        if not self._confirm.waiting:
            self._phase = Phase.OVER

    def _search_task(self, candidate: Candidate) -> TrialTask:
        key = candidate.candidate_id
        role = Role.BASELINE if key == self._baseline_id else Role.SEARCH
        rungs = ALL_RUNGS if key == self._baseline_id or key in self._defaults else self._search_rungs
        return self._started(
            self._make_task(candidate, role=role, trial_id=f"{self._numbers[key]:04d}-{key}", rungs=rungs)
        )

    def _confirm_task(self, member: RoundMember) -> TrialTask:
        number = self._confirm.round_number
        task = self._started(
            self._make_task(
                self._by_id[member.candidate_id],
                role=Role.CONFIRM,
                trial_id=confirm_trial_id(number, member.candidate_id, process=member.process),
                rungs=CONFIRM_RUNGS,
                confirm_round=number,
            )
        )
        self._in_round.add(task.spec.trial_id)
        return replace(task, unless_on=member.measured_on)

    def _ended(self, trial_id: str) -> None:
        self._running.discard(trial_id)
        if trial_id in self._in_round:
            self._in_round.remove(trial_id)
            self._confirmed += 1

    def _started(self, task: TrialTask) -> TrialTask:
        self._running.add(task.spec.trial_id)
        return task

    def _seconds_for(self, launches: tuple[int, int], confirming: tuple[int, int]) -> Range | None:
        """Seconds for so many trials, least and most, running ones included; `None` until a trial has told its time."""
        if not self._times.are_known:
            return None
        least, most = (
            searched * self._times.launch_s + confirmed * self._times.confirm_s
            for searched, confirmed in zip(launches, confirming, strict=True)
        )
        return min(least, self._left_s()), min(most, self._left_s())

    def _left_s(self) -> float:
        return self._bounds.left_s(self._clock())
