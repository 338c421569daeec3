"""`plain_observation`: one row of a watch's history, for tests that care about a few of its figures."""

from __future__ import annotations

import datetime as dt
from typing import Any

from kvray.store.history import Observation, ObservationRole

WATCH_START = dt.datetime(2026, 3, 2, tzinfo=dt.UTC)


def plain_observation(**changes: Any) -> Observation:
    """Nothing was measured in it but what `changes` say."""
    given: dict[str, Any] = {
        "observation_id": "0",
        "watch_id": "w1",
        "observed_at": WATCH_START,
        "role": ObservationRole.WINNER,
        "candidate_id": "dynamic-1a2b",
        "model_id": "tiny",
        "profile": "ci-micro",
        "engine": "fake",
        "device_name": "a CPU",
        "hardware": "12345678",
        "host": "here",
        "anchor": "NumPy 2",
    }
    return Observation(**{**given, **changes})
