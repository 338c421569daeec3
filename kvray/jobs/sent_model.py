"""What is said of models and files that came with a job: on the cluster they have paths of temporary copies, and a
person reads the paths that the user typed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePath

from kvray.jobs.doorman import JOB, SENT_MODELS
from kvray.record import RANDOM_PREFIX

_ADDED = "--address="
"""The doorman puts it into every command."""
_OPENING = "The model was sent with kvray submit --upload-model: "


def sent_model_note(model_id: str) -> str | None:
    """A sentence on where the model came from; `None` for one that was not sent with this job."""
    sent = _sent()
    if model_id not in sent:
        return None
    return f"{_OPENING}{sent[model_id]}. What ran on the cluster was a temporary copy."


def sent_model_name(model_id: str) -> str | None:
    """The name by which a resumed job knows the model again; `None` for one that was not sent with this job.

    Each job has its copy in another temporary folder, so the name is the last part of the path. Whether the copy holds
    the same weights is for the model's revision to tell.
    """
    if model_id not in _sent():
        return None
    prefix = RANDOM_PREFIX if model_id.startswith(RANDOM_PREFIX) else ""
    return f"{prefix}{PurePath(model_id.removeprefix(prefix)).name}, sent with the job"


def is_a_job() -> bool:
    """Whether this process runs a command that `kvray submit` has sent."""
    return bool(os.environ.get(JOB))


def is_sent(name: str) -> bool:
    """Whether a model or file came with this job."""
    return name in _sent()


def as_typed(name: str) -> str:
    """How the user named a model or file that was sent with this job; any other name as it is."""
    return _sent().get(name, name)


def typed_text(text: str) -> str:
    """A message with the user's own paths in place of those of the temporary copies."""
    for there, typed in _longest_first():
        prefix = RANDOM_PREFIX if there.startswith(RANDOM_PREFIX) else ""
        path, own = there.removeprefix(prefix), typed.removeprefix(prefix)
        text = text.replace(str(Path(path).absolute()), own).replace(path, own)
    return text


def typed_arguments(arguments: Iterable[str]) -> tuple[str, ...]:
    """The arguments of `kvray tune` in this job as the user typed them for `kvray submit tune`."""
    if not is_a_job():
        return tuple(arguments)
    return tuple(_as_typed(one) for one in arguments if not one.startswith(_ADDED))


def repeating_command(name: str = "tune", *, sends_model: bool) -> str:
    """What `typed_arguments` follow, or those of the command `name`."""
    if not is_a_job():
        return f"kvray {name}"
    return f"kvray submit {'--upload-model ' if sends_model else ''}{name}"


def _as_typed(argument: str) -> str:
    for there, typed in _longest_first():
        if argument == there or argument.endswith(f"={there}"):
            return f"{argument.removesuffix(there)}{typed}"
    return argument


def is_sent_model_note(note: str) -> bool:
    """Whether `sent_model_note` has written this one of a plan's notes."""
    return note.startswith(_OPENING)


def _longest_first() -> list[tuple[str, str]]:
    """A path may be the beginning of another one."""
    return sorted(_sent().items(), key=lambda pair: -len(pair[0]))


def _sent() -> dict[str, str]:
    """The models and files of this job's package: how they are called here, and how the user named them."""
    found: dict[str, str] = json.loads(os.environ.get(SENT_MODELS) or "{}")
    return found
