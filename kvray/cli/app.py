"""`kvray`: finds the command, imports only that one, and turns errors into one line and an exit code."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import click
import typer
from typer.core import TyperGroup

COMMANDS = {
    "tune": "Measure a model's KV-cache configurations and decide.",
    "apply": "Show or save the code that applies a plan.",
    "compare": "Compare two sweeps.",
    "profiles": "List the built-in workload profiles, or show one.",
    "info": "Say what this machine offers: devices, engines, every value of every axis.",
    "rank": "Show the ranking of a sweep.",
    "report": "Write the reports of a sweep again.",
}
VERBOSE = "--verbose"


class LazyGroup(TyperGroup):
    """Commands by name, each imported from `kvray.cli` when it is called; `--help` imports none of them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order in which a user needs them."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, or `None` when there is none of this name."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"kvray.cli.{cmd_name}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The table of `--help`."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


app = typer.Typer(cls=LazyGroup, rich_markup_mode=None, add_completion=False, no_args_is_help=True)


@app.callback(invoke_without_command=True)
def kvray(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    verbose: Annotated[
        bool, typer.Option(VERBOSE, help="Show a traceback with an error (anywhere in the line).")
    ] = False,
) -> None:
    """Finds the best KV-cache configuration of an LLM for your model, hardware and workload, by measuring."""
    del verbose
    if version:
        from kvray import __version__

        typer.echo(f"kvray {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script; ends the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbose = VERBOSE in given
    sys.exit(run([argument for argument in given if argument != VERBOSE], verbose=verbose))


def run(arguments: list[str], *, verbose: bool) -> int:
    """Run one command line; returns its exit code. Errors go to stderr, as one line unless `verbose`."""
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="kvray", standalone_mode=False)
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        return _fail("Interrupted before anything was measured.", 130, verbose=verbose)
    except BrokenPipeError:
        return 0
    except Exception as error:  # noqa: BLE001  (the boundary: a user sees a line, never a traceback unasked)
        from kvray.errors import KvrayError, first_line

        if isinstance(error, KvrayError):
            return _fail(str(error), error.exit_code, verbose=verbose)
        text = f"internal error: {type(error).__name__}: {first_line(error)} Please report it, with {VERBOSE}."
        return _fail(text, 1, verbose=verbose)
    return int(code or 0)


def _fail(text: str, exit_code: int, *, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    typer.echo(f"kvray: {text}", err=True)
    return exit_code
