"""Several sweeps over one pool of slots, without Ray."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Sequence

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
