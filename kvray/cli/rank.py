"""`kvray rank`: the ranking of a sweep, from its records."""

from __future__ import annotations

import json

import typer
from rich.console import Console

from kvray.cli import options
from kvray.cli.output import print_rankings, summary
from kvray.store.memory import reading_once
from kvray.store.parquet import ResultsStore
from kvray.tuning.result import chosen_run, read_measured

app = typer.Typer(add_completion=False)


@app.command()
@options.with_groups
def rank(
    results: options.Results = "./kvray_results",
    run: options.RunId = None,
    as_json: options.AsJson = False,
    *,
    judging: options.JudgingOptions,
) -> None:
    """Show the ranking of a sweep, computed anew from its records.

    Limits and weights given here replace those that the sweep was asked with. Nothing is measured or written.
    """
    with reading_once():
        store = ResultsStore(results)
        result = read_measured(store, chosen_run(store, run), judging.judging())
        if as_json:
            typer.echo(json.dumps(summary(result), indent=2))
        else:
            print_rankings(result, Console())
    if not result.analysis.ranking.entries:
        from kvray.tuning.outcome import limits_missed  # what ends a sweep takes long to load

        if error := limits_missed(result):
            raise error
