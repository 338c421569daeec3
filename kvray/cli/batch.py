"""`kvray batch`: many models in one go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from kvray.candidate import DeviceType
from kvray.cli import options
from kvray.cli.batch_preview import each_said_once, sweep_lines
from kvray.cli.batch_progress import batch_progress
from kvray.cli.interrupts import patient_interrupts
from kvray.cli.job_events import tell_of_batch
from kvray.cli.parsing import parse_duration, parse_retry
from kvray.errors import BatchFailedError, InvalidValueError, KvrayError, OutputError
from kvray.jobs.sent_model import as_typed, is_a_job
from kvray.record import short_model_name
from kvray.report.formats import plural
from kvray.store.batch_manifest import BatchManifest, BatchStatus
from kvray.store.batch_store import BatchStore
from kvray.tuning.batch import BatchSearch
from kvray.tuning.batch_file import EXAMPLE, read_batch_file
from kvray.tuning.batch_options import BatchOptions
from kvray.tuning.batch_retry import FAILED, BatchRetry
from kvray.tuning.batch_words import in_file_words

app = typer.Typer(add_completion=False)


@app.command()
def batch(
    file: Annotated[str | None, typer.Argument(help="YAML file of models and profiles.")] = None,
    init: Annotated[bool, typer.Option("--init", help="Write a commented example to FILE, or models.yaml.")] = False,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FOLDER", help="Results folder or URI (s3://…).")
    ] = "./kvray_results",
    resume: Annotated[str | None, typer.Option(metavar="ID", help="Go on with this batch.")] = None,
    retry: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="With --resume: measure these again: failed,oom,disturbed."),
    ] = None,
    budget: Annotated[str | None, typer.Option(metavar="TIME", help="Time for all sweeps together: 90m or 8h.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what each sweep would measure.")] = False,
    device: options.Device = None,
    slots: Annotated[int | None, typer.Option(metavar="N", help="Trials at the same time.", min=1)] = None,
    address: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="A running Ray cluster.")] = None,
    gpu_type: Annotated[
        str | None, typer.Option("--gpu-type", metavar="NAME", help="The GPUs of a cluster to measure on: A100.")
    ] = None,
    exclusive: options.Exclusive = False,
    offline: options.Offline = False,
) -> None:
    """Tune many models, one sweep each. A model that fails is a row of the overview; the others go on.

    Exit code 0: every sweep has a winner. 13: some have none, or the budget ended before their turn. With --dry-run, 13
    means that some cannot be measured.
    """
    if init:
        _write_example(Path(file or "models.yaml"))
        return
    common = batch_options(
        file=file,
        output=output,
        resume=resume,
        retry=retry,
        budget=budget,
        device=device,
        address=address,
        gpu_type=gpu_type,
        slots=slots,
        exclusive=exclusive,
        offline=offline,
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
            kept=tell_of_batch if is_a_job() else lambda _, __: None,
            view=view,
        )
        with patient_interrupts(lambda: str(search.left_at_once())):
            manifest = search.run()
    store = BatchStore(output)
    paths = store.paths(manifest.batch_id)
    typer.echo(f"batch {manifest.batch_id}: {store.shown(paths.overview_html)}")
    if any(one.status is not BatchStatus.OK for one in manifest.sweeps):
        raise _without_winners(manifest, overview=store.shown(paths.overview_markdown), resume=search.command_to_go_on)


def batch_options(
    *,
    file: str | None,
    output: str,
    resume: str | None,
    retry: str | None,
    budget: str | None,
    device: str | None,
    **others: Any,
) -> BatchOptions:
    """What the options of `kvray batch` come to; what is no field of `BatchOptions` is left out.

    Raises:
        InvalidValueError: one has a value that is not allowed, or lacks another.
    """
    if retry is not None and resume is None:
        raise InvalidValueError("--retry can only be used with --resume.")
    if file is None and resume is None:
        raise InvalidValueError("No batch file is given.", hint="kvray batch --init writes an example.")
    return BatchOptions(
        output_dir=output,
        file=file,
        device=None if device is None else DeviceType.parse(device),
        budget_s=parse_duration(budget, option="--budget"),
        retry=_retry(retry),
        **{name: others[name] for name in ("address", "gpu_type", "slots", "exclusive", "offline")},
    )


def _retry(text: str | None) -> BatchRetry:
    """`"failed,oom"` as what of a batch is measured again; nothing for `None`.

    Raises:
        InvalidValueError: a part is neither `failed` nor what `parse_retry` takes, or there is no part.
    """
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    others = [part for part in parts if part != FAILED]
    if text is None or (parts and not others):
        return BatchRetry(failed=bool(parts))
    statuses, disturbed = parse_retry(",".join(others) or text, option="--retry", also=(FAILED,))
    return BatchRetry(failed=FAILED in parts, statuses=statuses, disturbed=disturbed)


def _without_winners(manifest: BatchManifest, *, overview: str, resume: str) -> BatchFailedError:
    """What to say of a batch in which some sweeps have failed, or wait for another attempt."""
    failed = [f"{short_model_name(one.shown_model)} ({one.status})" for one in manifest.sweeps if one.status.is_failure]
    rest = [
        short_model_name(one.shown_model)
        for one in manifest.sweeps
        if not (one.status.is_failure or one.status.is_measured)
    ]
    told = []
    if failed:
        sweeps = f"{len(failed)} of {plural(len(manifest.sweeps), 'sweep')}"
        told.append(f"{sweeps} {'has' if len(failed) == 1 else 'have'} no winner: {', '.join(failed)}.")
    if rest:
        sweeps = f"{len(rest)} of {plural(len(manifest.sweeps), 'sweep')}"
        told.append(f"{sweeps} {'is' if len(rest) == 1 else 'are'} not measured yet: {', '.join(rest)}.")
    is_complete = all(one.status.is_measured for one in manifest.sweeps)
    hint = f"{overview} has the reasons." + ("" if is_complete else f" Measure what is missing with: {resume}")
    return BatchFailedError(" ".join(told), hint=hint)


def _write_example(path: Path) -> None:
    try:
        with path.open("x", encoding="utf-8") as file, _removed_unless_whole(path):
            file.write(EXAMPLE)
            file.flush()
    except OSError as error:
        raise OutputError(f"Cannot write {str(path)!r}: {error.strerror}.", hint="Name another file.") from error
    typer.echo(f"Wrote {path}. Edit it, then run: kvray batch {path}")


@contextmanager
def _removed_unless_whole(path: Path) -> Iterator[None]:
    """A file that was made for what turns out not to fit would be taken for the user's own."""
    try:
        yield
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _print_previews(search: BatchSearch) -> None:
    """Raises `BatchFailedError` if some cannot be measured."""
    with each_said_once():  # each sweep looks at the same machine or cluster
        failed, previews = 0, search.previews()
    for asked, preview in previews:
        if isinstance(preview, KvrayError):
            failed += 1
            lines = [f"cannot be measured: {in_file_words(str(preview))}"]
        else:
            lines = list(sweep_lines(preview, search.config_of(asked)))
        name = f"{short_model_name(as_typed(asked.model_id))} · {asked.profile.name}"
        typer.echo("\n  ".join((f"{name}: {lines[0]}", *lines[1:])))
    if failed:
        raise BatchFailedError(f"{failed} of {plural(len(previews), 'sweep')} cannot be measured.")
