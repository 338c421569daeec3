"""`kvray tune`: the main command."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console

from kvray.cli import options
from kvray.cli.interrupts import patient_interrupts
from kvray.cli.job_events import JobProgress, tell_of_result
from kvray.cli.output import print_report, summary
from kvray.cli.preview import print_preview
from kvray.cli.progress import LineProgress, LiveProgress
from kvray.cli.sweep_options import ResumeOptions, SweepOptions, tune_config
from kvray.config import TuneConfig
from kvray.jobs.sent_model import is_a_job
from kvray.tuning.outcome import no_winner
from kvray.tuning.search import TuningSearch

app = typer.Typer(add_completion=False)


@app.command()
@options.with_groups
def tune(
    model: options.Model,
    sweep: SweepOptions,
    resuming: ResumeOptions,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show candidates, rejections and cells; start nothing.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure a model's KV-cache configurations, each in a fresh process, and decide.

    Leaves Parquet records, a plan, a code snippet and reports in the results folder.
    """
    config = tune_config(model, sweep, resuming)
    if dry_run:
        print_preview(TuningSearch(config=config).preview(), config, as_json=as_json)
        return
    _tune(config, as_json=as_json)


def _tune(config: TuneConfig, *, as_json: bool) -> None:
    started = time.monotonic()
    with _progress() as progress:
        search = TuningSearch(config=config, observer=progress, arguments=_typed_arguments())
        try:
            with patient_interrupts(lambda: str(search.interrupted())):
                result = search.outcome()
        finally:
            if is_a_job() and search.written_up is not None:
                tell_of_result(search.written_up)
    if as_json:
        typer.echo(json.dumps(summary(result, wall_s=time.monotonic() - started), indent=2))
    else:
        print_report(result)
    if not result.analysis.ranking.entries:
        raise no_winner(result)


@contextlib.contextmanager
def _progress() -> Iterator[LineProgress | LiveProgress]:
    console = Console(stderr=True)
    if is_a_job():
        view: LineProgress | LiveProgress = JobProgress(console)
    else:
        view = LiveProgress(console) if console.is_terminal else LineProgress(console)
    with view as progress:
        yield progress


def _typed_arguments() -> tuple[str, ...]:
    """What follows `kvray tune` on the command line."""
    arguments = sys.argv[1:]
    return tuple(arguments[arguments.index("tune") + 1 :]) if "tune" in arguments else ()
