"""Trials over two processes of tensor parallelism: whichever of them dies, the trial ends and nobody is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.engines.base import ModelRequest
from kvray.engines.transformers import TransformersAdapter
from kvray.record import Role, TrialStatus
from kvray.testing.trial_contract import still_alive
from kvray.trial.events import Event, RunFinished, RungFinished, TrialEnded
from kvray.trial.process import Launcher, TrialProcess
from kvray.trial.spec import ReferenceSpec, TrialSpec
from kvray.workload import create_custom_profile

TINY = f"random:{Path(__file__).parent.parent / 'assets' / 'tiny_llama'}"
BASELINE = Candidate(
    engine="transformers", cache=CacheStrategy.DYNAMIC, attention=AttentionBackend.SDPA, dtype=DType.FLOAT32
)
SPREAD = Candidate(
    engine="transformers",
    cache=CacheStrategy.DYNAMIC,
    attention=AttentionBackend.SDPA,
    dtype=DType.FLOAT32,
    parallelism=2,
    settings=(("split", "tp"),),
)
PROFILE = create_custom_profile(
    "fast", context_lengths=(48,), output_lengths=(4,), weight_ttft=0.4, weight_throughput=0.4, weight_memory=0.2
)
Start = Callable[..., TrialProcess]


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVRAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Launcher(TransformersAdapter())


@pytest.fixture
def start(launcher: Launcher, tmp_path: Path) -> Iterator[Start]:
    started: list[TrialProcess] = []

    def begin(on_event: Callable[[TrialProcess, Event], None] = lambda process, event: None) -> TrialProcess:
        spec = TrialSpec(
            run_id="20260101-000000-test",
            trial_id="0000-x",
            role=Role.SEARCH,
            request=ModelRequest(model_id=TINY),
            candidate=SPREAD,
            profile=PROFILE,
            device=DeviceType.CPU,
            timeout_s=240.0,
            reference=ReferenceSpec(candidate=BASELINE, model_revision="1"),
        )
        process = TrialProcess(launcher, spec, tmp_path / "trial.log", on_event=lambda event: on_event(process, event))
        started.append(process)
        return process

    yield begin
    for process in started:
        process.close()


def ranks_of(process: TrialProcess) -> list[int]:
    return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]


def test_a_spread_trial_is_measured_and_one_whose_rank_dies_is_crashed_in_its_words(start: Start) -> None:
    killed: list[int] = []

    def kill_a_rank(process: TrialProcess, event: Event) -> None:
        if isinstance(event, RunFinished) and event.run.rung == 1 and not killed:
            killed.extend(ranks_of(process))
            os.kill(killed[0], signal.SIGABRT)

    process = start(kill_a_rank)
    first = process.advance()
    assert isinstance(first, RungFinished), (first, process.log_tail())
    facts = first.facts
    assert facts.quality is not None, facts.quality_note
    assert facts.quality.kl_mean == pytest.approx(0.0, abs=1e-4)
    assert facts.observed.threads == 1
    run = process.runs[0]
    assert run.ttft_ms > 0
    assert run.peak_mib is not None
    alone_mib = psutil.Process(process.pid).memory_info().rss / 2**20
    assert run.peak_mib > alone_mib * 1.3, "both processes count"
    event = process.advance()
    while isinstance(event, RungFinished):
        event = process.advance()
    assert isinstance(event, TrialEnded)
    assert event.status is TrialStatus.CRASHED
    assert event.message is not None
    assert event.message.startswith("rank 1 was killed by SIGABRT"), process.log_tail()
    process.close()
    assert still_alive((*process.pids, *killed)) == []


def test_no_rank_outlives_the_trials_own_process(start: Start) -> None:
    ranks: list[int] = []

    def kill_rank_0(process: TrialProcess, event: Event) -> None:
        if isinstance(event, RunFinished) and not ranks:
            ranks.extend(ranks_of(process))
            os.kill(process.pid, signal.SIGKILL)

    process = start(kill_rank_0)
    event = process.advance()
    assert isinstance(event, TrialEnded)
    assert event.status is TrialStatus.CRASHED
    assert len(ranks) >= 1
    assert still_alive(ranks) == [], "before the slot has looked after them"
