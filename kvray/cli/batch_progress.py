"""What a user sees of a batch's sweeps while they measure: a line that is redrawn for each on a terminal, one line per
event elsewhere. Always on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text
from typing_extensions import override

from kvray.cli.progress import QUIET_S, LineProgress
from kvray.store.batch_manifest import BatchSweep
from kvray.tuning.begun_sweep import SweepView
from kvray.tuning.observer import SearchObserver


@contextlib.contextmanager
def batch_progress(console: Console) -> Iterator[SweepView]:
    """The view of a batch that runs."""
    if not console.is_terminal:
        yield lambda sweep: _NamedLines(console, sweep.title)
        return
    rows = _Rows()
    with Live(console=console, get_renderable=rows.render, refresh_per_second=4, transient=True):
        yield rows.row_of


class _NamedLines(LineProgress):
    """The lines of one sweep, each with its model before it."""

    def __init__(self, console: Console, name: str, *, quiet_s: float = QUIET_S) -> None:
        super().__init__(console, quiet_s=quiet_s)
        self._name = name

    @override
    def _print(self, text: str) -> None:
        # The line that begins a sweep has the name, too.
        super()._print(f"{self._name}: {text.strip().replace(f'{self._name} · ', '', 1)}")

    @override
    def _print_pulse(self, text: str) -> None:
        super()._print_pulse(f"{self._name}: {text.strip()}")


class _Row(LineProgress):
    """One sweep as a single line, which is asked for instead of printed."""

    def __init__(self, console: Console, name: str) -> None:
        super().__init__(console)
        self._name = name

    @override
    def _print(self, text: str) -> None:
        """The line tells it."""

    @property
    def line(self) -> str:
        """E.g. `gpt2 · chat-agent: 3 of 12 candidates tried · 42 s passed · best so far: none yet · loading: …`."""
        doing = self._state.doing()
        return f"{self._name}: {' · '.join((self._state.time_line(), self._state.best_line(), *doing[:1]))}"


class _Rows:
    """The sweeps that measure now."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}

    @contextlib.contextmanager
    def row_of(self, sweep: BatchSweep) -> Iterator[SearchObserver]:
        """A line for `sweep` while it measures."""
        self._rows[sweep.run_id] = row = _Row(Console(quiet=True), sweep.title)
        try:
            yield row
        finally:
            del self._rows[sweep.run_id]

    def render(self) -> RenderableType:
        rows = list(self._rows.values())
        return Group(*(Text(row.line, no_wrap=True, overflow="ellipsis") for row in rows))
