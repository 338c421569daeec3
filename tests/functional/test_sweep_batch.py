"""Several models at once and one after the other in a single Ray: each is a sweep of its own."""

from __future__ import annotations

import ctypes
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray as ray_module

from kvray.candidate import DeviceType
from kvray.config import SearchStrategy, TuneConfig
from kvray.record import Role, TrialStatus
from kvray.store.claim import claimed_sweep
from kvray.store.parquet import ResultsStore
from kvray.sweep.driver import run_sweep
from kvray.sweep.quiet import quiet_ray
from kvray.sweep.session import RaySession
from kvray.sweep.slot_plan import plan_slots
from kvray.testing.fake import FakeAdapter
from kvray.tuning.code_run import CodeRunner
from kvray.tuning.engines import SweepEngines, ready_parts
from kvray.tuning.outcome import write_up
from kvray.tuning.prepared import PreparedSweep, prepare_sweep
from kvray.tuning.result import TuneResult
from kvray.tuning.search import TuningSearch
from kvray.tuning.share import Share
from kvray.workload import create_custom_profile

pytestmark = pytest.mark.slow  # test_batch_command shows it by the command line
PROFILE = create_custom_profile(
    "batch", context_lengths=(64,), output_lengths=(4,), weight_ttft=0.4, weight_throughput=0.4, weight_memory=0.2
)
FIRST, SECOND, LATER = "fake:ok", "fake:eager=oom", "fake:static=oom"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What two models at once and a third afterwards have come to."""

    first: TuneResult
    second: TuneResult
    later: TuneResult
    is_still_alive: bool
    sigterm_before: int | None
    sigterm_after: int | None


def config_of(model_id: str, folder: Path) -> TuneConfig:
    return TuneConfig(
        model_id=model_id,
        profile=PROFILE,
        device=DeviceType.CPU,
        engine="fake",
        output_dir=folder / "results",
        search=SearchStrategy.GRID,
        dtypes=("float32",),
        attentions=("sdpa", "eager"),
        confirm_rounds=1,
        slots=2,
    )


def prepared(config: TuneConfig, run_id: str, ray: RaySession, scratch: Path, stack: ExitStack) -> PreparedSweep:
    engines, store = SweepEngines([FakeAdapter()]), ResultsStore(config.output_dir)
    preview, parts = ready_parts(engines, engines.resolve(engines.check(config)))
    slots = plan_slots(ray.nodes(), device=DeviceType.CPU, slots=config.slots)
    return prepare_sweep(
        store,
        config,
        [Share(preview=preview, parts=parts, slots=slots)],
        claim=stack.enter_context(claimed_sweep(store, run_id)),
        run_id=run_id,
        scratch=scratch,
        started_s=time.monotonic(),
    )


@pytest.fixture(scope="module")
def sigterm() -> Iterator[int | None]:
    """What the system does at SIGTERM while this program has a handler of its own."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield sigterm_handler()
    signal.signal(signal.SIGTERM, before)


def sigterm_handler() -> int | None:
    """Address of the handler that the system calls: Python remembers its own although C code has replaced it."""
    action = ctypes.create_string_buffer(512)  # a struct sigaction, larger than any system's
    ctypes.CDLL(None).sigaction(signal.SIGTERM, None, action)
    return ctypes.c_void_p.from_buffer(action).value  # the first member (sigaction(2)); nothing stands for the default


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory, sigterm: int | None) -> Batch:
    folder = tmp_path_factory.mktemp("batch")
    scratch = folder / "scratch"
    scratch.mkdir()
    with ExitStack() as stack:
        # A Ray that another test started by itself may have switched tokens on in this process.
        stack.enter_context(pytest.MonkeyPatch.context()).delenv("RAY_AUTH_MODE", raising=False)
        stack.enter_context(quiet_ray(scratch / "sweep.log"))
        ray = stack.enter_context(RaySession(address=None, scratch=scratch))
        sweeps = [
            prepared(config_of(model, folder), run_id, ray, scratch, stack)
            for model, run_id in ((FIRST, "first"), (SECOND, "second"))
        ]
        for sweep in sweeps:
            sweep.start()
        slots = plan_slots(ray.nodes(), device=DeviceType.CPU, slots=2)
        run_sweep(*(one for sweep in sweeps for one in sweep.queued), ray=ray, slots=slots, scratch=scratch)
        for sweep in sweeps:
            sweep.end()
        runner = CodeRunner(FakeAdapter(), excuse="a test", before=lambda: None)
        first, second = (write_up(sweep.keeper, PROFILE, runner.check) for sweep in sweeps)
        later = TuningSearch(config=config_of(LATER, folder), adapter=FakeAdapter(), ray=ray).run()
        is_still_alive = bool(ray.nodes())
    return Batch(
        first=first,
        second=second,
        later=later,
        is_still_alive=is_still_alive,
        sigterm_before=sigterm,
        sigterm_after=sigterm_handler(),
    )


def ranked(result: TuneResult) -> set[str]:
    return {entry.record.candidate.label for entry in result.analysis.ranking.entries}


def searched(result: TuneResult) -> dict[str, TrialStatus]:
    return {one.record.candidate.label: one.record.status for one in result.results if one.record.role != Role.CONFIRM}


ALL = {f"{cache}/{attention}/float32" for cache in ("dynamic", "static") for attention in ("sdpa", "eager")}
EAGER = {label for label in ALL if "eager" in label}


def test_each_model_of_a_batch_ends_with_a_ranking_of_its_own(batch: Batch) -> None:
    assert ranked(batch.first) == ALL
    assert ranked(batch.second) == ALL - EAGER
    assert {label for label, status in searched(batch.second).items() if status is TrialStatus.OOM} == EAGER


def test_records_and_manifests_stay_apart(batch: Batch) -> None:
    for result, model, run_id in ((batch.first, FIRST, "first"), (batch.second, SECOND, "second")):
        assert (result.manifest.run_id, result.manifest.model_id) == (run_id, model)
        assert {(one.record.run_id, one.record.model_id) for one in result.results} == {(run_id, model)}
        assert result.manifest.attempts[-1].ended_at is not None
        assert result.paths.report_html.is_file()


def test_a_model_fills_the_slot_that_another_leaves_and_each_confirms_its_winner(batch: Batch) -> None:
    """The first model's confirming round waits for the last trial of its search: the other slot is the second's."""
    first, second = ([one.record for one in result.results] for result in (batch.first, batch.second))
    rounds = [one.started_at for one in first if one.role is Role.CONFIRM]
    assert min(one.started_at for one in second) < min(rounds)  # type: ignore[type-var,operator]
    assert any(one.role is Role.CONFIRM for one in second)


def test_a_ray_that_is_handed_in_outlives_the_sweep(batch: Batch) -> None:
    assert ranked(batch.later) == {label for label in ALL if label.startswith("dynamic")}
    assert batch.is_still_alive


def test_a_ray_that_has_ended_leaves_sigterm_to_this_program(batch: Batch) -> None:
    assert batch.sigterm_after == batch.sigterm_before is not None


@pytest.mark.usefixtures("batch")
def test_a_private_ray_leaves_no_tokens_switched_on() -> None:
    """Ray keeps this for the whole process: the next cluster's slots would ask their workers for a token."""
    assert ray_module._raylet.get_authentication_mode() == ray_module._raylet.AuthenticationMode.DISABLED
