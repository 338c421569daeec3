"""The suite for a terminal: what it consists of, and what a record holds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvray.analysis.comparison import ComparedMetric
from kvray.check.measured import samples_of
from kvray.check.suite.record import RecordedCase, SuiteRecord
from kvray.report.formats import clean_line, duration, plural, quantity
from kvray.report.terminal import new_table


def list_table(obstacles: Mapping[str, str | None]) -> Table:
    """Every case with what stands in its way."""
    table = new_table()
    table.add_column("case", no_wrap=True)
    table.add_column("here", overflow="fold")
    for name, reason in obstacles.items():
        table.add_row(name, "yes" if reason is None else Text(f"no: {clean_line(reason)}"))
    return table


def record_table(record: SuiteRecord) -> RenderableType:
    """Every case that was measured with its figures, then what was skipped."""
    table = new_table()
    table.add_column("case", no_wrap=True)
    for metric in ComparedMetric:
        table.add_column(metric.unit, justify="right", no_wrap=True)
    table.add_column("cache, MiB", justify="right", no_wrap=True)
    table.add_column("cache and kernel", ratio=1, overflow="fold")
    for case in record.cases:
        table.add_row(case.name, *_figures(case), Text(_ran(case)))
    parts: list[RenderableType] = [table]
    for reason in dict.fromkeys(one.reason for one in record.skipped):
        names = [one.name for one in record.skipped if one.reason == reason]
        parts.append(Text(f"skipped: {', '.join(names)}: {clean_line(reason)}", style="dim"))
    measured = (
        f"{plural(len(record.cases), 'case')}, {plural(record.rounds, 'round')}, {duration(round(record.seconds))}"
    )
    return Group(*parts, Text(measured))


def _figures(case: RecordedCase) -> list[str]:
    samples = samples_of(case.measured)
    if not len(samples.logs):
        return ["", "", "", ""]
    means = np.exp(samples.logs.mean(axis=(0, 1)))
    figures = [quantity(float(means[metric.column])) for metric in ComparedMetric]
    return [*figures, quantity(case.kv_cache_mib)]


def _ran(case: RecordedCase) -> str:
    ran = case.measured.ran
    if not case.works or ran is None:
        return clean_line(f"{case.status}: {case.message or ''}")
    return clean_line(f"{ran.cache_class or '?'}, {ran.kernel_decode or '?'}")
