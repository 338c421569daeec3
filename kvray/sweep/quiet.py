"""Ray kept from printing, and its processes from importing what lies in the working folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from typing_extensions import override

from kvray.environment import changed_environment
from kvray.search_paths import safe_environment
from kvray.standard_error import c_libraries_write_to

_QUIET: Mapping[str, str] = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # How many CPUs the cluster has is for Tune's own display only.
    "TUNE_STATE_REFRESH_PERIOD": "1000000",
    # Ctrl-C must reach us as KeyboardInterrupt; Tune's own handler waits for the running step.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Tune's experiment state is of no use here: a sweep resumes from its records.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def quiet_ray(log: Path) -> Iterator[None]:
    """Environment and loggers under which Ray prints nothing here; what it has to say goes to the file `log`."""
    handler = _RayLog(log, delay=True, encoding="utf-8")
    logger = logging.getLogger("ray")
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        # Ray itself switches tokens on for the cluster at hand, and leaves it so.
        for_this_ray = {"RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE")}
        with changed_environment({**_QUIET, **for_this_ray, **safe_environment()}), c_libraries_write_to(log):
            yield
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.propagate = propagated


def mute_handlers_of_ray() -> None:
    """Keep Ray's own handlers from writing to stderr: an error that Ray meets is raised as well, and told once."""
    for handler in logging.getLogger("ray").handlers:
        # Others, such as those of a program that collects logs, are not Ray's.
        if type(handler).__module__.startswith("ray."):
            handler.setLevel(logging.CRITICAL)


class _RayLog(logging.FileHandler):
    """Loses what a full disk has no room for."""

    @override
    def handleError(self, record: logging.LogRecord) -> None:
        """What cannot be written is lost without a word."""

    @override
    def close(self) -> None:
        with suppress(OSError):
            super().close()
