"""What a user sees while a sweep runs: a live view on a terminal, one line per event elsewhere. Always on stderr."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from kvray.analysis.aggregate import Metrics
from kvray.analysis.limits import missed_limits
from kvray.analysis.ranking import gain_over
from kvray.analysis.score import utility
from kvray.ratios import speed_text, tok_s_text
from kvray.record import Phase, Role, TrialResult, TrialStatus
from kvray.report.attempts import session_text
from kvray.report.formats import clean_line, duration_range, plural, quantity
from kvray.store.manifest import SweepManifest
from kvray.store.resuming import earlier_session
from kvray.sweep.outlook import Outlook
from kvray.sweep.recording import rung_cells, rung_metrics
from kvray.trial.position import PositionBoard
from kvray.trial.spec import LAST_RUNG, TrialSpec
from kvray.tuning.observer import SearchObserver
from kvray.tuning.preview import Preview

SHOWN_TRIALS = 12
QUIET_S = 60.0
"""After so long without an event a log is told that the sweep is alive."""
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
MEASURING = "measuring how fast this device copies and multiplies: some seconds"
CHECKING = "checking the winner's code: it runs once in a separate process, which takes some seconds"


@dataclass
class TrialState:
    """One trial as far as it is known."""

    label: str
    state: str
    trial_id: str = ""
    rung: int | None = None
    metrics: Metrics | None = None
    utility: float | None = None
    keeps_limits: bool = True
    is_baseline: bool = False
    is_confirming: bool = False

    @property
    def rung_text(self) -> str:
        """How far it came; a confirming trial has one rung only."""
        if self.is_confirming:
            return "again"
        return "" if self.rung is None else f"{self.rung}/{LAST_RUNG}"


@dataclass
class SweepState:
    """How a sweep stands; updated by events, read by whoever shows it. Seconds by `clock`."""

    clock: Callable[[], float] = time.monotonic
    title: str = ""
    total: int = 0
    finished: int = 0
    budget_s: float | None = None
    standings: dict[str, TrialState] = field(default_factory=dict)
    outlook: Outlook = field(default_factory=Outlook)
    positions: PositionBoard | None = None
    started: float = 0.0
    recalled: str = ""
    notes: tuple[str, ...] = ()

    def start(
        self,
        preview: Preview,
        manifest: SweepManifest,
        recorded: Sequence[TrialResult],
        positions: PositionBoard | None = None,
    ) -> None:
        """The sweep begins, or goes on after `recorded`."""
        self.started = self.clock()
        self.positions = positions
        self.total = len(preview.space.candidates)
        self.budget_s = manifest.budget_s
        for result in recorded:
            self.update(result, preview, ended=True)
        starts = earlier_session(manifest, recorded)
        self.recalled = session_text(starts) if starts else ""
        self.notes = tuple(f"note: {clean_line(note)}" for note in manifest.model_notes)
        model, device = preview.model, preview.device
        self.title = f"{model.name} · {preview.profile.name} · {device.device_name} ({device.device})"

    def begin(self, spec: TrialSpec) -> None:
        """A trial was taken by a slot."""
        self.standings[spec.trial_id] = _standing(spec.candidate.label, spec.role, spec.trial_id)

    def lose(self, spec: TrialSpec) -> None:
        """A trial's slot died; it will begin anew."""
        self.standings[spec.trial_id] = replace(_standing(spec.candidate.label, spec.role, spec.trial_id), state=LOST)

    def update(self, result: TrialResult, profile_of: Preview, *, ended: bool) -> TrialState:
        """A trial completed a rung, or ended (if its slot died at once, without having begun)."""
        record = result.record
        standing = self.standings.setdefault(
            record.trial_id, _standing(record.candidate.label, record.role, record.trial_id)
        )
        standing.rung = record.rung
        standing.metrics = rung_metrics(result.runs, record.rung)
        if standing.metrics is not None:
            standing.utility = utility(standing.metrics, profile_of.profile)
            cells = rung_cells(result.runs, record.rung)
            standing.keeps_limits = not missed_limits(record, cells, profile_of.profile.limits)
        if ended:
            standing.state = record.status.value
            self.finished += record.role is not Role.CONFIRM
        return standing

    def best(self) -> TrialState | None:
        """The best candidate of those that were measured completely and keep the limits, by all its processes."""
        kept = [one for one in self._complete() if all(process.keeps_limits for process in one)]
        return max(map(_pooled, kept), key=lambda one: one.utility or 0.0, default=None)

    def _complete(self) -> list[list[TrialState]]:
        """Per candidate, its processes that ended ok."""
        found: dict[str, list[TrialState]] = {}
        for one in self.standings.values():
            if one.state == TrialStatus.OK and one.utility is not None:
                found.setdefault(one.label, []).append(one)
        return list(found.values())

    def best_line(self) -> str:
        """E.g. `best: static/sdpa/bfloat16 · TTFT 210 ms · 26.1 tok/s`."""
        best = self.best()
        return f"best: {'none yet' if best is None else _figures(best)}"

    def gain_line(self) -> str | None:
        """E.g. `over the baseline: first token 1.98× as fast, 12 % more tok/s`; `None` with nothing to compare."""
        best = self.best()
        pooled = (_pooled(processes) for processes in self._complete())
        baseline = next((one for one in pooled if one.is_baseline), None)
        if best is None or best.metrics is None or baseline is None or baseline.metrics is None:
            return None
        if baseline.label == best.label:
            return "this is the baseline"
        over = gain_over(baseline.metrics, best.metrics)
        return f"over the baseline: first token {speed_text(1 + over.ttft)}, {tok_s_text(1 + over.throughput)}"

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

    def time_line(self) -> str:
        """Candidates tried, confirming trials, time passed and, roughly, time left."""
        text = f"{self.finished} of {plural(self.total, 'candidate')} tried"
        if self.outlook.confirming:
            text += f" · confirming {self.outlook.confirming} of {self.outlook.confirming_most}"
        bound = "" if self.budget_s is None else f" of {_clock(self.budget_s)}"
        text += f" · {_clock(self.clock() - self.started)}{bound} passed"
        return text if self.outlook.left_s is None else f"{text} · {duration_range(*self.outlook.left_s)} left"


def _pooled(processes: Sequence[TrialState]) -> TrialState:
    """Medians over a candidate's processes."""
    first = processes[0]
    metrics = [one.metrics for one in processes if one.metrics is not None]
    return replace(
        first,
        is_baseline=any(one.is_baseline for one in processes),
        utility=statistics.median(one.utility or 0.0 for one in processes),
        metrics=replace(
            metrics[0],
            ttft_ms=statistics.median(one.ttft_ms for one in metrics),
            decode_tok_s=statistics.median(one.decode_tok_s for one in metrics),
        ),
    )


def _standing(label: str, role: Role, trial_id: str) -> TrialState:
    return TrialState(
        label=label,
        state=RUNNING,
        trial_id=trial_id,
        is_baseline=role is Role.BASELINE,
        is_confirming=role is Role.CONFIRM,
    )


class LineProgress(SearchObserver):
    """One line per event, for logs and pipes, and one every `QUIET_S` without any. Use it as a context manager."""

    def __init__(self, console: Console, *, quiet_s: float = QUIET_S) -> None:
        self._console = console
        self._quiet_s = quiet_s
        self._said = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._tell_of_life, name="kvray-progress", daemon=True)
        self._state = SweepState()
        self._preview: Preview | None = None

    def __enter__(self) -> LineProgress:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing = True
        self._said.set()
        self._thread.join()

    @override
    def measuring_device(self) -> None:
        self._print(MEASURING)

    @override
    def checking_code(self) -> None:
        self._print(CHECKING)

    @override
    def search_started(
        self,
        preview: Preview,
        manifest: SweepManifest,
        recorded: Sequence[TrialResult],
        positions: PositionBoard | None = None,
    ) -> None:
        self._preview = preview
        self._state.start(preview, manifest, recorded, positions)
        self._print(f"sweep {manifest.run_id}: {self._state.title} · {plural(self._state.total, 'candidate')}")
        for note in self._state.notes:
            self._print(note)
        if self._state.recalled:
            self._print(self._state.recalled)

    @override
    def outlook_changed(self, outlook: Outlook) -> None:
        self._state.outlook = outlook

    @override
    def trial_started(self, spec: TrialSpec) -> None:
        self._state.begin(spec)
        self._print(f"{'again' if spec.role is Role.CONFIRM else 'start':<7} {spec.candidate.label}")

    @override
    def rung_finished(self, result: TrialResult) -> None:
        self._print(f"rung {result.record.rung}  {_figures(self._update(result, ended=False))}")

    @override
    def trial_lost(self, spec: TrialSpec) -> None:
        self._state.lose(spec)
        self._print(f"{LOST:<7} {spec.candidate.label} · its slot or node died; it runs again")

    @override
    def trial_finished(self, result: TrialResult) -> None:
        standing = self._update(result, ended=True)
        why = f" · {clean_line(result.record.message)}" if result.record.message else ""
        self._print(f"{standing.state:<7} {_figures(standing)}{why}")
        parts = (self._state.time_line(), self._state.best_line(), self._state.gain_line())
        self._print(f"        {' · '.join(part for part in parts if part)}")

    def _update(self, result: TrialResult, *, ended: bool) -> TrialState:
        if self._preview is None:
            raise RuntimeError("a trial before search_started")
        return self._state.update(result, self._preview, ended=ended)

    def _print(self, text: str) -> None:
        self._said.set()
        self._console.print(Text(text), soft_wrap=True)

    def _tell_of_life(self) -> None:
        while not self._closing:
            if self._said.wait(self._quiet_s):
                self._said.clear()
            elif self._preview is not None:
                self._console.print(Text(f"        {self._state.pulse_line()}"), soft_wrap=True)


class LiveProgress(SearchObserver):
    """A table that redraws itself, for terminals. Use it as a context manager."""

    def __init__(self, console: Console) -> None:
        self._state = SweepState()
        self._preview: Preview | None = None
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveProgress:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    @override
    def measuring_device(self) -> None:
        self._live.console.print(Text(MEASURING, style="dim"))

    @override
    def checking_code(self) -> None:
        self._live.console.print(Text(CHECKING, style="dim"))

    @override
    def search_started(
        self,
        preview: Preview,
        manifest: SweepManifest,
        recorded: Sequence[TrialResult],
        positions: PositionBoard | None = None,
    ) -> None:
        self._preview = preview
        self._state.start(preview, manifest, recorded, positions)

    @override
    def outlook_changed(self, outlook: Outlook) -> None:
        self._state.outlook = outlook

    @override
    def trial_started(self, spec: TrialSpec) -> None:
        self._state.begin(spec)

    @override
    def rung_finished(self, result: TrialResult) -> None:
        self._update(result, ended=False)

    @override
    def trial_lost(self, spec: TrialSpec) -> None:
        self._state.lose(spec)

    @override
    def trial_finished(self, result: TrialResult) -> None:
        self._update(result, ended=True)

    def _update(self, result: TrialResult, *, ended: bool) -> None:
        if self._preview is not None:
            self._state.update(result, self._preview, ended=ended)

    def _render(self) -> RenderableType:
        return render_state(self._state)


def render_state(state: SweepState) -> RenderableType:
    """The live view: title, the latest trials, the best so far, time."""
    if not state.title:
        return Text("Reading the model and starting Ray …", style="dim")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "candidate", "rung", "TTFT ms", "tok/s", "peak MiB"):
        # Only the candidate gives way where the terminal is narrow; its cells are shortened, not wrapped.
        justify: JustifyMethod = "left" if heading in ("", "candidate") else "right"
        table.add_column(heading, justify=justify, no_wrap=heading != "candidate")
    best = state.best()
    best_label = None if best is None else best.label
    for standing in list(state.standings.values())[-SHOWN_TRIALS:]:
        metrics = standing.metrics
        table.add_row(
            Text(standing.state, style=_style(standing.state)),
            Text(
                standing.label,
                "bold green" if standing.label == best_label else "",
                no_wrap=True,
                overflow="ellipsis",
            ),
            standing.rung_text,
            "" if metrics is None else quantity(metrics.ttft_ms),
            "" if metrics is None else quantity(metrics.decode_tok_s),
            "" if metrics is None else quantity(metrics.peak_mib),
        )
    lines: list[RenderableType] = [
        Text(state.title, style="bold", no_wrap=True, overflow="ellipsis"),
        table,
        Text(state.best_line()),
    ]
    gain_line = state.gain_line()
    if gain_line is not None:
        lines.append(Text(f"      {gain_line}"))
    lines.extend(Text(text, no_wrap=True, overflow="ellipsis") for text in state.doing())
    lines.extend(Text(note, style="dim") for note in state.notes)
    if state.recalled:
        lines.append(Text(state.recalled, style="dim"))
    return Group(*lines, Text(state.time_line(), style="dim"))


def _figures(standing: TrialState) -> str:
    metrics = standing.metrics
    if metrics is None:
        return standing.label
    return f"{standing.label} · TTFT {quantity(metrics.ttft_ms)} ms · {quantity(metrics.decode_tok_s)} tok/s"


def _style(state: str) -> str:
    if state == RUNNING:
        return "cyan"
    if state == TrialStatus.OK:
        return "green"
    return "red" if state == LOST or TrialStatus(state).is_failure else "dim"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
