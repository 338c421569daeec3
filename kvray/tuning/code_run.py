"""`CodeRunner`: runs the winner's code once, in a process of its own, before it is handed over.

Nothing here costs the results: whatever goes wrong becomes the outcome.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kvray.engines.base import EngineAdapter, ModelRequest
from kvray.engines.snippet_case import SnippetCase, SnippetRun, read_answer
from kvray.errors import KvrayError
from kvray.plan.builder import PlanBuilder
from kvray.plan.code_check import compare, sample_tokens
from kvray.plan.snippet import render_snippet
from kvray.record import TrialRecord
from kvray.search_paths import child_environment, python_command
from kvray.store.manifest import CodeCheck, CodeOutcome, SweepManifest
from kvray.tuning.result import TuneResult
from kvray.workload import Cell

LEAST_LIMIT_S = 60
LIMIT_FACTOR = 10
"""Times the seconds that loading and the first call took in the trial, beside `LEAST_LIMIT_S` for libraries to load."""


@dataclass
class CodeRunner:
    """Runs the code of one sweep's winner, once.

    Attributes:
        adapter: the engine of the baseline.
        others: the sweep's further engines; the winner may have any of them.
        excuse: why nothing is to be run, if so.
        before: is called when the process is about to start.
        was_interrupted: whether Ctrl-C ended the process.
    """

    adapter: EngineAdapter
    excuse: str | None = None
    others: tuple[EngineAdapter, ...] = ()
    before: Callable[[], None] = lambda: None
    was_interrupted: bool = field(default=False, init=False)
    _done: dict[str, CodeCheck] = field(default_factory=dict)

    def check(self, result: TuneResult) -> CodeCheck | None:
        """What came of it; what is known already is not tried again. `None` where nothing has won."""
        if not result.analysis.ranking.entries:
            return None
        winner = result.analysis.ranking.winner.record.candidate_id
        known = result.manifest.code_check_of(winner)
        if known is not None and known.outcome is CodeOutcome.CHECKED:
            return known
        if winner not in self._done:
            started = time.monotonic()
            outcome, text = self._outcome(result, winner)
            self._done[winner] = CodeCheck(
                candidate_id=winner,
                fingerprint_id=result.manifest.fingerprint_id,
                outcome=outcome,
                text=text,
                wall_s=None if outcome is CodeOutcome.NOT_RUN else round(time.monotonic() - started, 3),
            )
        return self._done[winner]

    def _outcome(self, result: TuneResult, winner: str) -> tuple[CodeOutcome, str]:
        records = [one.record for one in result.results if one.record.candidate_id == winner]
        trials = [record for record in records if sample_tokens(record)]
        adapter = self._adapter_of(result.manifest, records[0].engine)
        excuse = self.excuse or _excuse(adapter, trials)
        if excuse is not None:
            return CodeOutcome.NOT_RUN, f"The winner's code was not run: {excuse}."
        self.before()
        try:
            return self._ran(result, adapter, trials)
        except KeyboardInterrupt:
            self.was_interrupted = True
            return CodeOutcome.NOT_RUN, "The winner's code was not run to its end: interrupted."
        except (KvrayError, OSError) as error:
            return CodeOutcome.NOT_RUN, f"The winner's code was not run: {str(error).rstrip('.')}."

    def _adapter_of(self, manifest: SweepManifest, engine: str) -> EngineAdapter:
        """Whatever the baseline's engine is called, candidates that are no other engine's are its own."""
        own = engine not in manifest.other_engines
        return self.adapter if own else next(one for one in self.others if one.name == engine)

    def _ran(self, result: TuneResult, adapter: EngineAdapter, trials: list[TrialRecord]) -> tuple[CodeOutcome, str]:
        record, limit_s = trials[0], _limit_s(trials)
        request = _request(result.manifest, record.engine)
        if record.hardware is not None:  # a node of a cluster has its own cache, even one on this very machine
            adapter.fetch_weights(request)
        python = result.manifest.engine_pythons.get(adapter.name)
        tokens = len(sample_tokens(record)[0])
        with tempfile.TemporaryDirectory(prefix="kvray-code-") as name:
            folder = Path(name)
            case = SnippetCase(
                snippet=folder / "optimized_config.py",
                answer=folder / "answer.json",
                request=request,
                cell=Cell(record.sample_context_tokens or 1, tokens, record.batch_size),
                limit_s=limit_s + 5,
            )
            plan = PlanBuilder(result).build().model_copy(update={"sent_models": {}})  # the copies that are here
            case.snippet.write_text(render_snippet(plan), encoding="utf-8")
            case.write(folder / "case.json")
            try:
                code = self._run(adapter, folder, limit_s, record.threads, python)
            except subprocess.TimeoutExpired:
                return CodeOutcome.NOT_RUN, f"The winner's code was not run to its end: {limit_s} s were not enough."
            answer = read_answer(case.answer)
        if isinstance(answer, SnippetRun):
            return compare(answer, trials)
        return CodeOutcome.FAILED, f"The winner's code does not run: {(answer or _end(code)).rstrip('.')}."

    def _run(self, adapter: EngineAdapter, folder: Path, limit_s: int, threads: int | None, python: str | None) -> int:
        """Its exit code.

        Args:
            python: path of the Python in which the trials ran; `None`: kvray's own.

        Raises:
            subprocess.TimeoutExpired: it had to be ended.
        """
        environment = {**adapter.process_environment(), **child_environment(python=python)}
        environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        process = subprocess.Popen(
            python_command("-m", str(adapter.snippet_runner), str(folder / "case.json"), python=python),
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return process.wait(limit_s)
        finally:
            _end_group(process)


def _request(manifest: SweepManifest, engine: str) -> ModelRequest:
    """The model as the trials loaded it; all of it is here."""
    model = manifest.model_of(engine)
    return ModelRequest(
        model_id=model.model_id,
        revision=model.model_revision,
        trust_remote_code=manifest.trust_remote_code,
        allow_pickle=manifest.allow_pickle,
        offline=True,
    )


def _excuse(adapter: EngineAdapter, trials: list[TrialRecord]) -> str | None:
    if adapter.snippet_runner is None:
        return f"the engine {adapter.name} has no code that could be run apart"
    if not trials:
        return "its trials recorded no tokens to compare with"
    if trials[0].host != socket.gethostname():
        return f"it was measured on {trials[0].host}, not here"
    return None


def _limit_s(trials: list[TrialRecord]) -> int:
    cold = max((one.load_s or 0.0) + (one.first_call_s or 0.0) + (one.compile_s or 0.0) for one in trials)
    return LEAST_LIMIT_S + int(LIMIT_FACTOR * cold)


def _end(code: int | None) -> str:
    if code is not None and code < 0:
        return f"it was killed by {signal.Signals(-code).name}"
    return f"it ended with exit code {code} and without a word"


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Whatever still runs of it, its children included."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
