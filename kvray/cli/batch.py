"""`kvray batch`: many models in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from kvray.candidate import DeviceType
from kvray.cli import options
from kvray.cli.batch_progress import batch_progress
from kvray.cli.interrupts import patient_interrupts
from kvray.cli.job_events import is_a_job, tell_of_batch
from kvray.cli.parsing import parse_duration
from kvray.errors import BatchFailedError, InvalidValueError, KvrayError, OutputError
from kvray.store.batch_store import BatchStore
from kvray.tuning.batch import BatchOptions, BatchSearch
from kvray.tuning.batch_file import EXAMPLE, read_batch_file

app = typer.Typer(add_completion=False)


@app.command()
def batch(
    file: Annotated[str | None, typer.Argument(help="YAML file of models and profiles.")] = None,
    init: Annotated[bool, typer.Option("--init", help="Write a commented example to FILE, or models.yaml.")] = False,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FOLDER", help="Results folder or URI (s3://…).")
    ] = "./kvray_results",
    resume: Annotated[str | None, typer.Option(metavar="ID", help="Go on with this batch.")] = None,
    budget: Annotated[str | None, typer.Option(metavar="TIME", help="Time for all sweeps together: 90m or 8h.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what each sweep would measure.")] = False,
    device: options.Device = None,
    slots: Annotated[int | None, typer.Option(metavar="N", help="Trials at the same time.", min=1)] = None,
    address: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="A running Ray cluster.")] = None,
    gpu_type: Annotated[
        str | None, typer.Option("--gpu-type", metavar="NAME", help="The GPUs of a cluster to measure on: A100.")
    ] = None,
    offline: options.Offline = False,
) -> None:
    """Tune many models, one sweep each. A model that fails is a row of the overview; the others go on.

    Exit code 0: every sweep has a winner. 13: some have none, or the budget ended before their turn.
    """
    if init:
        _write_example(Path(file or "models.yaml"))
        return
    if file is None and resume is None:
        raise InvalidValueError("No batch file is given.", hint="kvray batch --init writes an example.")
    common = BatchOptions(
        output_dir=output,
        device=None if device is None else DeviceType.parse(device),
        address=address,
        gpu_type=gpu_type,
        slots=slots,
        offline=offline,
        budget_s=parse_duration(budget, option="--budget"),
    )
    asked = () if file is None else read_batch_file(file)
    if dry_run:
        _print_previews(BatchSearch(asked, common, resume=resume))
        return
    with batch_progress(Console(stderr=True)) as view:
        search = BatchSearch(
            asked,
            common,
            resume=resume,
            tell=lambda line: typer.echo(f"kvray: {line}", err=True),
            kept=tell_of_batch if is_a_job() else lambda _: None,
            view=view,
        )
        with patient_interrupts(lambda: str(search.interrupted())):
            manifest = search.run()
    paths = BatchStore(output).paths(manifest.batch_id)
    typer.echo(f"batch {manifest.batch_id}: {paths.overview_html}")
    failed = [one for one in manifest.sweeps if one.status != "ok"]
    if failed:
        names = ", ".join(f"{one.model_id} ({one.status})" for one in failed)
        raise BatchFailedError(
            f"{len(failed)} of {len(manifest.sweeps)} sweeps have no winner: {names}.",
            hint=f"{paths.overview_markdown} has the reasons; measure what is not measured yet with "
            f"--resume {manifest.batch_id}.",
        )


def _write_example(path: Path) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(EXAMPLE)
    except OSError as error:
        raise OutputError(f"Cannot write {str(path)!r}: {error.strerror}.", hint="Name another file.") from error
    typer.echo(f"Wrote {path}. Edit it, then run: kvray batch {path}")


def _print_previews(search: BatchSearch) -> None:
    for asked, preview in search.previews():
        told = (
            f"cannot be measured: {preview}"
            if isinstance(preview, KvrayError)
            else f"{len(preview.space.candidates)} candidates on {preview.device.device_name}"
        )
        typer.echo(f"{asked.model_id} · {asked.profile.name}: {told}")
