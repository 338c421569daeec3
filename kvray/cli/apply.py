"""`kvray apply`: the code and the command line that apply a plan."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from kvray.errors import OutputError, PlanError
from kvray.files.documents import shown_document, write_document
from kvray.files.remote import has_suffix, is_file_at, is_uri, within
from kvray.plan.plan import Plan, PlannedBest, load_plan_file
from kvray.plan.serving import serving_command
from kvray.plan.snippet import gain_text, render_snippet

_logger = logging.getLogger("kvray.cli")
_PLAN = "best_plan.json"
app = typer.Typer(add_completion=False)


@app.command()
def apply(
    plan: Annotated[
        str, typer.Argument(help="best_plan.json, or a results folder (FOLDER or FOLDER#RUN_ID): a path or a URI.")
    ],
    print_snippet: Annotated[bool, typer.Option("--print-snippet", help="Print the code to stdout.")] = False,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the code to this file, a path or a URI.")
    ] = None,
    print_command: Annotated[
        bool, typer.Option("--print-command", help="Print the command line that serves the winner to stdout.")
    ] = False,
) -> None:
    """Say what a plan decides, and print what applies it: the code, which needs the engine's library alone, and the
    command line of the engine's server, where it has one."""
    loaded = load_plan_file(_plan_at(plan))
    snippet, command = render_snippet(loaded), serving_command(loaded)
    if print_command and command is None:
        raise PlanError(
            f"The engine {loaded.engine} has no server of its own, so there is no command line.",
            hint="Add --print-snippet for the code.",
        )
    if loaded.foreign_code:
        _logger.warning("The code runs %s: run it only if you trust its authors.", " and ".join(loaded.foreign_code))
    if out is not None:
        try:
            write_document(out, snippet)
        except (OSError, ValueError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise OutputError(
                f"Cannot write {shown_document(out)!r}: {why.rstrip('.')}.", hint="Name a file in a folder that exists."
            ) from error
    if print_command:
        typer.echo(command)
    if print_snippet:
        typer.echo(snippet, nl=False)
    if print_command or print_snippet:
        return
    console = Console()
    console.print(Text(f"model    {loaded.shown_model}"), soft_wrap=True)
    console.print(Text(f"use      {loaded.winner.candidate.label}", style="bold"), soft_wrap=True)
    if loaded.winner.confidence is not None and loaded.winner.confidence.is_disturbed:
        console.print(Text("note     too many runs were disturbed for its figures to be trusted: measure again"))
    if loaded.is_partial:
        console.print(Text("note     the sweep was interrupted: what it did not measure may be better"))
    for rule in loaded.rules:
        use = loaded.candidates[rule.use].candidate.label
        console.print(Text(f"rule     {rule.when.describe()}: {use}. {rule.evidence}"), soft_wrap=True)
    for name, best in loaded.engines.items():
        console.print(Text(f"engine   {name}: {_best_text(name, best)}"), soft_wrap=True)
    if command is not None:
        console.print(Text(f"serve    {command}"), soft_wrap=True)
        console.print(Text(f"note     {_size_note(loaded)}"), soft_wrap=True)
    if out is not None:
        console.print(Text(f"snippet  {shown_document(out)}"), soft_wrap=True)
    else:
        console.print("Add --print-snippet or --out FILE for the code.", style="dim")


def _plan_at(place: str) -> str:
    """The plan that `place` is, or that lies in it: in the folder of a sweep's reports, or in a results folder."""
    folder, separator, run = place.partition("#")
    if Path(place).is_file() or (is_uri(place) and not separator and has_suffix(place, ".json")):
        return place
    if not separator and _is_there(beside := within(place, _PLAN), otherwise=False):
        return beside
    if not folder or not (separator or is_uri(place) or Path(folder).is_dir()):
        return place
    from kvray.store.parquet import ResultsStore  # Parquet takes long to load
    from kvray.tuning.result import chosen_run

    store = ResultsStore(folder)
    run = chosen_run(store, run or None)
    found = within(folder, "reports", run, _PLAN)
    if not _is_there(found, otherwise=True):
        raise PlanError(
            f"Sweep {run!r} in {shown_document(folder)!r} has no plan, because it has no winner.",
            hint="kvray rank says what it measured.",
        )
    return found


def _is_there(path: str, *, otherwise: bool) -> bool:
    """Whether there is a file at a path or URI; `otherwise` where a service does not tell."""
    if not is_uri(path):
        return Path(path).is_file()
    try:
        return is_file_at(path)
    except (OSError, ValueError):
        return otherwise


def _size_note(plan: Plan) -> str:
    """For which requests the server's command line has room."""
    cells = plan.profile.cells(plan.winner.candidate.batch_size, rung=2)
    longest = max(cell.context_tokens + cell.output_tokens for cell in cells)
    return (
        f"the server is sized for the measured workload: at most {longest:,} tokens of prompt and answer together. "
        "Tune with a longer --context or --output-len if yours have more"
    )


def _best_text(engine: str, best: PlannedBest) -> str:
    """The best that an engine can do, against what it does with nothing set."""
    label = best.candidate.label.removeprefix(f"{engine}:")
    if best.default is None or best.gain is None:
        return label
    if best.default.candidate == best.candidate:
        return f"{label}, its own default"
    default = best.default.candidate.label.removeprefix(f"{engine}:")
    return f"{label}. Over its own default {default}: {gain_text(best.gain)}"
