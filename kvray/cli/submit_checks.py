"""What can be found wrong with a command before it is sent: its options are read as if it were to run here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from kvray.cli.option_groups import group_of
from kvray.config import DEFAULT_SPACE, FULL_SPACE
from kvray.errors import InvalidValueError
from kvray.files.remote import is_uri
from kvray.models.source import is_absent_path, parse_model_id

_OF_THE_CLUSTER = "auto"
"""In place of the address that a job gets there."""


def check_options(name: str, values: Mapping[str, Any]) -> None:
    """Refuse what `kvray tune` or `kvray batch` (`name`) would refuse on the cluster.

    Args:
        values: by parameter, what was given or is the default.

    Raises:
        InvalidValueError, ProfileError: as those commands.
    """
    # Each command's module is loaded for that command only.
    given = {**values, "address": _OF_THE_CLUSTER}
    if name == "batch":
        from kvray.cli.batch import batch_options

        batch_options(**given)
        return
    from kvray.cli.sweep_options import ResumeOptions, SweepOptions, WorkloadOptions, tune_config

    if is_of_the_cluster(str(given["profile"])):
        given["profile"] = WorkloadOptions.profile
    tune_config(given["model"], group_of(SweepOptions, given), group_of(ResumeOptions, given))


def check_file(name: str, value: str) -> None:
    """Refuse a profile, space or candidates file that neither this machine has nor the cluster may have.

    Raises:
        InvalidValueError: there is no such file. What a profile says is for `check_options`.
    """
    known = {"space": (DEFAULT_SPACE, FULL_SPACE), "candidates": ()}.get(name, (value,))
    if value in known or is_of_the_cluster(value) or Path(value).is_file():
        return
    raise InvalidValueError(
        f"--{name}: {value!r} is not on this machine.",
        hint="Give a file of this machine, or an absolute path or a URI that the cluster has.",
    )


def is_of_the_cluster(value: str) -> bool:
    """Whether a file's name, which is not here, may mean something on the cluster."""
    return is_uri(value) or (Path(value).is_absolute() and not Path(value).exists())


def check_model(value: str) -> None:
    """Refuse the path of a model that does not go along, is not here, and means nothing on the cluster.

    Raises:
        InvalidValueError: it is relative, and nothing is there.
    """
    path = value.removeprefix("random:")
    if is_absent_path(value) and not path.startswith(("/", "~")):
        raise InvalidValueError(
            f"Model {value!r} is not on this machine.",
            hint="Give a hub id, a folder or file of this machine with --upload-model, or the absolute path that the "
            "model has on every node.",
        )


def check_sent_model(value: str) -> None:
    """Refuse what is here and is no model.

    Raises:
        ModelError: as locally.
    """
    parse_model_id(value)


def check_extras(text: str) -> None:
    """Refuse extras that kvray does not have.

    Raises:
        InvalidValueError: one of them.
    """
    known = metadata("kvray").get_all("Provides-Extra") or []
    for one in (part.strip() for part in text.split(",")):
        if one not in known:
            raise InvalidValueError.not_one_of("extra", one, known)
