"""Which model a user asked for. Every function that looks for a model's files takes it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """Which model a user asked for, and what may be done to get it.

    Attributes:
        trust_remote_code: whether Python code that the model brings may run.
        allow_pickle: whether weights may come from pickle files, where there are no others.
        offline: whether the network is forbidden: only what is on this machine counts.
        revision: the version to take where the model's home has several, as `ModelInfo.revision` tells it; `None`: the
            newest.
    """

    model_id: str
    trust_remote_code: bool = False
    allow_pickle: bool = False
    offline: bool = False
    revision: str | None = None
