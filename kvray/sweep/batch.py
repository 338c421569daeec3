"""Several sweeps over one pool of slots: whose trial is launched next, and who is told of it. Imports no Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

from kvray.record import TrialResult
from kvray.sweep.observer import SweepObserver
from kvray.sweep.trial_queue import TrialQueue
from kvray.sweep.trial_task import TrialTask

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class QueuedSweep:
    """A sweep that can run. It keeps its own queue, and whoever hears of its trials keeps its records.

    Attributes:
        size: sweeps are launched from in this order, the largest first: what is left for the end is then short.
        gpu_type: Ray's accelerator type of the GPUs that its trials keep to, as their `SlotPlan` has it.
        most_gpus: GPUs of its largest trial.
        attend: called several times a second while trials may run, and once with `True` when none will any more, for
            what the observer could not tell at once.
        ended: called once when none of its trials runs any more and none will, with the unexpected error that ended
            it, if one did. Without it an error of its queue or its observer ends all sweeps.
    """

    queue: TrialQueue
    observer: SweepObserver
    size: float = 0.0
    gpu_type: str | None = None
    most_gpus: int = 1
    attend: Callable[[bool], None] | None = None
    ended: Callable[[Exception | None], None] | None = None


class Newcomers(Protocol):
    """Sweeps that join while others run."""

    @property
    def is_over(self) -> bool:
        """Whether no further sweep will come. Asked after `next_sweep` has returned `None`."""

    def next_sweep(self) -> QueuedSweep | None:
        """The sweep that joins now; `None` when none is ready. Does not wait."""


class SweepBatch:
    """The trials of several sweeps, one after the other as slots are free.

    A slot gets the next trial of the largest sweep that has one. The others fill the slots that it leaves while it
    waits for a trial that runs. A newcomer joins when none of them has a trial. A trial belongs to the sweep of its
    `run_id`.

    The trials of a confirming round are one task: they run one after another in one slot, because GPUs of one type
    differ by some per cent. After a slot has died under a round, what is left of the round is one task again.
    """

    def __init__(self, sweeps: Sequence[QueuedSweep], newcomers: Newcomers | None = None) -> None:
        self._going_on = sorted(sweeps, key=lambda sweep: -sweep.size)
        self._newcomers = newcomers
        self._sweeps: dict[str, QueuedSweep] = {}
        self._out: Counter[int] = Counter()
        self._errors: dict[int, Exception] = {}
        self._unbegun: dict[int, tuple[TrialTask, ...]] = {}
        """By sweep, trials of a round whose slot died before their turn."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles what holds it into a state that nobody reads, and consoles do not pickle."""
        return {}

    @property
    def is_over(self) -> bool:
        """Whether nothing runs and nothing is to be launched. Ask after `next_trial` has returned `None`."""
        are_over = all(self._is_over(sweep) for sweep in self._going_on)
        return are_over and (self._newcomers is None or self._newcomers.is_over)

    @property
    def most_gpus(self) -> int:
        """GPUs of the largest trial of all sweeps that have not ended."""
        return max((sweep.most_gpus for sweep in self._going_on), default=1)

    def next_trial(self) -> TrialTask | None:
        """The next trial; `None` when there is none before a running one has ended, or none at all."""
        for sweep in tuple(self._going_on):
            if (task := self._next_of(sweep)) is not None:
                return task
        while self._newcomers is not None and (joining := self._newcomers.next_sweep()) is not None:
            self._going_on = sorted((*self._going_on, joining), key=lambda sweep: -sweep.size)
            if (task := self._next_of(joining)) is not None:
                return task
        return None

    def sweep_of(self, run_id: str) -> QueuedSweep:
        """The sweep that has launched trials of `run_id`."""
        return self._sweeps[run_id]

    def trial_finished(self, result: TrialResult, *, spared: Sequence[TrialTask] = ()) -> None:
        """A trial ended in whatever way; those of its task that are `spared` will not be run."""
        sweep = self.sweep_of(result.record.run_id)
        self._out[id(sweep)] -= 1
        self.trial_followed(result, spared=spared)

    def trial_followed(self, result: TrialResult, *, spared: Sequence[TrialTask] = ()) -> None:
        """As `trial_finished`, and the slot goes on with another one of its task."""
        sweep = self.sweep_of(result.record.run_id)
        for task in spared:
            self._ask(sweep, partial(sweep.queue.trial_spared, task))
        self._ask(sweep, lambda: sweep.queue.trial_finished(result))

    def trial_lost(self, task: TrialTask) -> None:
        """A slot died under the first trial of `task`; the others had not begun."""
        sweep = self.sweep_of(task.spec.run_id)
        self._out[id(sweep)] -= 1
        self._unbegun[id(sweep)] = task.then
        self._ask(sweep, lambda: sweep.queue.trial_lost(replace(task, then=())))

    def tell(self, run_id: str, news: Callable[[SweepObserver], None]) -> None:
        """Pass news on to a sweep's observer, which also hears how the trials of a broken sweep end."""
        sweep = self.sweep_of(run_id)
        self._ask(sweep, lambda: news(sweep.observer))

    def attend(self, *, is_over: bool = False) -> None:
        """Attend to all sweeps that have not ended. To be called several times a second, and when all break off."""
        for sweep in self._going_on:
            self._attend(sweep, is_over)

    def decide(self, run_id: str, ask: Callable[[], T], *, otherwise: T) -> T:
        """What `ask` says of a trial of this sweep; `otherwise` where the sweep has broken down, then or before."""
        sweep = self.sweep_of(run_id)
        answer = None if id(sweep) in self._errors else self._ask(sweep, ask)
        return otherwise if answer is None else answer

    def _next_of(self, sweep: QueuedSweep) -> TrialTask | None:
        task = None if id(sweep) in self._errors else self._ask(sweep, lambda: self._next_task(sweep))
        if task is not None:
            self._sweeps.setdefault(task.spec.run_id, sweep)
            self._out[id(sweep)] += 1
        elif self._is_over(sweep):
            self._going_on.remove(sweep)
            self._attend(sweep, True)
            if sweep.ended is not None:
                sweep.ended(self._errors.get(id(sweep)))
        return task

    def _attend(self, sweep: QueuedSweep, is_over: bool) -> None:
        if sweep.attend is not None:
            self._ask(sweep, partial(sweep.attend, is_over))

    def _next_task(self, sweep: QueuedSweep) -> TrialTask | None:
        """The next trial of the sweep; with one of a confirming round come all others that wait."""
        first = sweep.queue.next_trial()
        waiting = [*([] if first is None else [first]), *self._unbegun.pop(id(sweep), ())]
        if not waiting or waiting[0].spec.confirm_round is None:
            return first
        while (other := sweep.queue.next_trial()) is not None:
            waiting.append(other)
        return replace(waiting[0], then=tuple(waiting[1:]))

    def _is_over(self, sweep: QueuedSweep) -> bool:
        if id(sweep) in self._errors:
            return self._out[id(sweep)] <= 0
        return sweep.queue.is_over

    def _ask(self, sweep: QueuedSweep, ask: Callable[[], T]) -> T | None:
        """What `ask` says; `None` where it fails, and then the sweep is broken. The others go on."""
        if sweep.ended is None:
            return ask()
        try:
            return ask()
        except Exception as error:  # noqa: BLE001  (the boundary of one sweep: the others of a batch go on)
            self._errors.setdefault(id(sweep), error)
            return None
