"""`kvray jobs`: what was submitted to a cluster."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from kvray.cli.following import follow_job, read_log, stop_job, why_it_failed
from kvray.cli.job_events import JobLog
from kvray.cli.job_status import job_json, list_line, status_json, status_lines
from kvray.cli.submit import Address
from kvray.errors import ResultsError
from kvray.files.documents import shown_document
from kvray.files.remote import is_uri, within
from kvray.jobs.client import Job, JobServer, JobState, job_server_address
from kvray.jobs.destination import destination
from kvray.jobs.fetching import fetch_results
from kvray.jobs.package import shown_size
from kvray.report.formats import listed, plural

app = typer.Typer(add_completion=False, no_args_is_help=True, help="List, follow, stop and fetch what was submitted.")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job: kvray jobs list.")]


@app.command("list")
def list_(address: Address = None, as_json: AsJson = False) -> None:
    """List the jobs that kvray submit has started on the cluster."""
    jobs = _server(address).jobs()
    if as_json:
        typer.echo(json.dumps([job_json(job) for job in jobs], indent=2))
        return
    if not jobs:
        typer.echo("kvray: no jobs yet", err=True)
    for job in jobs:
        typer.echo(list_line(job))


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
def status(job: JobId, address: Address = None, as_json: AsJson = False) -> None:
    """Show on one screen how a job stands."""
    server = _server(address)
    found = server.job(job)
    log, _ = read_log(server, job)
    if found.state.is_over:
        log.freeze()
    if as_json:
        typer.echo(json.dumps(status_json(found, log, address=server.address), indent=2))
        return
    for line in status_lines(found, log, address=server.address):
        Console().print(Text(line), soft_wrap=True)


@app.command()
def stop(job: JobId, address: Address = None) -> None:
    """End a job in good order: plan and reports are written from what was measured."""
    server = _server(address)
    before = server.job(job)
    if before.state.is_over:
        typer.echo(f"Job {before.job_id} had already ended: {before.state.value.lower()}.")
        return
    ended = stop_job(server, job)
    if ended.state.is_over:
        typer.echo(f"Job {ended.job_id}: {ended.state.value.lower()}.")
    else:
        typer.echo(f"Job {ended.job_id} is still ending. kvray jobs status {ended.job_id} shows when it has.")


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
        typer.echo(f"kvray: {shown_size(come)} of {shown_size(total)}", err=True)

    with destination(output) as (folder, put):
        files = fetch_results(server, folder, results=results, run_id=results_id, node=found.node, tell=tell)
        put(files)
    size, place = shown_size(sum(one.size for one in files)), shown_document(output).rstrip("/")
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
    if is_uri(log.output):
        raise ResultsError(
            f"The results of job {job.job_id!r} are in {log.output}, which needs no fetching.",
            hint=f"Read them there: {_reading(log.output, log.results_id, is_batch=log.batch is not None)}.",
        )
    return log.output, log.results_id


def _reading(output: str, results_id: str, *, is_batch: bool) -> str:
    if is_batch:
        return within(output, "batches", results_id, "overview.html")
    return f"kvray rank {output} --run {results_id}"


def still_runs(job: Job, names: Sequence[str]) -> str:
    """What a fetch does not bring while the job runs, told by the names of the files that have come."""
    wanted = {"the records": ".parquet", "the plan": "best_plan.json", "the report": ".html"}
    missing = [what for what, ending in wanted.items() if not any(name.endswith(ending) for name in names)]
    lacks = f"{listed(missing)} {'is' if missing == ['the plan'] or missing == ['the report'] else 'are'} not there yet"
    state = f"Job {job.job_id} still runs"
    return f"{state}{f', and {lacks}' if missing else ''}. Repeat the command when it has ended."


def _server(address: str | None) -> JobServer:
    return JobServer(job_server_address(address))
