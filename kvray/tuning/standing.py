"""`SweepState`: how a sweep stands while it runs. Live views, job logs and metrics all tell what it knows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from kvray.analysis.aggregate import Metrics
from kvray.measuring.recording import rung_metrics
from kvray.ratios import speed_text, tok_s_text
from kvray.record import Phase, Role, TrialRecord, TrialResult, TrialStatus, short_model_name
from kvray.report.attempts import session_text
from kvray.report.formats import clean_line, duration_range, plural, quantity
from kvray.store.manifest import SweepManifest
from kvray.store.resuming import earlier_session
from kvray.sweep.outlook import Outlook, Range
from kvray.trial.position import PositionBoard
from kvray.trial.spec import LAST_RUNG, TrialSpec
from kvray.tuning.best_so_far import BestSoFar, CandidateState
from kvray.tuning.preview import Preview

RUNNING = "running"
LOST = "lost"
"""State of a trial that waits to run again."""
_DOING = {
    Phase.START: "starting",
    Phase.PREPARE: "getting the weights",
    Phase.LOAD: "loading",
    Phase.WARMUP: "warming up",
    Phase.MEASURE: "measuring",
    Phase.REFERENCE: "making the reference for quality",
    Phase.QUALITY: "measuring quality",
}
DISTURBED = " · measured while other programs disturbed it"
DISTURBED_BASELINE = ", which was measured while other programs disturbed it"
OVERDUE = "takes longer than expected"
STATES = (RUNNING, LOST, *(one.value for one in TrialStatus if one.was_launched))
"""In which a launched trial can be. What ran when its sweep ended is `interrupted`, as in the records."""


@dataclass
class TrialState:
    """One trial as far as it is known.

    Attributes:
        label: of its candidate, with the type of GPU where the sweep measures on several.
        parallelism: GPUs that it holds on a device of GPUs.
        gpu_type: Ray's accelerator type of these, where that is known.
        wall_s: seconds that it took, once it has ended.
    """

    label: str
    state: str
    trial_id: str = ""
    rung: int | None = None
    metrics: Metrics | None = None
    is_confirming: bool = False
    engine: str = ""
    parallelism: int = 1
    gpu_type: str | None = None
    wall_s: float = 0.0

    @property
    def rung_text(self) -> str:
        """How far it came; a confirming trial has one rung only."""
        if self.is_confirming:
            return "again"
        return "" if self.rung is None else f"{self.rung}/{LAST_RUNG}"


@dataclass
class SweepState:
    """How a sweep stands; updated by events, read by whoever shows it. Seconds by `clock`.

    Attributes:
        launches: how many of the `total` candidates the search may launch.
        gpu_types: where trials run on several types of GPU, those types; each has a best candidate of its own.
        so_far: what the candidates that were measured completely come to.
    """

    clock: Callable[[], float] = time.monotonic
    title: str = ""
    total: int = 0
    launches: int | None = None
    finished: int = 0
    budget_s: float | None = None
    standings: dict[str, TrialState] = field(default_factory=dict)
    outlook: Outlook = field(default_factory=Outlook)
    positions: PositionBoard | None = None
    started: float = 0.0
    recalled: str = ""
    notes: tuple[str, ...] = ()
    gpu_types: Sequence[str] = ()
    so_far: BestSoFar = field(default_factory=BestSoFar)
    _foreseen: dict[str | None, tuple[Outlook, float]] = field(default_factory=dict)

    def start(
        self,
        preview: Preview,
        manifest: SweepManifest,
        recorded: Sequence[TrialResult],
        positions: PositionBoard | None = None,
    ) -> None:
        """The sweep begins, or goes on after `recorded`. Called once for each of `gpu_types`."""
        is_further_type = bool(self.title and manifest.gpu_types)
        self.started = self.clock()
        self.positions = positions
        candidates = len(preview.space.candidates)
        launches = min(candidates, manifest.max_trials or candidates)
        total_before, launches_before = (self.total, self.launches or 0) if is_further_type else (0, 0)
        self.total, self.launches = total_before + candidates, launches_before + launches
        self.gpu_types = tuple(one.gpu_type for one in manifest.gpu_types)
        self.budget_s = manifest.budget_s
        for result in recorded:
            self.update(result, preview, ended=True)
        self.launches = max(self.launches or 0, self.finished)  # an earlier attempt may have launched more
        starts = earlier_session(manifest, recorded)
        if starts or not is_further_type:
            self.recalled = session_text(starts) if starts else ""
        self.notes = tuple(f"note: {clean_line(note)}" for note in manifest.model_notes)
        model, device = preview.model, preview.device
        names = " + ".join(one.device_name for one in manifest.gpu_types) or device.device_name
        name = short_model_name(manifest.shown_model()) if manifest.sent_models else model.name
        self.title = f"{name} · {preview.profile.name} · {names} ({device.device})"

    def begin(self, spec: TrialSpec) -> None:
        """A trial was taken by a slot."""
        self.standings[spec.trial_id] = self._standing(spec)

    def lose(self, spec: TrialSpec) -> None:
        """A trial's slot died; it will begin anew."""
        self.standings[spec.trial_id] = replace(self._standing(spec), state=LOST)

    def update(self, result: TrialResult, profile_of: Preview, *, ended: bool) -> TrialState:
        """A trial completed a rung, or ended (if its slot died at once, without having begun)."""
        record = result.record
        standing = self.standings.setdefault(record.trial_id, self._standing(record))
        standing.rung = record.rung
        standing.metrics = rung_metrics(result.runs, record.rung)
        if ended:
            self.so_far.take(standing.label, result, profile_of.profile)
            standing.state = record.status.value
            standing.wall_s = record.wall_s or 0.0
            self.finished += record.role is not Role.CONFIRM
        return standing

    def _standing(self, trial: TrialSpec | TrialRecord) -> TrialState:
        candidate = trial.candidate
        return TrialState(
            label=f"{candidate.label} on {trial.gpu_type}" if self.gpu_types else candidate.label,
            state=RUNNING,
            trial_id=trial.trial_id,
            engine=candidate.engine,
            parallelism=candidate.parallelism,
            gpu_type=trial.gpu_type,
            is_confirming=trial.role is Role.CONFIRM,
        )

    def best_line(self) -> str:
        """E.g. `best so far: static/sdpa/bfloat16 · TTFT 210 ms · 26.1 tok/s`."""
        return f"best so far: {self.best_text()}"

    def best_text(self) -> str:
        """The same without `best so far`; `none yet` before anything was measured completely."""
        if self.gpu_types:
            found = [(one, self.so_far.best(one)) for one in self.gpu_types]
            return "; ".join(f"none yet on {name}" if best is None else _best_text(best) for name, best in found)
        best = self.so_far.best()
        return "none yet" if best is None else _best_text(best)

    def gain_line(self) -> str | None:
        """E.g. `over the baseline: first token 1.98× as fast, 12 % more tok/s`; `None` with nothing to compare."""
        if self.gpu_types:
            lines = {name: self._gain_line(name) for name in self.gpu_types}
            return "; ".join(f"on {name} {line}" for name, line in lines.items() if line is not None) or None
        return self._gain_line(None)

    def _gain_line(self, gpu_type: str | None) -> str | None:
        best, baseline = self.so_far.best(gpu_type), self.so_far.baseline(gpu_type)
        over = self.so_far.gain(gpu_type)
        if over is None or best is None or baseline is None:
            return None
        if best.is_baseline:
            return "this is the baseline"
        doubt = DISTURBED_BASELINE if baseline.rests_on_disturbed else ""
        return f"over the baseline: first token {speed_text(1 + over.ttft)}, {tok_s_text(1 + over.throughput)}{doubt}"

    def best_labels(self) -> set[str]:
        """The label of the best candidate on each type of GPU."""
        found = [self.so_far.best(name) for name in self.gpu_types or (None,)]
        return {best.label for best in found if best is not None}

    def counts(self) -> dict[str, int]:
        """How many trials are in each state, of the states that occur, in the order of `STATES`."""
        found = Counter(one.state for one in list(self.standings.values()))
        return {state: found[state] for state in STATES if found[state]}

    def break_off(self) -> None:
        """The sweep is over: no time is left, and what still ran has ended with it."""
        for outlook, _ in list(self._foreseen.values()):
            self.foresee(replace(outlook, left_s=None))
        for one in self.standings.values():
            if one.state in (RUNNING, LOST):
                one.state = TrialStatus.INTERRUPTED.value

    def foresee(self, outlook: Outlook) -> None:
        """Take what is still to come, as it is now, on all GPUs or on those of one type."""
        self._foreseen[outlook.gpu_type] = outlook, self.clock()
        every = [one for one, _ in self._foreseen.values()]
        self.outlook = Outlook(
            confirming=sum(one.confirming for one in every),
            confirming_most=sum(one.confirming_most for one in every),
            left_s=_longest([one.left_s for one in every]),
        )

    def left_s(self) -> Range | None:
        """Seconds until the sweep ends, least and most: what was foreseen, less the time since."""
        now = self.clock()
        return _longest([_later(one.left_s, now - then) for one, then in list(self._foreseen.values())])

    def pulse_line(self) -> str:
        """What is going on, when nothing has happened for a while."""
        running = [
            " ".join(filter(None, (one.label, self.position_text(one))))
            for one in list(self.standings.values())
            if one.state == RUNNING
        ]
        return f"{self.time_line()} · running: {', '.join(running) or 'nothing'}"

    def doing(self) -> list[str]:
        """A line for each running trial of which it is known what it does."""
        told = ((one.label, self.position_text(one)) for one in list(self.standings.values()))
        return [f"{text}: {label}" for label, text in told if text]

    def position_text(self, standing: TrialState) -> str:
        """What a running trial does now, e.g. `warming up 2048→64`; empty where it is not known."""
        position = self.positions.read(standing.trial_id) if self.positions and standing.state == RUNNING else None
        if position is None:
            return ""
        cell = "" if position.cell is None else f" {position.cell.label}"
        return f"{_DOING[position.phase]}{cell}"

    @property
    def total_text(self) -> str:
        """E.g. `11 candidates`, or `at most 4 of 11 candidates` with `--max-trials 4`."""
        candidates = plural(self.total, "candidate")
        if self.launches is None or self.launches >= self.total:
            return candidates
        return f"at most {self.launches} of {candidates}"

    def time_line(self) -> str:
        """Candidates tried, confirming trials, time passed and, roughly, time left."""
        text = f"{self.finished} of {self.total_text} tried"
        if self.outlook.confirming:
            text += f" · confirming {self.outlook.confirming} of {self.outlook.confirming_most}"
        bound = "" if self.budget_s is None else f" of {_clock(self.budget_s)}"
        text += f" · {_clock(self.clock() - self.started)}{bound} passed"
        return " · ".join(filter(None, (text, self._left_text())))

    def _left_text(self) -> str:
        left_s = self.left_s()
        if left_s is None:
            return ""
        if left_s[1] > 0:
            return f"{duration_range(*left_s)} left"
        return OVERDUE if any(one.state == RUNNING for one in list(self.standings.values())) else ""


def _later(left_s: Range | None, since_s: float) -> Range | None:
    return None if left_s is None else (max(0.0, left_s[0] - since_s), max(0.0, left_s[1] - since_s))


def _longest(every: Sequence[Range | None]) -> Range | None:
    """The longest of what runs at the same time; `None` where anything is unknown."""
    known = [one for one in every if one is not None]
    if not known or len(known) < len(every):
        return None
    return max(least for least, _ in known), max(most for _, most in known)


def _best_text(best: CandidateState) -> str:
    return f"{figures_text(best)}{DISTURBED if best.rests_on_disturbed else ''}"


def figures_text(measured: TrialState | CandidateState) -> str:
    """Name and figures of a trial, or of a candidate by all its processes."""
    metrics = measured.metrics
    if metrics is None:
        return measured.label
    return f"{measured.label} · TTFT {quantity(metrics.ttft_ms)} ms · {quantity(metrics.decode_tok_s)} tok/s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
