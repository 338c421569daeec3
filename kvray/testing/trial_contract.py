"""What a slot relies on: the engine in real measurement processes, started and ended as a sweep does it."""

from __future__ import annotations

import math
import os
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from kvray.candidate import DeviceType
from kvray.engines.base import DeviceFacts, EngineAdapter, ModelRequest
from kvray.engines.snippet_case import SnippetCase, SnippetRun, read_answer
from kvray.record import Role, Run, TrialStatus
from kvray.search_paths import child_environment, python_command
from kvray.trial.events import RungFinished, Sample, TrialEnded
from kvray.trial.process import Launcher, TrialProcess
from kvray.trial.spec import ALL_RUNGS, ReferenceSpec, TrialSpec
from kvray.workload import WorkloadProfile

CPU = DeviceFacts(device=DeviceType.CPU, device_name="the CPU of a test")
PHASE_S = 120.0
"""For each phase of a trial: loading a library may take a while on a machine with other work."""
GONE_S = 10.0
"""In which processes that were ended are gone."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A trial that has ended, seen from the slot: what it told, and which processes it had."""

    rungs: tuple[RungFinished, ...]
    end: TrialEnded | None
    runs: tuple[Run, ...]
    pids: tuple[int, ...]
    log: str | None


Measure = Callable[..., Measured]


class TrialContract:
    """Every trial ends in one status and leaves no process behind. `EngineContract` brings the other fixtures."""

    missing_model: str
    _spec: TrialSpec
    _trial: Measured

    @pytest.fixture
    def launcher(
        self, adapter: EngineAdapter, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> Launcher:
        """The slot's way to start processes. The fork server keeps the cache folder that it was started with, so all
        tests have the same."""
        monkeypatch.setenv("KVRAY_CACHE", str(tmp_path_factory.getbasetemp() / "kvray-cache"))
        return Launcher(adapter)

    @pytest.fixture
    def spec(self, adapter: EngineAdapter, request_: ModelRequest, profile: WorkloadProfile) -> TrialSpec:
        """A trial of the baseline, whose quality is compared with its own. Made once for all tests of an engine."""
        if "_spec" not in vars(type(self)):
            type(self)._spec = self._spec_of(adapter, request_, profile)
        return self._spec

    def _spec_of(self, adapter: EngineAdapter, request_: ModelRequest, profile: WorkloadProfile) -> TrialSpec:
        model = adapter.identify_model(request_, adapter.describe_model(request_))
        baseline = adapter.baseline(model, CPU, batch_size=1)
        return TrialSpec(
            run_id="20260101-000000-test",
            trial_id="0000-contract",
            role=Role.BASELINE,
            request=replace(request_, model_id=model.model_id, revision=model.revision),
            candidate=baseline,
            profile=profile,
            device=DeviceType.CPU,
            timeout_s=PHASE_S,
            reference=ReferenceSpec(candidate=baseline, model_revision=model.revision),
        )

    @pytest.fixture
    def measure(self, launcher: Launcher, tmp_path: Path) -> Measure:
        """Run a trial to its end, or stop it after so many rungs."""

        def run(spec: TrialSpec, *, stop_after: float = math.inf) -> Measured:
            process = TrialProcess(launcher, spec, tmp_path / "trial.log")
            told: list[RungFinished | TrialEnded] = []
            try:
                while len(told) < stop_after and not (told and isinstance(told[-1], TrialEnded)):
                    told.append(process.advance())
            finally:
                process.close()
            return Measured(
                rungs=tuple(event for event in told if isinstance(event, RungFinished)),
                end=next((event for event in told if isinstance(event, TrialEnded)), None),
                runs=tuple(process.runs),
                pids=process.pids,
                log=process.log_tail(),
            )

        return run

    @pytest.fixture
    def trial(self, spec: TrialSpec, measure: Measure) -> Measured:
        """The whole trial of the baseline, measured once for all tests of an engine."""
        if "_trial" not in vars(type(self)):
            type(self)._trial = measure(spec)
        return self._trial

    def test_a_trial_in_a_process_of_its_own_measures_every_rung(
        self, profile: WorkloadProfile, trial: Measured
    ) -> None:
        assert trial.end is not None, trial.log
        assert (trial.end.status, trial.end.message) == (TrialStatus.OK, None), trial.log
        assert [told.rung for told in trial.rungs] == list(ALL_RUNGS)
        for rung in ALL_RUNGS[:2]:
            assert {run.cell for run in trial.runs if run.rung == rung} == set(profile.cells(1, rung=rung))
        assert all(run.ttft_ms > 0 and run.decode_tok_s > 0 for run in trial.runs)
        facts = trial.rungs[-1].facts
        assert facts.pid in trial.pids
        assert facts.pid != os.getpid()
        assert facts.sample is not None
        assert still_alive(trial.pids) == []

    def test_the_baseline_loses_no_quality_against_itself(self, trial: Measured) -> None:
        facts = trial.rungs[-1].facts
        if facts.quality is None:
            assert facts.quality_note, "neither a figure nor a reason"
            pytest.skip(f"the engine tells no quality: {facts.quality_note}")
        assert facts.quality.kl_mean == pytest.approx(0.0, abs=1e-3)
        assert facts.quality.top1_agreement == pytest.approx(1.0, abs=0.05)

    def test_a_trial_that_is_stopped_between_rungs_leaves_no_process(self, spec: TrialSpec, measure: Measure) -> None:
        trial = measure(replace(spec, reference=None), stop_after=1)
        assert [told.rung for told in trial.rungs] == [0], trial.end
        assert still_alive(trial.pids) == []

    def test_a_model_that_is_gone_by_then_ends_the_trial_with_the_reason(
        self, spec: TrialSpec, measure: Measure
    ) -> None:
        gone = ModelRequest(model_id=self.missing_model)
        trial = measure(replace(spec, request=gone, reference=None))
        assert trial.end is not None
        assert trial.end.status is TrialStatus.ERROR
        assert trial.end.message
        assert still_alive(trial.pids) == []

    def test_the_code_of_the_baseline_generates_what_its_trial_did(
        self, adapter: EngineAdapter, spec: TrialSpec, trial: Measured, tmp_path: Path
    ) -> None:
        if adapter.snippet_runner is None:
            pytest.skip("the engine has no code that could be run apart")
        facts = trial.rungs[-1].facts
        assert facts.sample is not None
        ran = _run_code(adapter, spec, facts.sample, tmp_path)
        assert ran.tokens == facts.sample.tokens
        assert ran.cache_class in (None, facts.observed.cache_class)


def _run_code(adapter: EngineAdapter, spec: TrialSpec, sample: Sample, folder: Path) -> SnippetRun:
    case = SnippetCase(
        snippet=folder / "code.py",
        answer=folder / "answer.json",
        request=spec.request,
        cell=sample.cell._replace(output_tokens=len(sample.tokens[0])),
        limit_s=int(PHASE_S),
    )
    source = adapter.render_snippet(
        spec.request,
        loader=adapter.describe_model(spec.request).loader,
        candidate=spec.candidate,
        device=spec.device,
        cells=spec.profile.cells(spec.candidate.batch_size, rung=ALL_RUNGS[-1]),
    )
    return run_code(adapter, case, source)


def run_code(adapter: EngineAdapter, case: SnippetCase, source: str) -> SnippetRun:
    """Run the code `source` as a sweep does, in a process of its own, with its files beside `case.snippet`."""
    folder = case.snippet.parent
    case.snippet.write_text(source, encoding="utf-8")
    case.write(folder / "case.json")
    done = subprocess.run(
        python_command("-m", str(adapter.snippet_runner), str(folder / "case.json")),
        cwd=folder,
        env={**adapter.process_environment(), **child_environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    answer = read_answer(case.answer)
    assert isinstance(answer, SnippetRun), (answer, done.stderr)
    return answer


def still_alive(pids: Iterable[int]) -> list[int]:
    """Those of `pids` that are not gone within a moment."""
    asked, deadline = tuple(pids), time.monotonic() + GONE_S
    while (left := [pid for pid in asked if is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def is_alive(pid: int) -> bool:
    """Whether a process runs; a dead one that its parent has not taken note of does not."""
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False
