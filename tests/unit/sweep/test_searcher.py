"""What Tune is handed, and when."""

from __future__ import annotations

from queue_samples import Deaf, answer, make_queue

from kvray.sweep.admission import Admission
from kvray.sweep.batch import QueuedSweep, SweepBatch
from kvray.sweep.capacity import Room
from kvray.sweep.lanes import Lane, Lanes
from kvray.sweep.searcher import BatchSearcher
from kvray.sweep.slot import RESULT, TASK
from kvray.sweep.trial_queue import SweepQueue


def make_searcher(queue: SweepQueue, *, slots: int, waits: list[str]) -> BatchSearcher:
    batch = SweepBatch([QueuedSweep(queue=queue, observer=Deaf())])
    lane = Lane(batch=batch, admission=Admission(batch, room=lambda: Room(slots=slots)))
    return BatchSearcher(Lanes({None: lane}), before_launch=lambda: waits.append("wait"))


def test_what_waits_before_a_launch_is_called_while_no_trial_runs_and_there_is_one_to_launch() -> None:
    waits: list[str] = []
    searcher = make_searcher(make_queue(), slots=2, waits=waits)
    tasks = {name: searcher.suggest(name) for name in ("a", "b")}
    assert waits == ["wait"], "the second trial runs beside the first"
    for name, config in tasks.items():
        assert isinstance(config, dict)
        searcher.on_trial_complete(name, {RESULT: answer(config[TASK])})
    assert isinstance(searcher.suggest("c"), dict)
    assert waits == ["wait"] * 2


def test_nothing_waits_at_the_end_of_a_sweep() -> None:
    waits: list[str] = []
    searcher = make_searcher(make_queue(max_trials=1), slots=1, waits=waits)
    config = searcher.suggest("a")
    assert isinstance(config, dict)
    searcher.on_trial_complete("a", {RESULT: answer(config[TASK])})
    assert searcher.suggest("b") == "FINISHED"
    assert waits == ["wait"]
