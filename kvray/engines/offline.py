"""What keeps the libraries of every engine off the network: environment that they read when they are imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from kvray.environment import changed_environment

OFFLINE_ENVIRONMENT: Mapping[str, str] = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
_HUB_CONSTANTS = "huggingface_hub.constants"
_TRUE = {"1", "ON", "YES", "TRUE"}
"""What the hub's client takes for yes."""


def is_offline_environment() -> bool:
    """Whether the user's environment forbids the network already."""
    return any(os.environ.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


@contextmanager
def offline_environment(*, enabled: bool) -> Iterator[None]:
    """`OFFLINE_ENVIRONMENT` in this process and those it starts, if `enabled` or the user's environment asks for it.

    A client of the hub that was imported before has read its environment long ago, so it is told as well.
    """
    if not (enabled or is_offline_environment()):
        yield
        return
    constants = sys.modules.get(_HUB_CONSTANTS)
    was_offline = getattr(constants, "HF_HUB_OFFLINE", None)
    try:
        with changed_environment(OFFLINE_ENVIRONMENT):
            _tell(constants, True)
            yield
    finally:
        _tell(constants or sys.modules.get(_HUB_CONSTANTS), bool(was_offline) or is_offline_environment())


def _tell(constants: object | None, offline: bool) -> None:
    if constants is not None:
        setattr(constants, "HF_HUB_OFFLINE", offline)  # noqa: B010  (a module that is not imported here)
