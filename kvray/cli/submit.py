"""`kvray submit`: sends a command to a remote cluster, and follows it."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from kvray.cli.following import end_of, follow_job, submit_command, wait_until_accepted
from kvray.cli.parsing import parse_assignments
from kvray.cli.submit_checks import check_extras, check_file, check_model, check_options, check_sent_model
from kvray.errors import InvalidValueError
from kvray.extras import Extra
from kvray.files.redaction import redact
from kvray.files.remote import is_uri
from kvray.jobs.batch import batch_argument
from kvray.jobs.client import JobServer, job_server_address
from kvray.jobs.package import ENTRYPOINT, RESULTS, Argument, shown_size, size_of, write_package
from kvray.models.source import is_absent_path
from kvray.tuning.batch_file import read_batch_file

app = typer.Typer(add_completion=False)

Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="The cluster's dashboard: http://HEAD:8265; by default RAY_ADDRESS, else this machine's."
    ),
]
_FILES = ("profile", "space", "candidates")
"""Options that may name a file of this machine."""
_OWN_OPTIONS = ("--upload-model", "--pip", "--extras", "--no-wait")
"""Those that `kvray submit` has beside `--address`."""
_COMMANDS = ("tune", "batch")
_RANDOM = "random:"


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def submit(
    command: Annotated[list[str], typer.Argument(help="What to run there: tune MODEL or batch FILE, and options.")],
    address: Address = None,
    upload_model: Annotated[
        bool, typer.Option("--upload-model", help="Send local folders and files of models with the job.")
    ] = False,
    pip: Annotated[
        bool, typer.Option("--pip", help="Have the nodes install this very kvray for the job, with pip.")
    ] = False,
    extras: Annotated[
        str | None,
        typer.Option("--extras", metavar="LIST", help="With --pip: extras of kvray to install, else transformers."),
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Print the job's id once the cluster has accepted it, and leave.")
    ] = False,
) -> None:
    """Run a command on a remote Ray cluster, through its job server.

    Results stay on the cluster's head, in ~/kvray_results unless --output says otherwise; kvray jobs fetch brings them
    here. Options of kvray submit stand before the command.
    """
    if extras is not None and not pip:
        raise InvalidValueError("--extras can only be used with --pip.")
    extras = extras or Extra.TRANSFORMERS.value
    check_extras(extras)
    url = job_server_address(address)
    arguments, output = prepare_arguments(command, upload_model=upload_model)
    server = JobServer(url)
    with tempfile.TemporaryDirectory(prefix="kvray-") as name:
        folder = Path(name)
        wheels = write_package(folder, arguments, output=output, columns=Console().width, with_wheel=pip)
        if upload_model:
            typer.echo(f"kvray: sending {shown_size(size_of(folder))}", err=True)
        job_id = server.submit(
            entrypoint=ENTRYPOINT,
            folder=folder,
            command=redact(shlex.join(command)),
            options=_given_again(upload_model=upload_model, pip=pip, extras=extras),
            pip=tuple(f"{wheel}[{extras}]" for wheel in wheels),
        )
    if not no_wait:
        follow_job(server, job_id)
        return
    if not wait_until_accepted(server, job_id):
        end_of(server, job_id)
    typer.echo(job_id)


def _given_again(*, upload_model: bool, pip: bool, extras: str) -> str:
    """Options with which the rest of a job has to be submitted."""
    given = [
        *(["--upload-model"] if upload_model else []),
        *(["--pip"] if pip else []),
        *(["--extras", extras] if pip and extras != Extra.TRANSFORMERS.value else []),
    ]
    return shlex.join(given)


def prepare_arguments(typed: Sequence[str], *, upload_model: bool) -> tuple[list[Argument], Argument]:
    """The command for the cluster, its files as `Argument.local`, and its results folder.

    Raises:
        InvalidValueError: it is not a command to submit, has an option that is refused here as it would be there, or
            names a model of this machine that is not to be sent.
        KvrayError: a file of this machine that it names cannot be used.
    """
    name = typed[0]
    if name not in _COMMANDS:
        raise InvalidValueError.not_one_of("command to submit", name, _COMMANDS)
    command = submit_command(name)
    _check_places(command, name, typed[1:])
    given: dict[str, Any] = {}
    with command.make_context(f"kvray submit {name}", list(typed[1:])) as context:
        for parameter in command.params:
            source = context.get_parameter_source(parameter.name)
            if source is not None and source.name == "COMMANDLINE":
                given[parameter.name] = context.params[parameter.name]
    if "address" in given:
        raise InvalidValueError(
            f"--address {given['address']!r} stands after {name}.",
            hint=f"A job joins the cluster that it is sent to: kvray submit --address http://HEAD:8265 {name} …",
        )
    if "init" in given:
        raise InvalidValueError("--init writes an example on this machine.", hint="Run kvray batch --init.")
    check_options(name, context.params)
    arguments, output = [Argument(text=name)], Argument(home=RESULTS)
    for parameter in command.params:
        if parameter.name not in given:
            continue
        value = given[parameter.name]
        if parameter.name == "output":
            output = _output(str(value))
        elif parameter.param_type_name == "argument":
            named = _batch_file if parameter.name == "file" else _model
            # With a file for one engine there is something to send where the model itself is a hub id.
            is_sent = upload_model and not ("model_for" in given and not _path_of(str(value)).exists())
            arguments.append(named(str(value), upload=is_sent))
        elif parameter.name == "model_for":
            arguments += [_model_for(max(parameter.opts, key=len), one, upload=upload_model) for one in value]
        else:
            arguments += _option(parameter, value)
    return arguments, output


def _check_places(command: Any, name: str, typed: Sequence[str]) -> None:
    """Refuse an option of `kvray submit` that stands after the command."""
    theirs = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    for one in typed:
        flag = one.partition("=")[0]
        if flag in _OWN_OPTIONS and flag not in theirs:
            raise InvalidValueError(
                f"{flag} stands after {name}.",
                hint=f"It is an option of kvray submit and stands before {name}: kvray submit {one} {name} …",
            )


def _option(parameter: Any, value: Any) -> list[Argument]:
    flag = max(parameter.opts, key=len)
    if isinstance(value, bool):
        return [Argument(text=flag if value else parameter.secondary_opts[0])]
    if isinstance(value, list | tuple):
        return [Argument(text=f"{flag}={one}") for one in value]
    if parameter.name in _FILES:
        check_file(parameter.name, str(value))
    if parameter.name in _FILES and Path(str(value)).is_file():
        return [Argument(text=f"{flag}=", local=Path(str(value)).absolute())]
    return [Argument(text=f"{flag}={value}")]


def _output(value: str) -> Argument:
    """A relative folder is one of the cluster's home folder."""
    if is_uri(value) or Path(value).is_absolute():
        return Argument(text=value)
    return Argument(home=value.removeprefix("~/").removeprefix("./"))


def _batch_file(value: str, *, upload: bool) -> Argument:
    """One that lies behind a URI is read by the job."""
    if is_uri(value):
        return Argument(text=value)
    read_batch_file(value)
    return batch_argument(Path(value), model=lambda one: _model(one, upload=upload and _path_of(one).exists()))


def _model_for(flag: str, value: str, *, upload: bool) -> Argument:
    """A hub id goes as it is, also where models are sent."""
    ((engine, model),) = parse_assignments([value], option=flag).items()
    is_sent = upload and (_path_of(model).exists() or is_absent_path(model))
    return replace(_model(model, upload=is_sent), option=f"{flag}={engine}=")


def _path_of(model: str) -> Path:
    return Path(model.removeprefix(_RANDOM)).expanduser()


def _model(value: str, *, upload: bool) -> Argument:
    prefix = _RANDOM if value.startswith(_RANDOM) else ""
    path = _path_of(value)
    if upload:
        if not path.exists():
            raise InvalidValueError(
                f"--upload-model: {str(path)!r} is neither a folder nor a file of this machine.",
                hint="A hub id needs no upload: the cluster downloads it.",
            )
        check_sent_model(value)
        local = path.resolve() if path.name == ".." else path.absolute()
        return Argument(text=prefix, local=local, models={"": value})
    if path.exists() and not path.is_absolute():
        raise InvalidValueError(
            f"{value!r} is on this machine ({shown_size(size_of(path))}), and the cluster would look for it on its own "
            "machines.",
            hint="Send it with --upload-model, or give the absolute path that it has on every node.",
        )
    check_model(value)
    return Argument(text=value)
