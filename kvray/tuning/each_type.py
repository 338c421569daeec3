"""What is done for each type of GPU of a cluster: where it cannot be done for one, the others go on without it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from kvray.errors import KvrayError

T = TypeVar("T")
R = TypeVar("R")
_logger = logging.getLogger("kvray.tuning.each_type")


def each_type(subjects: Sequence[T], do: Callable[[T], R]) -> list[R]:
    """What `do` says of each of `subjects`, of which each is of another type; those for which it fails are left out
    with a warning.

    Raises:
        KvrayError: the error of the first one, where it fails for all.
    """
    answers: list[R] = []
    errors: list[KvrayError] = []
    for subject in subjects:
        try:
            answers.append(do(subject))
        except KvrayError as error:
            errors.append(error)
    if not answers:
        raise errors[0]
    for one in errors:
        _logger.warning("One type of the cluster's GPUs is left out: %s", one.message)
    return answers
