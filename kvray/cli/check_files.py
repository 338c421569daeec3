"""Files that a check leaves for a CI: the options of `kvray check` and `kvray suite check`, and their writing."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import typer

from kvray.check.check_file import write_output
from kvray.check.outputs.action_benchmark import render_action_benchmark
from kvray.check.outputs.bencher import render_bencher
from kvray.check.outputs.junit import render_junit
from kvray.check.outputs.markdown import render_comment, render_markdown
from kvray.check.outputs.step_summary import append_step_summary
from kvray.check.result import CheckResult, OnInconclusive
from kvray.cli.options import FILES
from kvray.errors import InvalidValueError, OutputError
from kvray.files.documents import shown_document
from kvray.files.remote import is_uri, try_uri

_logger = logging.getLogger("kvray.check")


@dataclass(frozen=True, kw_only=True)
class CheckFiles:
    """Where each file goes, a path or URI; `None` writes none."""

    markdown: Annotated[
        str | None,
        typer.Option("--markdown", metavar="FILE", help="The result as a page of Markdown.", rich_help_panel=FILES),
    ] = None
    comment: Annotated[
        str | None,
        typer.Option(
            "--comment", metavar="FILE", help="Short Markdown to comment a pull request with.", rich_help_panel=FILES
        ),
    ] = None
    junit: Annotated[
        str | None,
        typer.Option("--junit", metavar="FILE", help="JUnit XML, for GitLab and Jenkins.", rich_help_panel=FILES),
    ] = None
    github_action_benchmark: Annotated[
        str | None,
        typer.Option(
            "--github-action-benchmark",
            metavar="FILE",
            help="JSON for its tool customSmallerIsBetter.",
            rich_help_panel=FILES,
        ),
    ] = None
    bencher: Annotated[
        str | None,
        typer.Option("--bencher", metavar="FILE", help="JSON for Bencher's adapter json.", rich_help_panel=FILES),
    ] = None

    def check_places(self, *, json_file: str | None = None) -> None:
        """Before anything is measured: no file is named twice, and each has a folder that can be written to.

        Args:
            json_file: that of `--json`, which is no field here because each command writes it in its own way.

        Raises:
            InvalidValueError: two options name one file.
            OutputError: a file cannot be written.
        """
        options = {"--json": json_file} | {
            f"--{field.name.replace('_', '-')}": getattr(self, field.name) for field in fields(self)
        }
        places: dict[str, str] = {}
        for option, path in options.items():
            if path is None:
                continue
            if (other := places.setdefault(path, option)) != option:
                raise InvalidValueError(
                    f"{other} and {option} both name {shown_document(path)!r}.", hint="Name two files."
                )
            check_place(option, path)

    def write(self, result: CheckResult, *, on_inconclusive: OnInconclusive | None = None) -> OutputError | None:
        """Write the files that were asked for, and the summary of a GitHub step where there is one.

        Returns:
            Why a file could not be written. The others are written all the same.
        """
        problems = [str(problem) for problem in self._problems(result, on_inconclusive)]
        try:
            append_step_summary(result)
        except OutputError as error:
            _logger.warning("%s", error)
        return OutputError(" ".join(problems)) if problems else None

    def _problems(self, result: CheckResult, on_inconclusive: OnInconclusive | None) -> Iterator[OutputError]:
        renderers: tuple[tuple[str | None, Callable[[], str]], ...] = (
            (self.markdown, lambda: render_markdown(result)),
            (self.comment, lambda: render_comment(result)),
            (self.junit, lambda: render_junit(result, on_inconclusive=on_inconclusive)),
            (self.github_action_benchmark, lambda: render_action_benchmark(result)),
            (self.bencher, lambda: render_bencher(result)),
        )
        for path, render in renderers:
            if path is not None:
                try:
                    write_output(path, render())
                except OutputError as error:
                    yield error


def check_place(option: str, path: str) -> None:
    """Before anything is measured: a file can be written at the path or URI that `option` has.

    Raises:
        OutputError: it cannot.
    """
    if problem := _problem_behind(path) if is_uri(path) else _problem_of(Path(path)):
        raise OutputError(
            f"{option}: {shown_document(path)!r} cannot be written, because {problem}.", hint="Name another file."
        )


def _problem_behind(uri: str) -> str | None:
    """What stands in the way of a file at `uri`. One beside it is tried."""
    try:
        try_uri(uri)
    except FileNotFoundError:
        return "there is no such folder"
    except (OSError, ValueError) as error:
        return ((error.strerror if isinstance(error, OSError) else None) or str(error)).rstrip(".")
    return None


def _problem_of(path: Path) -> str | None:
    """What stands in the way of a file at `path`, or of the folders in which it is to be. A file is tried there: mode
    bits do not tell of `/proc` or of a file system that is mounted read-only."""
    if path.is_dir():
        return "it is a folder"
    folder = next(one for one in path.absolute().parents if one.exists())
    if not folder.is_dir():
        return f"{str(folder)!r} is no folder"
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".kvray-", suffix="~"):
            return None
    except OSError as error:
        return f"the folder {str(folder)!r} is not writable ({error.strerror})"
