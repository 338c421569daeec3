"""What goes to the cluster with a job: the doorman, `job.json`, the files that the command names, a model, a wheel."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from kvray.errors import InvalidValueError
from kvray.files.redaction import redact
from kvray.jobs import doorman, sender
from kvray.jobs.client import upload_limit
from kvray.jobs.wheel import write_wheel

ENTRYPOINT = "exec python kvray_job.py"
RESULTS = "kvray_results"
"""Default folder for results, in the home folder of the user who started Ray on the cluster's head."""


@dataclass(frozen=True, kw_only=True)
class Argument:
    """One argument of a command: its text, then the path of what it names, here or in the cluster's home folder.

    Attributes:
        option: what stands before that and is no part of a model's name, such as `--model-for=llama_cpp=`.
        content: what the file `local` holds there, where that is not what it holds here.
        beside: by its place in the package, what else goes along.
        models: of models that go along, how they are called there and how the user named them. `""` is `local`.
    """

    option: str = ""
    text: str = ""
    local: Path | None = None
    home: str | None = None
    content: str | None = None
    beside: Mapping[str, Path] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)


def write_package(
    folder: Path, arguments: Sequence[Argument], *, output: Argument, columns: int, with_wheel: bool
) -> tuple[str, ...]:
    """Fill `folder`; returns what each node has to install, e.g. a wheel of this very kvray.

    Raises:
        InvalidValueError: it is larger than Ray takes.
    """
    shutil.copyfile(doorman.__file__, folder / "kvray_job.py")
    packed = [_packed(one, folder, place) for place, one in enumerate(arguments)]
    models = [
        {**({"text": name} if name else {**there, "text": one.text}), "typed": redact(typed)}
        for one, there in zip(arguments, packed, strict=True)
        for name, typed in one.models.items()
    ]
    files = [
        {"file": there["file"], "typed": redact(str(one.local))}
        for one, there in zip(arguments, packed, strict=True)
        if one.local is not None and "" not in one.models
    ]
    job = {
        "kvray": version("kvray"),
        "ray": version("ray"),
        "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "columns": str(columns),
        "arguments": packed,
        "models": json.dumps([*models, *files]),
        "output": _packed(output, folder, len(arguments)),
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    wheel = write_wheel(folder).name if with_wheel else None
    size = size_of(folder)
    if size >= upload_limit():
        raise InvalidValueError(
            f"The job's files have {shown_size(size)}, and Ray takes less than {shown_size(upload_limit())}.",
            hint="Put the model where every node of the cluster sees it and give that path, or its hub id.",
        )
    return (f"${{RAY_RUNTIME_ENV_CREATE_WORKING_DIR}}/{wheel}",) if wheel else ()


def write_request(folder: Path, *, results: str, run_id: str, start: int, most: int) -> str:
    """Fill `folder` for a job that sends results; returns its entrypoint."""
    shutil.copyfile(sender.__file__, folder / "kvray_send.py")
    request = {"folder": results, "run_id": run_id, "start": start, "most": most}
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    return "exec python kvray_send.py"


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())


def shown_size(size: int) -> str:
    """E.g. `1.5 MiB`, or `12 KiB` of what is less than one."""
    return f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{math.ceil(size / 1024)} KiB"


def _packed(argument: Argument, folder: Path, place: int) -> dict[str, str]:
    packed = {"text": f"{argument.option}{argument.text}"}
    if argument.home is not None:
        packed["home"] = argument.home
    if argument.local is not None:
        packed["file"] = f"files/{place}/{argument.local.name}"
        _copy(argument.local, folder / packed["file"], content=argument.content)
    for name, path in argument.beside.items():
        _copy(path, folder / name)
    return packed


def _copy(path: Path, target: Path, *, content: str | None = None) -> None:
    target.parent.mkdir(parents=True)
    if content is not None:
        target.write_text(content, encoding="utf-8")
    elif path.is_dir():
        shutil.copytree(path, target)
    else:
        shutil.copyfile(path, target)
