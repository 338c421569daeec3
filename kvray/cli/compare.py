"""`kvray compare`: two sweeps side by side."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from kvray.errors import InvalidValueError
from kvray.report.compare import compare_info, render_comparison
from kvray.report.info import ReportInfo
from kvray.store.parquet import ResultsStore
from kvray.tuning.result import chosen_run, info_of, read_measured

app = typer.Typer(add_completion=False)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="Results folder or URI of the first sweep, as FOLDER or FOLDER#RUN_ID.")],
    b: Annotated[str, typer.Argument(help="The second one.")],
) -> None:
    """Compare two sweeps candidate by candidate; what differs between them is said first."""
    Console().print(render_comparison(compare_info(_read(a), _read(b))))


def _read(place: str) -> ReportInfo:
    folder, _, run = place.partition("#")
    if not folder:
        raise InvalidValueError(f"{place!r} names no results folder.", hint="Write FOLDER or FOLDER#RUN_ID.")
    store = ResultsStore(folder)
    result = read_measured(store, chosen_run(store, run or None))
    return info_of(result)
