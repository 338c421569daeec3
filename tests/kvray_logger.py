"""A command line that runs in the tests' own process gives kvray's logger a handler, and keeps it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def logger_as_before() -> Iterator[None]:
    """Afterwards kvray's logger is as it was: handlers, level, and whether others hear of it."""
    logger = logging.getLogger("kvray")
    handlers, propagate, level = list(logger.handlers), logger.propagate, logger.level
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
