"""What a user sees while a sweep runs: a live view on a terminal, one line per event elsewhere. Always on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kvray.analysis.aggregate import Metrics
from kvray.analysis.ranking import gain_over
from kvray.analysis.score import utility
from kvray.preview import Preview
from kvray.record import Role, TrialResult, TrialStatus
from kvray.store.manifest import SweepManifest
from kvray.sweep.recording import rung_metrics
from kvray.trial.spec import LAST_RUNG, TrialSpec

SHOWN_TRIALS = 12


@dataclass
class Standing:
    """One trial as far as it is known."""

    label: str
    state: str
    rung: int | None = None
    metrics: Metrics | None = None
    utility: float | None = None
    is_baseline: bool = False


@dataclass
class SweepState:
    """How a sweep stands; updated by events, read by whoever shows it. Seconds by `clock`."""

    clock: Callable[[], float] = time.monotonic
    title: str = ""
    total: int = 0
    finished: int = 0
    standings: dict[str, Standing] = field(default_factory=dict)
    started: float = 0.0

    def start(self, preview: Preview, total: int) -> None:
        """The sweep begins with `total` trials to come."""
        self.started = self.clock()
        self.total = total
        model, device = preview.model, preview.device
        self.title = f"{model.name} · {preview.profile.name} · {device.device_name} ({device.device})"

    def begin(self, spec: TrialSpec) -> None:
        """A trial was taken by a slot."""
        self.standings[spec.trial_id] = Standing(
            label=spec.candidate.label, state="running", is_baseline=spec.role is Role.BASELINE
        )

    def update(self, result: TrialResult, profile_of: Preview, *, ended: bool) -> Standing:
        """A trial completed a rung, or ended."""
        record = result.record
        standing = self.standings[record.trial_id]
        standing.rung = record.rung
        standing.metrics = rung_metrics(result.runs, record.rung)
        if standing.metrics is not None:
            standing.utility = utility(standing.metrics, profile_of.profile)
        if ended:
            standing.state = record.status.value
            self.finished += 1
        return standing

    def best(self) -> Standing | None:
        """The best of the trials that were measured completely."""
        complete = [one for one in self.standings.values() if one.state == TrialStatus.OK and one.utility is not None]
        return max(complete, key=lambda one: one.utility or 0.0, default=None)

    def best_line(self) -> str:
        """E.g. `best: static/sdpa/bfloat16 · TTFT 210 ms · 26 tok/s · over the baseline: first token +98%, …`."""
        best = self.best()
        if best is None or best.metrics is None:
            return "best: none yet"
        text = f"best: {best.label} · TTFT {best.metrics.ttft_ms:,.0f} ms · {best.metrics.decode_tok_s:,.1f} tok/s"
        baseline = next((one for one in self.standings.values() if one.is_baseline), None)
        if baseline is best:
            return text + " · this is the baseline"
        if baseline is None or baseline.metrics is None or baseline.rung != LAST_RUNG:
            return text
        gain = gain_over(baseline.metrics, best.metrics)
        return text + f" · over the baseline: first token {gain.ttft:+.0%}, tok/s {gain.throughput:+.0%}"

    def time_line(self) -> str:
        """Trials done, time passed, and how long the rest takes at the pace so far."""
        passed = self.clock() - self.started
        text = f"{self.finished}/{self.total} trials · {_clock(passed)} passed"
        if 0 < self.finished < self.total:
            text += f" · about {_clock(passed / self.finished * (self.total - self.finished))} left"
        return text


class LineProgress:
    """One line per event, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._state = SweepState()
        self._preview: Preview | None = None

    def search_started(self, preview: Preview, manifest: SweepManifest, todo: Sequence[TrialSpec]) -> None:
        """See `SearchObserver`."""
        self._preview = preview
        self._state.start(preview, len(todo))
        self._print(f"sweep {manifest.run_id}: {self._state.title} · {len(todo)} trials")

    def trial_started(self, spec: TrialSpec) -> None:
        """See `SweepObserver`."""
        self._state.begin(spec)
        self._print(f"start   {spec.candidate.label}")

    def rung_finished(self, result: TrialResult) -> None:
        """See `SweepObserver`."""
        self._print(f"rung {result.record.rung}  {_figures(self._update(result, ended=False))}")

    def trial_finished(self, result: TrialResult) -> None:
        """See `SweepObserver`."""
        standing = self._update(result, ended=True)
        why = f" · {result.record.message}" if result.record.message else ""
        self._print(f"{standing.state:<7} {_figures(standing)}{why}")
        self._print(f"        {self._state.time_line()} · {self._state.best_line()}")

    def _update(self, result: TrialResult, *, ended: bool) -> Standing:
        if self._preview is None:
            raise RuntimeError("a trial before search_started")
        return self._state.update(result, self._preview, ended=ended)

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


class LiveProgress:
    """A table that redraws itself, for terminals. Use it as a context manager."""

    def __init__(self, console: Console) -> None:
        self._state = SweepState()
        self._preview: Preview | None = None
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def search_started(self, preview: Preview, manifest: SweepManifest, todo: Sequence[TrialSpec]) -> None:
        """See `SearchObserver`."""
        del manifest
        self._preview = preview
        self._state.start(preview, len(todo))
        self._live.start()

    def trial_started(self, spec: TrialSpec) -> None:
        """See `SweepObserver`."""
        self._state.begin(spec)

    def rung_finished(self, result: TrialResult) -> None:
        """See `SweepObserver`."""
        self._update(result, ended=False)

    def trial_finished(self, result: TrialResult) -> None:
        """See `SweepObserver`."""
        self._update(result, ended=True)

    def _update(self, result: TrialResult, *, ended: bool) -> None:
        if self._preview is not None:
            self._state.update(result, self._preview, ended=ended)

    def _render(self) -> RenderableType:
        return render_state(self._state)


def render_state(state: SweepState) -> RenderableType:
    """The live view: title, the latest trials, the best so far, time."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "candidate", "rung", "TTFT ms", "tok/s", "peak MiB"):
        table.add_column(heading, justify="left" if heading in ("", "candidate") else "right", no_wrap=True)
    best = state.best()
    for standing in list(state.standings.values())[-SHOWN_TRIALS:]:
        metrics = standing.metrics
        table.add_row(
            Text(standing.state, style=_style(standing.state)),
            Text(standing.label, style="bold green" if standing is best else ""),
            "" if standing.rung is None else f"{standing.rung}/{LAST_RUNG}",
            "" if metrics is None else f"{metrics.ttft_ms:,.0f}",
            "" if metrics is None else f"{metrics.decode_tok_s:,.1f}",
            "" if metrics is None or metrics.peak_mib is None else f"{metrics.peak_mib:,.0f}",
        )
    return Group(Text(state.title, style="bold"), table, Text(state.best_line()), Text(state.time_line(), style="dim"))


def _figures(standing: Standing) -> str:
    metrics = standing.metrics
    if metrics is None:
        return standing.label
    return f"{standing.label} · TTFT {metrics.ttft_ms:,.1f} ms · {metrics.decode_tok_s:,.1f} tok/s"


def _style(state: str) -> str:
    if state == "running":
        return "cyan"
    if state == TrialStatus.OK:
        return "green"
    return "red" if TrialStatus(state).is_failure else "dim"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
