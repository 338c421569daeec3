"""`kvray jobs`: what was submitted to a cluster."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from kvray.cli.following import follow_job, how_to_go_on, read_log, stop_job, why_it_failed
from kvray.cli.job_events import BatchState, JobLog
from kvray.cli.submit import Address
from kvray.errors import ResultsError
from kvray.files.documents import shown_document
from kvray.jobs.client import Job, JobServer, JobState, job_server_address
from kvray.jobs.destination import destination
from kvray.jobs.fetching import fetch_results
from kvray.jobs.package import mib
from kvray.report.formats import listed, plural

app = typer.Typer(add_completion=False, no_args_is_help=True, help="List, follow, stop and fetch what was submitted.")
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job: kvray jobs list.")]


@app.command("list")
def list_(address: Address = None) -> None:
    """List the jobs that kvray submit has started on the cluster."""
    jobs = _server(address).jobs()
    if not jobs:
        typer.echo("kvray: no jobs yet", err=True)
    for job in jobs:
        typer.echo(f"{job.job_id}  {job.state.value.lower():<9}  {_date(job.started)}  {job.command}")


@app.command()
def logs(
    job: JobId,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> None:
    """Show what a job has printed."""
    server = _server(address)
    if follow:
        follow_job(server, server.job(job).job_id)
        return
    for line in read_log(server, job)[1]:
        typer.echo(line)


@app.command()
def status(job: JobId, address: Address = None) -> None:
    """Show on one screen how a job stands."""
    server = _server(address)
    found = server.job(job)
    log, _ = read_log(server, job)
    if found.state.is_over:
        log.freeze()
    rows = {
        "job": f"{found.job_id} · {found.state.value.lower()} · started {_date(found.started)}",
        "command": f"kvray {found.command}",
        **(_sweep_rows(log) if log.batch is None else _batch_rows(log.batch)),
        "results": f"{log.output} on the cluster" if log.results_id else "none yet",
    }
    if found.state.is_over and log.results_id is None:
        rows["results"] = "none"
    if found.state is JobState.FAILED:
        rows["failed"] = " ".join(filter(None, (why_it_failed(found, log), how_to_go_on(server.address, found, log))))
    for name, text in rows.items():
        if text:
            Console().print(Text(f"{name + ':':<9} {text}"), soft_wrap=True)


@app.command()
def stop(job: JobId, address: Address = None) -> None:
    """End a job in good order: plan and reports are written from what was measured."""
    server = _server(address)
    before = server.job(job)
    if before.state.is_over:
        typer.echo(f"Job {before.job_id} had already ended: {before.state.value.lower()}.")
        return
    ended = stop_job(server, job)
    typer.echo(f"Job {ended.job_id}: {ended.state.value.lower()}.")


@app.command()
def fetch(
    job: JobId,
    address: Address = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FOLDER", help="Where to put the results: a folder or a URI.")
    ] = "./kvray_results",
) -> None:
    """Bring a job's records, plan and reports here, checked whole. A fetch that was cut goes on when it is repeated."""
    server = _server(address)
    found = server.job(job)
    log, _ = read_log(server, job)
    results, results_id = results_of(found, log)

    def tell(come: int, total: int) -> None:
        typer.echo(f"kvray: {mib(come)} of {mib(total)}", err=True)

    with destination(output) as (folder, put):
        files = fetch_results(server, folder, results=results, run_id=results_id, node=found.node, tell=tell)
        put(files)
    size, place = mib(sum(one.size for one in files)), shown_document(output).rstrip("/")
    typer.echo(f"{plural(len(files), 'file')}, {size}, checked, in {place}.")
    if not found.state.is_over:
        typer.echo(f"kvray: {still_runs(found, [one.name for one in files])}", err=True)
    pages = (f"batches/{results_id}/overview.html", f"reports/{results_id}/report.html")
    for page in pages:
        if any(one.name == page for one in files):
            typer.echo(f"report: {place}/{page}")


def results_of(job: Job, log: JobLog) -> tuple[str, str]:
    """The folder of the job's results on the cluster, and the id of its sweep or batch.

    Raises:
        ResultsError: there are none, or they need no fetching.
    """
    if log.output is None or log.results_id is None:
        if job.state.is_over:
            what = f"Job {job.job_id!r} has no results: it ended before it measured anything."
            if job.state is JobState.FAILED:
                what = f"Job {job.job_id!r} has no results. It failed: {why_it_failed(job, log)}"
            raise ResultsError(what, hint=f"kvray jobs logs {job.job_id} shows what it did.")
        raise ResultsError(
            f"Job {job.job_id!r} has no results yet: it has not begun to measure.",
            hint=f"kvray jobs status {job.job_id} shows when it has.",
        )
    if "://" in log.output:
        raise ResultsError(
            f"The results of job {job.job_id!r} are in {log.output}, which needs no fetching.",
            hint=f"Read them there: {_reading(log.output, log.results_id, is_batch=log.batch is not None)}.",
        )
    return log.output, log.results_id


def _reading(output: str, results_id: str, *, is_batch: bool) -> str:
    if is_batch:
        return f"{output.rstrip('/')}/batches/{results_id}/overview.html"
    return f"kvray rank {output} --run {results_id}"


def still_runs(job: Job, names: Sequence[str]) -> str:
    """What a fetch does not bring while the job runs, told by the names of the files that have come."""
    wanted = {"the records": ".parquet", "the plan": "best_plan.json", "the report": ".html"}
    missing = [what for what, ending in wanted.items() if not any(name.endswith(ending) for name in names)]
    lacks = f"{listed(missing)} {'is' if missing == ['the plan'] or missing == ['the report'] else 'are'} not there yet"
    state = f"Job {job.job_id} still runs"
    return f"{state}{f', and {lacks}' if missing else ''}. Repeat the command when it has ended."


def _sweep_rows(log: JobLog) -> dict[str, str]:
    state = log.state
    return {
        "sweep": f"{log.run_id} · {state.title}" if log.run_id else "not begun",
        "trials": ", ".join(f"{count} {name}" for name, count in state.counts().items()) or "none yet",
        "best": state.best_line().removeprefix("best: "),
        "gain": state.gain_line() or "",
        "time": state.time_line() if log.run_id else "",
    }


def _batch_rows(batch: BatchState) -> dict[str, str]:
    return {"batch": f"{batch.batch_id} · {batch.progress}", "sweeps": batch.by_status, "now": batch.now}


def _server(address: str | None) -> JobServer:
    return JobServer(job_server_address(address))


def _date(seconds: float | None) -> str:
    return "" if seconds is None else f"{dt.datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"
