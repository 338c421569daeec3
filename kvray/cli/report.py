"""`kvray report`: plan, snippet and reports of a sweep, written again from its records."""

from __future__ import annotations

import typer
from rich.console import Console

from kvray.cli import options
from kvray.cli.output import print_paths
from kvray.store.parquet import ResultsStore
from kvray.tuning.outcome import limits_missed
from kvray.tuning.result import chosen_run, read_measured, write_artefacts

app = typer.Typer(add_completion=False)


@app.command()
@options.with_groups
def report(
    results: options.Results = "./kvray_results",
    run: options.RunId = None,
    *,
    judging: options.JudgingOptions,
) -> None:
    """Write plan, snippet and reports of a sweep again, from its records.

    Limits and weights given here replace those that the sweep was asked with. Nothing is measured.
    """
    store = ResultsStore(results)
    result = read_measured(store, chosen_run(store, run), judging.judging())
    write_artefacts(store, result)
    print_paths(result, Console())
    if error := limits_missed(result):
        raise error
