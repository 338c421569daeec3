"""`kvray`: finds the command, imports only that one, and turns errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kvray.cli.encoding import show_all_signs
from kvray.cli.interrupts import leave_at_once_if_signalled
from kvray.cli.streams import PatientStream, open_closed_streams, patient

COMMANDS = {
    "tune": "Measure a model's KV-cache configurations and decide.",
    "batch": "Tune many models in one go.",
    "forecast": "Predict what fits and how fast it is, without loading the model.",
    "apply": "Show or save the code that applies a plan.",
    "check": "Say whether a configuration became worse than it was.",
    "watch": "Measure a plan's winner again and again, and tell when it became worse.",
    "compare": "Compare two sweeps, plans or checks.",
    "suite": "Check whether a library's change moved speed, memory or outputs.",
    "profiles": "List the built-in workload profiles, or show one.",
    "info": "Say what this machine offers: devices, engines, every value of every axis.",
    "rank": "Show the ranking of a sweep.",
    "report": "Write the reports of a sweep again.",
    "submit": "Run a command on a remote Ray cluster.",
    "jobs": "List, follow, stop and fetch what was submitted.",
}
VERBOSE = "--verbose"
OPTIONAL_VALUES = {"--wait-quiet": "10m"}
"""Options that may stand without a value, and what they then mean. Typer has none of this kind."""
_TIME = re.compile(r"\d+(\.\d+)?\s*[smhd]?", re.ASCII | re.IGNORECASE)
_UsageProblem: Any = typer.BadParameter.__mro__[2]
"""`ClickException`: click's own, or since typer 0.26 that of the copy of click inside typer, which is private."""


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
        with _no_search_for_cycles():
            module = importlib.import_module(f"kvray.cli.{cmd_name}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        _hide_types_of_flags(command)
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The table of `--help`."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@contextlib.contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """What is imported stays, and to look through it again and again takes a tenth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _hide_types_of_flags(command: Any) -> None:
    """The help shows what a value of an option is like; Typer shows `<bool>` for those that take none."""

    def help_option(context: Any, plain: Any = command.get_help_option) -> Any:
        option = plain(context)
        if option is not None:
            option.metavar = ""
        return option

    command.get_help_option = help_option
    for parameter in command.params:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    for one in getattr(command, "commands", {}).values():
        _hide_types_of_flags(one)


app = typer.Typer(cls=LazyGroup, rich_markup_mode=None, add_completion=False)


@app.callback(invoke_without_command=True)
def kvray(
    context: typer.Context,
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
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)
    _show_log()


def main(arguments: Sequence[str] | None = None, *, left_out: Sequence[str] = ()) -> None:
    """Run the command line and end the process.

    Args:
        arguments: those of the process by default.
        left_out: what was asked for in the environment and is not used, e.g. `PYTHONPATH=src`.
    """
    open_closed_streams()
    sys.stdout = printed = patient(sys.stdout)
    sys.stderr = patient(sys.stderr, apart=True)
    show_all_signs((sys.stdout, sys.stderr))
    _warn_of_relative_paths(left_out)
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbose = VERBOSE in given
    code = run([argument for argument in given if argument != VERBOSE], verbose=verbose)
    if isinstance(printed, PatientStream) and printed.failure is not None:
        from kvray.errors import OutputError

        text = f"Cannot write to standard output: {printed.failure.strerror}."
        code = code or _fail(text, OutputError.exit_code, verbose=False)
    leave_at_once_if_signalled(code)  # all is done; taking Ray's client down takes a moment
    sys.exit(code)


def run(arguments: list[str], *, verbose: bool) -> int:
    """Run one command line; returns its exit code. Errors go to stderr, as one line unless `verbose`."""
    command = typer.main.get_command(app)
    arguments = _with_optional_values(arguments)
    try:
        # Not `command.main`: it turns Ctrl-C into an exit code without a word.
        with command.make_context("kvray", arguments) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as end:
        return int(end.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("Interrupted.", 130, verbose=verbose)
    except _UsageProblem as error:
        return _fail(_usage_message(error, arguments), 2, verbose=verbose)
    except Exception as error:  # noqa: BLE001  (the boundary: a user sees a line, never a traceback unasked)
        from kvray.errors import KvrayError, sentence_of
        from kvray.extras import missing_extra

        told = missing_extra(error) if isinstance(error, ModuleNotFoundError) else error
        if isinstance(told, KvrayError):
            return _fail(str(told), told.exit_code, verbose=verbose)
        text = f"internal error: {type(error).__name__}: {sentence_of(error)} Please report it, with {VERBOSE}."
        return _fail(text, KvrayError.exit_code, verbose=verbose)
    return 0


def _with_optional_values(arguments: Sequence[str]) -> list[str]:
    """`arguments` with a value after each of `OPTIONAL_VALUES`: one that is not a time belongs to something else."""
    return [
        f"{one}={OPTIONAL_VALUES[one]}" if one in OPTIONAL_VALUES and not _TIME.fullmatch(after) else one
        for one, after in itertools.pairwise((*arguments, ""))
    ]


def _usage_message(error: Any, arguments: Sequence[str]) -> str:
    """What is wrong with the line, and where to read on: `No such option: --contxt. See kvray tune --help.`"""
    message, suggestion = _told(error)
    problems: Any = getattr(error.__cause__, "errors", list)()
    if problems and (value := repr(problems[0]["input"])) not in message:
        # typer from 0.26 on has pydantic convert values, and most of its messages do not repeat the value.
        message += f" (got {value})"
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    known = f"kvray {command}" if command in COMMANDS else "kvray"
    read_on = known if error.ctx is None else error.ctx.command_path
    return f"{message}. {suggestion}See {read_on} --help."


def _told(error: Any) -> tuple[str, str]:
    """What is wrong, and which command or option may have been meant, in place of click's lists."""
    from kvray.errors import did_you_mean

    message = str(error.format_message()).rstrip(".") or "A command is missing"
    if hasattr(error, "possibilities"):
        return f"No such option: {error.option_name}", did_you_mean(error.option_name, error.possibilities or ())
    if match := re.match(r"No such command '(.*?)'", message, re.DOTALL):
        return match[0], did_you_mean(match[1], COMMANDS)
    return message.replace(": Value error, ", ": "), ""


def _fail(text: str, exit_code: int, *, verbose: bool) -> int:
    from kvray.files.redaction import redact
    from kvray.jobs.sent_model import typed_text

    if verbose and sys.exc_info()[0] is not None:
        typer.echo(redact(traceback.format_exc()), err=True, nl=False)
    typer.echo(f"kvray: {redact(' '.join(typed_text(text).split()))}", err=True)
    return exit_code


def _warn_of_relative_paths(left_out: Sequence[str]) -> None:
    if left_out:
        typer.echo(
            f"kvray: warning: {', '.join(left_out)}: not used. kvray imports and runs nothing that is named relative "
            "to the working folder. Use absolute paths.",
            err=True,
        )


def _show_log() -> None:
    """Show what kvray's own modules warn about or are busy with, one line each, on stderr."""
    import logging

    from kvray.files.redaction import redact

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # `echo` looks stderr up anew each time: the live view replaces it while it is on the screen.
            kind = "warning: " if record.levelno >= logging.WARNING else ""
            typer.echo(f"kvray: {kind}{redact(' '.join(record.getMessage().split()))}", err=True)

    logger = logging.getLogger("kvray")
    logger.handlers = [Lines(logging.INFO)]
    logger.setLevel(logging.INFO)
    logger.propagate = False
