"""What Tune is handed, and when."""

from __future__ import annotations

from queue_samples import answer, make_queue

from kvray.sweep.searcher import QueueSearcher
from kvray.sweep.slot import RESULT, TASK


def test_what_waits_before_a_launch_is_called_while_no_trial_runs_and_there_is_one_to_launch() -> None:
    waits: list[str] = []
    searcher = QueueSearcher(make_queue(), capacity=lambda: 2, before_launch=lambda: waits.append("wait"))
    tasks = {name: searcher.suggest(name) for name in ("a", "b")}
    assert waits == ["wait"], "the second trial runs beside the first"
    for name, config in tasks.items():
        assert isinstance(config, dict)
        searcher.on_trial_complete(name, {RESULT: answer(config[TASK])})
    assert isinstance(searcher.suggest("c"), dict)
    assert waits == ["wait"] * 2


def test_nothing_waits_at_the_end_of_a_sweep() -> None:
    waits: list[str] = []
    searcher = QueueSearcher(make_queue(max_trials=1), capacity=lambda: 1, before_launch=lambda: waits.append("wait"))
    config = searcher.suggest("a")
    assert isinstance(config, dict)
    searcher.on_trial_complete("a", {RESULT: answer(config[TASK])})
    assert searcher.suggest("b") == "FINISHED"
    assert waits == ["wait"]
