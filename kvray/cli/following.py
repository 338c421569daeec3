"""Follows a submitted job: a sweep on a terminal in the live view of a local one, else by the job's own lines."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from kvray.cli.job_events import JobLog
from kvray.cli.progress import render_state
from kvray.errors import InvalidValueError, SweepError, SweepInterruptedError
from kvray.files.remote import is_uri
from kvray.jobs.client import Job, JobServer, JobState

_STOPS_WITHIN_S = 120.0
_KILLED = 128
"""A shell's exit code of a killed process is this plus the signal's number."""
_NOT_FOUND = 127
"""A shell's exit code where there is no such program."""


def submit_command(name: str) -> Any:
    """The command `kvray NAME`, to be asked for what its arguments mean."""
    return typer.main.get_command(importlib.import_module(f"kvray.cli.{name}").app)


def follow_job(server: JobServer, job_id: str) -> None:
    """Show the job until it ends, then end as it did. Ctrl-C stops following, not the job.

    Raises:
        SweepInterruptedError: Ctrl-C was pressed; it says how to follow again.
        SweepError: the job was killed, or could not start, or the cluster does not know it any more.
        typer.Exit: with the exit code of the command there.
    """
    typer.echo(f"kvray: job {job_id} at {server.address}", err=True)
    log, job = JobLog(), server.job(job_id)
    try:
        console = Console(stderr=True)
        if console.is_terminal and not job.command.startswith("batch "):
            _show_live(server, job_id, console, log)
        else:
            _feed(server, job_id, lambda line, _: typer.echo(line), log)
    except InvalidValueError:  # it knew the job a moment ago
        raise SweepError(
            f"The cluster at {server.address} was started anew and does not know job {job_id} any more.",
            hint=_rest(server.address, job, log),
        ) from None
    except KeyboardInterrupt:
        raise SweepInterruptedError(
            f"No longer following; job {job_id} goes on.",
            hint=f"Follow it again with kvray jobs logs --follow {_there(server, job_id)}. End it with kvray jobs stop "
            f"{_there(server, job_id)}.",
        ) from None
    end_of(server, job_id, log)


def end_of(server: JobServer, job_id: str, log: JobLog | None = None) -> None:
    """End as the job did, with a word on where its results are."""
    job = server.job(job_id)
    if log is None:
        log = read_log(server, job_id)[0]
    if job.state is JobState.FAILED and not _ended_itself(job):
        raise SweepError(
            f"Job {job.job_id} failed: {why_it_failed(job, log)}", hint=how_to_go_on(server.address, job, log)
        )
    if log.results_id is not None and log.output is not None:
        fetch = "" if is_uri(log.output) else f"; kvray jobs fetch {_there(server, job_id)}"
        typer.echo(f"kvray: results: {place_of(log.output)}{fetch}", err=True)
    if job.state is not JobState.SUCCEEDED:
        raise typer.Exit(job.exit_code or SweepInterruptedError.exit_code)


def why_it_failed(job: Job, log: JobLog) -> str:
    """Why a job failed: its own exit code and last word, or what ended it from outside."""
    if job.exit_code is None:
        how = " ".join(job.message.split())[:300] or "Ray says no reason"
    elif _ended_itself(job):
        how = f"exit code {job.exit_code}: {log.last_word or 'its log tells no reason'}"
    elif job.exit_code == _NOT_FOUND:
        how = "its python was not found"
    else:
        number = -job.exit_code if job.exit_code < 0 else job.exit_code - _KILLED
        how = f"its driver was killed (signal {number})"
    return f"{how.rstrip('.')}."


def _ended_itself(job: Job) -> bool:
    """Whether the job ended with an exit code of its own."""
    return job.exit_code is not None and 0 < job.exit_code < _KILLED and job.exit_code != _NOT_FOUND


def how_to_go_on(address: str, job: Job, log: JobLog) -> str | None:
    """The command that measures the rest of a sweep or batch that was broken off or stopped.

    It is `None` where the job failed by itself: its last word says what to do.
    """
    if job.state is JobState.FAILED and _ended_itself(job):
        return None
    return _rest(address, job, log)


def _rest(address: str, job: Job, log: JobLog) -> str | None:
    if log.results_id is None or log.output is None:
        return None
    typed = [one for one in shlex.split(job.command) if not one.startswith("--resume=")]
    if "--resume" in typed:
        at = typed.index("--resume")
        del typed[at : at + 2]
    options = ["--address", address, *shlex.split(job.options)]
    command = shlex.join(["kvray", "submit", *options, *typed, "--resume", log.results_id])
    return f"Its records are kept in {place_of(log.output)}. Measure the rest with: {command}"


def place_of(output: str) -> str:
    """Where a job's results are, in words."""
    return output if is_uri(output) else f"{output} on the cluster"


def wait_until_accepted(server: JobServer, job_id: str) -> bool:
    """Wait until the cluster has checked versions; returns whether it runs the job. What refuses it is printed."""
    log = JobLog()
    for piece in server.follow(job_id):
        for line, _ in log.feed(piece):
            if not _is_rays(line):
                typer.echo(line, err=True)
        if log.is_accepted:
            return True
    return False


def read_log(server: JobServer, job_id: str) -> tuple[JobLog, list[str]]:
    """What the job has told until now, and its lines for people."""
    log = JobLog()
    return log, [line for line, _ in log.feed(server.log(job_id)) if not _is_rays(line)]


def _show_live(server: JobServer, job_id: str, console: Console, log: JobLog) -> None:
    with Live(console=console, get_renderable=lambda: render_state(log.state), refresh_per_second=4, transient=True):
        # What the view tells already is not printed beside it.
        _feed(server, job_id, lambda line, told: None if told else console.print(Text(line)), log)


def _feed(server: JobServer, job_id: str, show: Callable[[str, bool], None], log: JobLog) -> None:
    for piece in server.follow(job_id):
        for line, told in log.feed(piece):
            if not _is_rays(line):
                show(line, told)


def stop_job(server: JobServer, job_id: str) -> Job:
    """Ask the job to end, and wait until it has written up what it measured."""
    if server.stop(job_id):
        typer.echo("kvray: ending in good order, with what has been measured; this takes seconds", err=True)
    return server.wait(job_id, within_s=_STOPS_WITHIN_S)


def _is_rays(line: str) -> bool:
    """Whether Ray wrote this line into the job's log, about its own doing."""
    return "Running entrypoint for job" in line or "Runtime env is setting up." in line or "job_manager.py" in line


def _there(server: JobServer, job_id: str) -> str:
    return f"--address {server.address} {job_id}"
