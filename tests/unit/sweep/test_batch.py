"""Several sweeps over one pool of slots, without Ray."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Sequence

import pytest
from queue_samples import BASELINE, SPACE, Deaf, answer, make_queue

from kvray.record import Role
from kvray.sweep.batch import QueuedSweep, SweepBatch
from kvray.sweep.trial_queue import SweepQueue
from kvray.sweep.trial_task import TrialTask


def batch_of(**queues: tuple[SweepQueue, float]) -> SweepBatch:
    return SweepBatch([QueuedSweep(queue=queue, observer=Deaf(), size=size) for queue, size in queues.values()])


def end(batch: SweepBatch, tasks: Sequence[TrialTask | None]) -> None:
    for task in tasks:
        assert task is not None
        batch.trial_finished(answer(task))


def names(tasks: Sequence[TrialTask | None]) -> list[str]:
    return [task.spec.run_id for task in tasks if task is not None]


def test_the_largest_sweep_launches_first_and_the_others_fill_what_it_leaves() -> None:
    small, large = make_queue(run_id="small"), make_queue(run_id="large")
    batch = batch_of(small=(small, 1.0), large=(large, 8.0))
    tasks = [batch.next_trial() for _ in range(2 * len(SPACE))]
    assert names(tasks) == ["large"] * len(SPACE) + ["small"] * len(SPACE)
    assert batch.next_trial() is None
    assert not batch.is_over


def test_each_sweep_has_its_own_baseline_and_ends_by_itself() -> None:
    first, second = make_queue(run_id="first", max_trials=1), make_queue(run_id="second", max_trials=2)
    batch = batch_of(first=(first, 0.0), second=(second, 0.0))
    tasks = [batch.next_trial() for _ in range(3)]
    assert names(tasks) == ["first", "second", "second"]
    baselines = [task.spec for task in tasks if task is not None and task.spec.role is Role.BASELINE]
    assert [spec.candidate for spec in baselines] == [BASELINE, BASELINE]
    end(batch, tasks[:1])
    assert batch.next_trial() is None
    assert first.is_over
    assert not batch.is_over
    end(batch, tasks[1:])
    assert batch.next_trial() is None
    assert batch.is_over


def test_a_sweep_confirms_while_another_still_searches() -> None:
    large, small = make_queue(run_id="large", confirm_rounds=1), make_queue(run_id="small")
    batch = batch_of(large=(large, 2.0), small=(small, 1.0))
    searched = [batch.next_trial() for _ in SPACE]
    waiting = batch.next_trial()
    assert names([waiting]) == ["small"], "the round waits for the last trial of its search"
    end(batch, searched)
    confirming = batch.next_trial()
    assert confirming is not None
    assert (confirming.spec.run_id, confirming.spec.role) == ("large", Role.CONFIRM)


def test_a_lost_trial_comes_back_to_its_own_sweep_before_anything_else() -> None:
    one, other = make_queue(run_id="one"), make_queue(run_id="other")
    batch = batch_of(one=(one, 0.0), other=(other, 0.0))
    tasks = [batch.next_trial() for _ in range(len(SPACE) + 1)]
    lost = tasks[0]
    assert lost is not None
    batch.trial_lost(lost)
    again = batch.next_trial()
    assert again is not None
    assert (again.spec, again.attempt) == (lost.spec, 2)


def test_the_sweep_of_a_trial_is_known_by_its_run() -> None:
    one, other = make_queue(run_id="one"), make_queue(run_id="other")
    batch = batch_of(one=(one, 0.0), other=(other, 0.0))
    assert names([batch.next_trial() for _ in range(len(SPACE) + 1)])[-1] == "other"
    assert batch.sweep_of("one").queue is one
    assert batch.sweep_of("other").queue is other


class Console(Deaf):
    """An observer that holds what cannot be pickled, as those of the command line do."""

    def __init__(self) -> None:
        self.lock = threading.RLock()


def test_tune_can_pickle_what_holds_the_batch_whatever_its_observers_hold() -> None:
    batch = SweepBatch([QueuedSweep(queue=make_queue(run_id="one"), observer=Console())])
    assert isinstance(pickle.loads(pickle.dumps(batch)), SweepBatch)


class Ready:
    """Sweeps that are ready to join as soon as they are asked for; more may come while it is open."""

    def __init__(self, *sweeps: QueuedSweep, is_open: bool = False) -> None:
        self.waiting = list(sweeps)
        self.is_open = is_open

    @property
    def is_over(self) -> bool:
        return not (self.waiting or self.is_open)

    def next_sweep(self) -> QueuedSweep | None:
        return self.waiting.pop(0) if self.waiting else None


def test_a_newcomer_joins_when_no_sweep_has_a_trial_and_the_batch_waits_for_those_that_may_come() -> None:
    first = QueuedSweep(queue=make_queue(run_id="first", max_trials=1), observer=Deaf())
    later = QueuedSweep(queue=make_queue(run_id="later", max_trials=1), observer=Deaf())
    ready = Ready(is_open=True)
    batch = SweepBatch([first], ready)
    task = batch.next_trial()
    assert names([task, batch.next_trial()]) == ["first"]
    end(batch, [task])
    assert batch.next_trial() is None
    assert not batch.is_over, "another one may come"
    ready.waiting.append(later)
    ready.is_open = False
    task = batch.next_trial()
    assert names([task]) == ["later"]
    end(batch, [task])
    assert batch.next_trial() is None
    assert batch.is_over


def test_a_sweep_says_once_that_it_has_ended_when_its_last_trial_has() -> None:
    ended: list[str] = []

    def sweep(name: str) -> QueuedSweep:
        queue = make_queue(run_id=name, max_trials=1)
        return QueuedSweep(queue=queue, observer=Deaf(), ended=lambda error: ended.append(f"{name}: {error}"))

    batch = SweepBatch([sweep("one"), sweep("other")])
    tasks = [batch.next_trial(), batch.next_trial(), batch.next_trial()]
    assert ended == []
    end(batch, tasks[:1])
    batch.next_trial()
    assert ended == ["one: None"]
    end(batch, tasks[1:2])
    batch.next_trial()
    assert ended == ["one: None", "other: None"]
    assert batch.is_over


def broken_queue(method: str) -> SweepQueue:
    """One of which `method` fails."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError(method)

    queue = make_queue(run_id="broken")
    setattr(queue, method, fail)
    return queue


def fault_of_an_end(batch: SweepBatch, task: TrialTask) -> None:
    end(batch, [task])


def fault_of_decision(batch: SweepBatch, task: TrialTask) -> None:
    stopped = batch.decide("broken", lambda: str(batch.sweep_of("broken").queue.is_out_of_time()), otherwise="STOP")
    assert stopped == "STOP"
    end(batch, [task])


@pytest.mark.parametrize(
    ("method", "happens"), [("trial_finished", fault_of_an_end), ("is_out_of_time", fault_of_decision)]
)
def test_an_error_in_one_sweep_ends_that_sweep_alone_and_after_its_running_trials(
    method: str, happens: Callable[[SweepBatch, TrialTask], None]
) -> None:
    ended: list[Exception | None] = []
    broken = QueuedSweep(queue=broken_queue(method), observer=Deaf(), size=1.0, ended=ended.append)
    whole = QueuedSweep(queue=make_queue(run_id="whole"), observer=Deaf(), ended=ended.append)
    batch = SweepBatch([broken, whole])
    first, second = batch.next_trial(), batch.next_trial()
    assert names([first, second]) == ["broken", "broken"]
    assert first is not None
    happens(batch, first)
    third = batch.next_trial()
    assert names([third]) == ["whole"]
    assert ended == [], "its second trial still runs"
    end(batch, [second])
    batch.next_trial()
    assert [type(error) for error in ended] == [ZeroDivisionError]
    assert not batch.is_over


def test_an_observer_that_fails_ends_its_sweep_and_without_an_end_to_tell_of_the_error_goes_on() -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    ended: list[Exception | None] = []
    guarded = QueuedSweep(queue=make_queue(run_id="guarded"), observer=Deaf(), size=1.0, ended=ended.append)
    alone = QueuedSweep(queue=make_queue(run_id="alone"), observer=Deaf())
    batch = SweepBatch([guarded, alone])
    task = batch.next_trial()
    batch.tell("guarded", fail)
    end(batch, [task])
    assert names([batch.next_trial()]) == ["alone"]
    assert [type(error) for error in ended] == [ZeroDivisionError]
    with pytest.raises(ZeroDivisionError):
        batch.tell("alone", fail)


def test_a_sweep_whose_queue_fails_at_once_is_told_of() -> None:
    ended: list[Exception | None] = []
    broken = QueuedSweep(queue=broken_queue("next_trial"), observer=Deaf(), ended=ended.append)
    batch = SweepBatch([], Ready(broken))
    assert batch.next_trial() is None
    assert batch.is_over
    assert [type(error) for error in ended] == [ZeroDivisionError]


def test_a_sweep_is_attended_to_while_it_runs_and_once_more_before_it_is_said_to_have_ended() -> None:
    heard: list[str] = []

    def attend(is_over: bool) -> None:
        heard.append("over" if is_over else "runs")

    def ended(error: Exception | None) -> None:
        heard.append(f"ended: {error}")

    sweep = QueuedSweep(queue=make_queue(max_trials=1), observer=Deaf(), attend=attend, ended=ended)
    batch = SweepBatch([sweep])
    task = batch.next_trial()
    batch.attend()
    end(batch, [task])
    assert batch.next_trial() is None
    assert heard == ["runs", "over", "ended: None"]
    batch.attend()
    assert heard[3:] == []


def test_an_error_while_a_sweep_is_attended_to_is_its_own() -> None:
    errors: list[Exception | None] = []

    def attend(is_over: bool) -> None:
        raise ZeroDivisionError("a fault")

    broken = QueuedSweep(
        queue=make_queue(run_id="broken"), observer=Deaf(), attend=attend, ended=errors.append, size=2.0
    )
    batch = SweepBatch([broken, QueuedSweep(queue=make_queue(run_id="whole"), observer=Deaf())])
    task = batch.next_trial()
    batch.attend()
    end(batch, [task])
    assert names([batch.next_trial()]) == ["whole"]
    assert [type(error) for error in errors] == [ZeroDivisionError]
