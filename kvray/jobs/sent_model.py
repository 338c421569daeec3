"""What is said of a model that came with a job: its path on the cluster is a temporary copy of a path elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import PurePath

from kvray.jobs.doorman import SENT_MODELS
from kvray.record import RANDOM_PREFIX

_OPENING = "The model was sent with kvray submit --upload-model: "


def sent_model_note(model_id: str) -> str | None:
    """A sentence on where the model came from; `None` for one that was not sent with this job."""
    sent = _sent()
    if model_id not in sent:
        return None
    return f"{_OPENING}{model_id} is the cluster's temporary copy. Use your own path in its place: {sent[model_id]}"


def sent_model_name(model_id: str) -> str | None:
    """The name by which a resumed job knows the model again; `None` for one that was not sent with this job.

    Each job has its copy in another temporary folder, so the name is the last part of the path. Whether the copy holds
    the same weights is for the model's revision to tell.
    """
    if model_id not in _sent():
        return None
    prefix = RANDOM_PREFIX if model_id.startswith(RANDOM_PREFIX) else ""
    return f"{prefix}{PurePath(model_id.removeprefix(prefix)).name}, sent with the job"


def is_sent_model_note(note: str) -> bool:
    """Whether `sent_model_note` has written this one of a plan's notes."""
    return note.startswith(_OPENING)


def _sent() -> dict[str, str]:
    """The models of this job's package: how they are called here, and how the user named them."""
    found: dict[str, str] = json.loads(os.environ.get(SENT_MODELS) or "{}")
    return found
