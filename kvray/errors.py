"""Every error a user can meet: what failed, the value, what is allowed, the next step, and an exit code of its own.

Raised anywhere, shown as one line by `kvray.cli`. A trial that fails is not an error: it is a record with a status.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails


class KvrayError(Exception):
    """Base of all errors that kvray raises on purpose.

    Args:
        message: what failed, naming the offending value.
        hint: the next step, as an imperative sentence; shown after the message.
    """

    exit_code = 70
    """`EX_SOFTWARE` of sysexits.h: an error that nobody foresaw. 1 belongs to a check that failed."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class InvalidValueError(KvrayError):
    """An option, field or argument has a value that is not allowed."""

    exit_code = 2

    @classmethod
    def not_one_of(cls, what: str, value: object, allowed: Iterable[str]) -> InvalidValueError:
        """The error for a `value` of `what` that is not among `allowed`."""
        names = list(allowed)
        return cls(f"Unknown {what} {str(value)!r}.", hint=f"{did_you_mean(value, names)}Allowed: {', '.join(names)}.")


class ProfileError(KvrayError):
    """A workload profile is unknown, malformed, or none of its context lengths fits the model."""

    exit_code = 3


class ModelError(KvrayError):
    """A model cannot be found, read or downloaded, or is gated."""

    exit_code = 4


class EngineError(KvrayError):
    """An engine is unknown, or what it needs is not installed."""

    exit_code = 5


class PlanError(KvrayError):
    """A plan is missing, malformed, or of a version that this kvray cannot read."""

    exit_code = 6


class OutputError(KvrayError):
    """A folder or file cannot be written."""

    exit_code = 7


class NoCandidatesError(KvrayError):
    """Rules and options leave nothing to measure."""

    exit_code = 8


class AllTrialsFailedError(KvrayError):
    """Every trial ended without a complete measurement."""

    exit_code = 9


class ResultsError(KvrayError):
    """A results folder is missing, holds no records, or holds records that do not fit the request."""

    exit_code = 10


class SweepError(KvrayError):
    """Ray cannot be started, reached, or lacks the resources that the sweep asks for."""

    exit_code = 11


class LimitsMissedError(KvrayError):
    """Candidates were measured, and none of them keeps the profile's limits."""

    exit_code = 12


class BatchFailedError(KvrayError):
    """Some sweeps of a batch have no winner; the others are measured."""

    exit_code = 13


class RegressionError(KvrayError):
    """A comparison came to the verdict FAIL."""

    exit_code = 1


class InconclusiveError(KvrayError):
    """A comparison came to the verdict INCONCLUSIVE: neither PASS nor FAIL could be shown."""

    exit_code = 14


class SweepInterruptedError(KvrayError):
    """The user stopped the sweep; what had been recorded is kept."""

    exit_code = 130


def did_you_mean(value: object, allowed: Iterable[str]) -> str:
    """`Did you mean 'float16'? ` for a typo, or another word for one of `allowed`; empty where none of them is near."""
    import difflib  # only needed for a line that is wrong

    given, names = str(value)[:_LONGEST_TYPO].strip().lower(), [str(name) for name in allowed]
    known = _OTHER_WORDS.get(given)
    near = [known] if known in names else difflib.get_close_matches(given, names, n=1)
    return f"Did you mean {near[0]!r}? " if near else ""


_LONGEST_TYPO = 60
_OTHER_WORDS = {
    "gpu": "cuda",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
    "bf16": "bfloat16",
    "flash": "sdpa_flash",
    "flash_attention": "flash_attention_2",
    "sliding": "sliding_window",
    "none": "off",
    "speed": "throughput",
}
"""What others call a value of an option."""


def describe_problems(error: ValidationError) -> str:
    """All problems that pydantic found, on one line: `field: problem (got value)`."""
    problems = error.errors(include_url=False)
    # A bad item of a list makes the whole list bad too; only the item tells something.
    above = {problem["loc"][:depth] for problem in problems for depth in range(len(problem["loc"]))}
    roots = [problem for problem in problems if problem["loc"] not in above] or problems
    told = "; ".join(_describe_problem(problem) for problem in roots[:_MOST_PROBLEMS])
    return told if len(roots) <= _MOST_PROBLEMS else f"{told}; and {len(roots) - _MOST_PROBLEMS:,} more"


_MOST_PROBLEMS = 20


def _describe_problem(problem: ErrorDetails) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{place}: there is no such key"
    got = "" if problem["type"] in ("missing", "value_error") else f" (got {_short(problem['input'])})"
    return f"{place}{': ' if place else ''}{problem['msg'].removeprefix('Value error, ')}{got}"


def _short(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or a value as deep
        return f"a {type(value).__name__} that is too large to show"
    return text if len(text) <= 60 else text[:57] + "..."


def sentence_of(error: BaseException) -> str:
    """What an error says, on one line: its first line, with the next ones where it only announces them, and no more
    than a few sentences. The advice and reports of libraries that follow are left to logs. kvray's own errors are told
    whole."""
    if isinstance(error, KvrayError):
        return " ".join(str(error).split())
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    text, *rest = lines
    while text.endswith(":") and rest:
        text = f"{text} {rest.pop(0)}"
    return _first_sentences(" ".join(text.split()))


_MOST_TOLD = 240
"""Characters of a library's error."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`\"'(])")


def _first_sentences(text: str) -> str:
    """As many whole sentences as there is room for, or else the beginning of the first."""
    told, *others = _SENTENCE_END.split(text)
    for sentence in others:
        if len(told) + 1 + len(sentence) > _MOST_TOLD:
            break
        told = f"{told} {sentence}"
    return told if len(told) <= _MOST_TOLD else f"{told[: _MOST_TOLD - 2].rsplit(' ', 1)[0]} …"
