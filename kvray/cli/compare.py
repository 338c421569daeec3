"""`kvray compare`: two sweeps, plans or checks side by side."""

from __future__ import annotations

import enum
import json
from typing import Annotated

import typer
from rich.console import Console

from kvray.check.comparing import ComparedPlaces, compare_places, read_place
from kvray.check.comparison_text import markdown_of, render_places, summary_of, verdict_text
from kvray.check.ending import error_of
from kvray.cli.verdict_options import Margin, OnInconclusiveText, counts_as, parse_margins
from kvray.store.memory import reading_once

app = typer.Typer(add_completion=False)


class Format(enum.StrEnum):
    """How the comparison is printed."""

    TABLE = "table"
    JSON = "json"
    MARKDOWN = "markdown"


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="A plan, FOLDER, FOLDER#RUN_ID, or a check.json: what was before.")],
    b: Annotated[str, typer.Argument(help="The same of what is now.")],
    margin: Margin = None,
    output_format: Annotated[Format, typer.Option("--format", help="How it is printed.")] = Format.TABLE,
    force: Annotated[bool, typer.Option("--force", help="Also compare what unlike machines measured.")] = False,
    on_inconclusive: OnInconclusiveText = None,
) -> None:
    """Compare two measurements metric by metric; what differs between them is said first.

    With --margin B is judged: exit code 0 is PASS, 1 FAIL, 14 INCONCLUSIVE. Nothing is measured.
    """
    mapped = counts_as(on_inconclusive)
    margins = {} if margin is None else parse_margins(margin, otherwise={})
    with reading_once():
        compared = compare_places(read_place(a), read_place(b), margins=margins, force=force)
    _print(compared, output_format)
    if compared.verdict is not None:
        told = [verdict_text(one) for one in compared.candidates if one.verdict is compared.verdict]
        if error := error_of(compared.verdict, told[0], on_inconclusive=mapped):
            raise error


def _print(compared: ComparedPlaces, output_format: Format) -> None:
    if output_format is Format.JSON:
        typer.echo(json.dumps(summary_of(compared), indent=2))
    elif output_format is Format.MARKDOWN:
        typer.echo(markdown_of(compared), nl=False)
    else:
        Console().print(render_places(compared))
