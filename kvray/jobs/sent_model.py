"""What is said of a model that came with a job: its path on the cluster is a temporary copy of a path elsewhere."""

from __future__ import annotations

import json
import os

from kvray.jobs.doorman import SENT_MODELS

_OPENING = "The model was sent with kvray submit --upload-model: "


def sent_model_note(model_id: str) -> str | None:
    """A sentence on where the model came from; `None` for one that was not sent with this job."""
    sent = json.loads(os.environ.get(SENT_MODELS) or "{}")
    if model_id not in sent:
        return None
    return f"{_OPENING}{model_id} is the cluster's temporary copy. Use your own path in its place: {sent[model_id]}"


def is_sent_model_note(note: str) -> bool:
    """Whether `sent_model_note` has written this one of a plan's notes."""
    return note.startswith(_OPENING)
