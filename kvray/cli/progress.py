"""What a user sees while a sweep runs: a live view on a terminal, one line per event elsewhere. Always on stderr."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from kvray.record import Role, TrialResult, TrialStatus
from kvray.report.formats import clean_line, quantity
from kvray.store.manifest import SweepManifest
from kvray.sweep.outlook import Outlook
from kvray.trial.position import PositionBoard
from kvray.trial.spec import TrialSpec
from kvray.tuning.observer import SearchObserver
from kvray.tuning.preview import Preview
from kvray.tuning.standing import LOST, RUNNING, SweepState, TrialState, figures_text

SHOWN_TRIALS = 12
QUIET_S = 60.0
"""After so long without an event a log is told that the sweep is alive."""
MEASURING = "measuring how fast this device copies and multiplies: some seconds"
CHECKING = "checking the winner's code: it runs once in a separate process, which takes some seconds"


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
        self._print(f"sweep {manifest.run_id}: {self._state.title} · {self._state.total_text}")
        for note in self._state.notes:
            self._print(note)
        if self._state.recalled:
            self._print(self._state.recalled)

    @override
    def outlook_changed(self, outlook: Outlook) -> None:
        self._state.foresee(outlook)

    @override
    def trial_started(self, spec: TrialSpec) -> None:
        self._state.begin(spec)
        label = self._state.standings[spec.trial_id].label
        self._print(f"{'again' if spec.role is Role.CONFIRM else 'start':<7} {label}")

    @override
    def rung_finished(self, result: TrialResult) -> None:
        self._print(f"rung {result.record.rung}  {figures_text(self._update(result, ended=False))}")

    @override
    def trial_lost(self, spec: TrialSpec) -> None:
        self._state.lose(spec)
        label = self._state.standings[spec.trial_id].label
        self._print(f"{LOST:<7} {label} · its slot or node died; it runs again")

    @override
    def trial_finished(self, result: TrialResult) -> None:
        standing = self._update(result, ended=True)
        why = f" · {clean_line(result.record.message)}" if result.record.message else ""
        self._print(f"{standing.state:<7} {figures_text(standing)}{why}")
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
                self._print_pulse(f"        {self._state.pulse_line()}")

    def _print_pulse(self, text: str) -> None:
        """In the thread that tells of life."""
        self._console.print(Text(text), soft_wrap=True)


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
        self._state.foresee(outlook)

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
    best_labels = state.best_labels()
    for standing in list(state.standings.values())[-SHOWN_TRIALS:]:
        metrics = standing.metrics
        table.add_row(
            Text(standing.state, style=_style(standing.state)),
            Text(
                standing.label,
                "bold green" if standing.label in best_labels else "",
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


def _style(state: str) -> str:
    if state == RUNNING:
        return "cyan"
    if state == TrialStatus.OK:
        return "green"
    return "red" if state == LOST or TrialStatus(state).is_failure else "dim"
