"""`kvray rank`: the ranking of a sweep, from its records."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from kvray.cli.output import summary
from kvray.report.terminal import render_terminal
from kvray.result import info_of, read_result
from kvray.store.parquet import ResultsStore

app = typer.Typer(add_completion=False)


@app.command()
def rank(
    results: Annotated[str, typer.Argument(help="Results folder or URI.")] = "./kvray_results",
    run: Annotated[str | None, typer.Option(help="Id of the sweep; by default the newest.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Show the ranking of a sweep, computed anew from its records."""
    store = ResultsStore(results)
    result = read_result(store, run or store.latest_run_id())
    if as_json:
        typer.echo(json.dumps(summary(result), indent=2))
        return
    Console().print(render_terminal(info_of(result)))
