"""The protocol of a trial inside its process: fetch, load, then rung by rung prepare, warm up, measure, report.

Rung 0 measures every context length once with few tokens, and quality at the longest; rung 1 every cell once, rung 2
the remaining repeats. After each rung the slot says whether to go on.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from kvray.candidate import CompileMode, DeviceType
from kvray.engines.base import (
    EngineAdapter,
    Generation,
    LoadedModel,
    Observed,
    OutOfMemoryError,
    SubstitutedError,
    UnsupportedError,
)
from kvray.errors import sentence_of
from kvray.probes.cgroups import cpu_quota
from kvray.probes.cpu import available_cpus
from kvray.probes.disturbance import TrialWatch
from kvray.probes.environment import library_versions
from kvray.record import Phase, Run
from kvray.trial.events import Event, PhaseStarted, RunFinished, RungFinished, Sample, TrialFacts
from kvray.trial.forced_logs import logs_of
from kvray.trial.measure import check_generation, decode_tok_s, measure_run, ttft_ms
from kvray.trial.quality import IncomparableError, QualityError, check_loss, compare
from kvray.trial.reference import load_reference, reference_path
from kvray.trial.reference_process import ensure_reference
from kvray.trial.repeats import ExtraRuns
from kvray.trial.spec import LAST_RUNG, ReferenceSpec, TrialSpec
from kvray.trial.written_text import writing_note
from kvray.workload import Cell

WARMUP_TOKENS = 8
WARMUP_TOLERANCE = 0.15
"""Two successive warm-up calls agree when TTFT and tok/s both differ by less. Repeats of a steady configuration within
one process were seen to differ by up to 10 % on a shared CPU; what is still warming up differs by a third and more."""
MAX_WARMUP_CALLS = 6
_MIB = 1024 * 1024


class TrialProtocol:
    """Runs one trial. `phase` and `facts` say how far it came, also after an exception.

    `open_watch` and `clock` are what a test replaces.
    """

    def __init__(
        self,
        spec: TrialSpec,
        adapter: EngineAdapter,
        *,
        emit: Callable[[Event], None],
        may_continue: Callable[[], bool],
        device_memory_mib: Callable[[Collection[int]], Sequence[float] | None],
        open_watch: Callable[[DeviceType], TrialWatch] = TrialWatch,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.phase = Phase.START
        self.facts = TrialFacts(
            pid=os.getpid(),
            host=socket.gethostname(),
            niceness=os.getpriority(os.PRIO_PROCESS, 0),
            cpus=available_cpus(),
            cpu_quota=cpu_quota(),
            engine_versions=library_versions(adapter.libraries),
        )
        self._spec = spec
        self._adapter = adapter
        self._emit = emit
        self._may_continue = may_continue
        self._device_memory_mib = device_memory_mib
        self._open_watch = open_watch
        self._clock = clock
        self._extra_runs = ExtraRuns()
        self._runs_made: Counter[tuple[Cell, bool]] = Counter()
        self._prepared: Cell | None = None
        self._steady: dict[tuple[int, int], tuple[float, float]] = {}
        self._proven: list[Cell] = []
        self._reference: Path | None = None

    def run(self) -> bool:
        """Run rung after rung until the last one is done (`True`) or the slot says stop (`False`)."""
        self._watch = self._open_watch(self._spec.device)
        self._enter(Phase.PREPARE)
        if self._spec.reference is not None:
            self._find_reference(self._spec.reference)
        self._adapter.fetch_weights(self._spec.request)
        model = self._load()
        self._watch.own.follow(model.processes)
        try:
            for rung in self._spec.rungs:
                self._run_rung(model, rung)
                if rung == 0 and self._spec.reference is not None and self._reference is not None:
                    self._measure_quality(model, self._spec.reference, self._reference)
                if rung == self._spec.rungs[-1] and self._spec.told_tokens is not None:
                    self._tell_text(model, self._spec.told_tokens)
                self.facts = replace(self.facts, compilation=model.compilation())
                self._emit(RungFinished(rung=rung, facts=self.facts))
                if rung != self._spec.rungs[-1] and not self._may_continue():
                    return False
            return True
        finally:
            model.close()

    def _find_reference(self, reference: ReferenceSpec) -> None:
        """Before anything is computed here, because the process that makes it may be forked."""
        path = reference_path(self._spec, reference)
        with self._busy():
            note = ensure_reference(
                self._spec, reference, self._adapter, path, fetched=lambda: self._enter(Phase.REFERENCE)
            )
        if note is None:
            self._reference = path
        self.facts = replace(self.facts, quality_note=note)

    def _load(self) -> LoadedModel:
        self._enter(Phase.LOAD)
        started = self._clock()
        with self._busy():
            model = self._adapter.load(self._spec.request, self._spec.candidate, self._spec.device, self._spec.profile)
        load_s = self._clock() - started
        self.facts = replace(self.facts, load_s=load_s, cold_s=load_s)
        return model

    def _run_rung(self, model: LoadedModel, rung: int) -> None:
        for cell in self._cells(rung):
            self._make_ready(model, cell)
            self._enter(Phase.MEASURE, cell)
            for _ in self._repeats(rung):
                self._measure_calmly(model, cell, rung)
        if self._spec.device is DeviceType.CPU:
            self.facts = replace(self.facts, library_mib=self._watch.own.libraries_mib())

    def _measure_calmly(self, model: LoadedModel, cell: Cell, rung: int) -> None:
        """Measure, and again at once while the run was disturbed and the limits allow. Every run is told."""
        run, run_s = self._measure(model, cell, rung)
        while run.disturbed and self._extra_runs.may_repeat(cell, rung, run_s=run_s, busy_s=self.facts.busy_s):
            run, run_s = self._measure(model, cell, rung)
            self._extra_runs.note(cell, rung, run_s)

    def _measure(self, model: LoadedModel, cell: Cell, rung: int) -> tuple[Run, float]:
        """One run, and the seconds it took."""
        numbered = (cell, rung == 0)  # rungs 1 and 2 share their cells, and count on
        started = self._clock()
        with self._busy():
            run = measure_run(model, self._spec, cell, rung=rung, repeat=self._runs_made[numbered], watch=self._watch)
            self._check_used(model, cell)
        run_s = self._clock() - started
        self._runs_made[numbered] += 1
        self._note_memory(model)
        self.facts = replace(self.facts, device_state=self._watch.device_state)
        self._emit(RunFinished(run=run))
        return run, run_s

    def _measure_quality(self, model: LoadedModel, reference: ReferenceSpec, path: Path) -> None:
        """Where it cannot be measured the trial goes on without."""
        self._enter(Phase.QUALITY)
        # The cells of rung 0 rise, so the longest is the one that is prepared.
        started = self._clock()
        try:
            with self._busy():
                made = load_reference(path)
                if reference.candidate.engine != self._spec.candidate.engine:
                    note = writing_note(model, made, maker=reference.candidate.engine)
                    self.facts = replace(self.facts, quality_note=note)
                loss = compare(made, model.forced_log_probabilities(made.forced_text))
        except (UnsupportedError, OutOfMemoryError, IncomparableError) as error:
            self.facts = replace(self.facts, quality_note=sentence_of(error))
            return
        except QualityError as error:
            self.facts = replace(self.facts, quality_note=sentence_of(error))
            if reference.enforced and self._spec.profile.limits.max_quality_loss is not None:
                raise
            return
        self.facts = replace(self.facts, quality=loss, quality_s=self._clock() - started)
        if reference.enforced:
            check_loss(loss, self._spec.profile.limits.max_quality_loss)

    def _tell_text(self, model: LoadedModel, tokens: int) -> None:
        """After all runs, so that they are those of a trial that tells nothing."""
        self._enter(Phase.QUALITY)
        try:
            with self._busy():
                text = model.forced_text(tokens)
                forced = logs_of(model.forced_log_probabilities(text), text)
        except (UnsupportedError, OutOfMemoryError) as error:
            self.facts = replace(self.facts, quality_note=sentence_of(error))
        else:
            self.facts = replace(self.facts, forced=forced)

    def _cells(self, rung: int) -> list[Cell]:
        """The rung's cells, the one that is prepared already first."""
        cells = self._spec.profile.cells(self._spec.candidate.batch_size, rung=rung)
        return sorted(cells, key=lambda cell: cell != self._prepared)

    def _repeats(self, rung: int) -> range:
        """Rung 1's run is the first of a cell's repeats, so rung 2 adds the others."""
        return range(1, self._spec.profile.repeats) if rung == LAST_RUNG else range(1)

    def _make_ready(self, model: LoadedModel, cell: Cell) -> None:
        if cell == self._prepared:
            return
        self._enter(Phase.WARMUP, cell)
        with self._busy():
            model.prepare(cell)
            self._prepared = cell
            self._warm_up(model, cell)

    def _warm_up(self, model: LoadedModel, cell: Cell) -> None:
        """Call until two successive calls at this context agree. One of the cell's calls is observed."""
        shape = (cell.context_tokens, cell.batch_size)
        spent: list[float] = []
        is_steady = False
        while (not is_steady and len(spent) < MAX_WARMUP_CALLS) or cell not in self._proven:
            before, may_be_cold = self._steady.get(shape), not spent and (self._compiles or not self._proven)
            is_observed = cell not in self._proven and not may_be_cold
            generation, call_s = (self._observed_call if is_observed else self._plain_call)(model, cell)
            if generation is None:
                continue
            spent.append(call_s)
            self._note_sample(generation, cell)
            self._steady[shape] = ttft_ms(generation), decode_tok_s(generation, cell.batch_size)
            is_steady = before is not None and _agree(before, self._steady[shape])
        self.facts = replace(self.facts, compilation=model.compilation())
        self._note_cold_cost(beyond_steady_s(spent, is_steady=is_steady), is_steady=is_steady)

    def _plain_call(self, model: LoadedModel, cell: Cell) -> tuple[Generation, float]:
        """An unrecorded generation, and the seconds it took."""
        tokens, started = min(WARMUP_TOKENS, cell.output_tokens), self._clock()
        generation = model.generate(tokens)
        call_s = self._clock() - started
        first_s = call_s if self.facts.first_call_s is None else self.facts.first_call_s
        self.facts = replace(self.facts, warmup_s=self.facts.warmup_s + call_s, first_call_s=first_s)
        check_generation(generation, tokens, cell.batch_size)
        self._check_used(model, cell)
        return generation, call_s

    def _observed_call(self, model: LoadedModel, cell: Cell) -> tuple[Generation | None, float]:
        """The same under a profiler, and what that took beside. Without time stamps all of it counts as proof."""
        started = self._clock()
        seen = model.observe(min(WARMUP_TOKENS, cell.output_tokens))
        generation, call_s = seen.generation, 0.0
        if generation is not None:
            call_s = generation.token_s[-1] - generation.started_s
        self.facts = replace(
            self.facts,
            warmup_s=self.facts.warmup_s + call_s,
            proof_s=self.facts.proof_s + self._clock() - started - call_s,
        )
        self._note_seen(seen, cell)
        self._proven.append(cell)
        return generation, call_s

    def _note_sample(self, generation: Generation, cell: Cell) -> None:
        """Note the tokens of the smallest cell, at full length if that is reached: there a cache of fixed size has the
        length that code for the candidate gives it too."""
        smallest = min(self._spec.profile.cells(cell.batch_size, rung=LAST_RUNG))
        if self.facts.sample is None or cell == smallest:
            ends = generation.tokens[:1] if cell.batch_size == 1 else (generation.tokens[0], generation.tokens[-1])
            self.facts = replace(self.facts, sample=Sample(cell=cell, tokens=ends))

    def _check_used(self, model: LoadedModel, cell: Cell) -> None:
        """After every generation: whether the cache that was asked for is the one that was used."""
        started = self._clock()
        seen = model.last_used()
        self.facts = replace(self.facts, proof_s=self.facts.proof_s + self._clock() - started)
        if seen is not None:
            self._note_seen(seen, cell)

    def _note_seen(self, seen: Observed, cell: Cell) -> None:
        """Keep what was seen, of all cells together.

        Raises:
            SubstitutedError: it is not what the candidate asks for.
        """
        self.facts = replace(self.facts, observed=self.facts.observed.joined(seen))
        if seen.substitutions:
            where = f"at {cell.label}: " if self._proven and cell != self._proven[0] else ""
            raise SubstitutedError(where + "; ".join(seen.substitutions))

    @property
    def _compiles(self) -> bool:
        return self._spec.candidate.compile is not CompileMode.OFF

    def _note_cold_cost(self, beyond_s: float, *, is_steady: bool) -> None:
        facts = self.facts
        self.facts = replace(
            facts,
            cold_s=(facts.cold_s or 0.0) + beyond_s,
            warmed_up=is_steady and facts.warmed_up is not False,
            compile_s=None if facts.compilation is None else (facts.compile_s or 0.0) + beyond_s,
        )

    def _note_memory(self, model: LoadedModel) -> None:
        """After every run, disturbed or not: why that is the peak is told at `TrialRecord.device_peak_mib`."""
        held, device = model.kv_cache_bytes(), self._device_memory_mib(self._watch.own.pids())
        self.facts = replace(
            self.facts,
            kv_cache_mib=_highest(self.facts.kv_cache_mib, None if held is None else held / _MIB),
            device_peak_mib=_highest(self.facts.device_peak_mib, sum(device) if device else None),
            device_peak_gpu_mib=_highest(self.facts.device_peak_gpu_mib, max(device) if device else None),
        )

    def _enter(self, phase: Phase, cell: Cell | None = None) -> None:
        self.phase = phase
        self._emit(PhaseStarted(phase=phase, cell=cell))

    @contextmanager
    def _busy(self) -> Iterator[None]:
        started = self._clock()
        try:
            yield
        finally:
            self.facts = replace(self.facts, busy_s=self.facts.busy_s + self._clock() - started)


def beyond_steady_s(spent: Sequence[float], *, is_steady: bool) -> float:
    """Seconds of a cell's warm-up calls beyond what as many steady ones cost: the last is steady, if any is; else the
    shortest stands for it."""
    steady_s = spent[-1] if is_steady else min(spent)
    return sum(max(0.0, seconds - steady_s) for seconds in spent)


def _agree(before: tuple[float, float], now: tuple[float, float]) -> bool:
    return all(abs(a - b) <= WARMUP_TOLERANCE * max(a, b) for a, b in zip(before, now, strict=True))


def _highest(known: float | None, new: float | None) -> float | None:
    return new if known is None else known if new is None else max(known, new)
