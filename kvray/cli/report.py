"""`kvray report`: plan, snippet and reports of a sweep, written again from its records."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from kvray.cli.output import print_paths
from kvray.result import read_measured, write_artefacts
from kvray.store.parquet import ResultsStore

app = typer.Typer(add_completion=False)


@app.command()
def report(
    results: Annotated[str, typer.Argument(help="Results folder or URI.")] = "./kvray_results",
    run: Annotated[str | None, typer.Option(help="Id of the sweep; by default the newest.")] = None,
) -> None:
    """Write plan, snippet and reports of a sweep again, from its records."""
    store = ResultsStore(results)
    result = read_measured(store, run or store.latest_run_id())
    write_artefacts(store, result)
    print_paths(result, Console())
