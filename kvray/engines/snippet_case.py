"""Running a snippet once to see what it does: what an engine's runner is asked and what it answers, as JSON files.

`python -m RUNNER CASE.json`, where `RUNNER` is `EngineAdapter.snippet_runner`: its main program calls `serve`.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from kvray.engines.base import ModelRequest
from kvray.errors import sentence_of
from kvray.workload import Cell


@dataclass(frozen=True, kw_only=True)
class SnippetCase:
    """What is asked.

    Attributes:
        answer: where the answer goes.
        cell: what to generate: the trials' prompts of this cell, so many tokens after them.
        limit_s: seconds after which the runner ends itself, should nobody else do it.
    """

    snippet: Path
    answer: Path
    request: ModelRequest
    cell: Cell
    limit_s: int

    def write(self, path: Path) -> None:
        """To be read by `read_case`."""
        values = {**asdict(self), "snippet": str(self.snippet), "answer": str(self.answer)}
        path.write_text(json.dumps(values), encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class SnippetRun:
    """What the snippet did. `None`: not seen.

    Attributes:
        tokens: generated token ids of the first and the last sequence, one row where there is but one.
        cache_class, kernel_prefill, kernel_decode: as in `Observed`.
    """

    tokens: tuple[tuple[int, ...], ...]
    cache_class: str | None = None
    kernel_prefill: str | None = None
    kernel_decode: str | None = None


def read_case(path: Path) -> SnippetCase:
    """The inverse of `SnippetCase.write`."""
    values = json.loads(path.read_text(encoding="utf-8"))
    return SnippetCase(
        snippet=Path(values["snippet"]),
        answer=Path(values["answer"]),
        request=ModelRequest(**values["request"]),
        cell=Cell(*values["cell"]),
        limit_s=values["limit_s"],
    )


def read_answer(path: Path) -> SnippetRun | str | None:
    """What the snippet did, or the error in a line; `None` where there is no answer."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if "error" in values:
        return str(values["error"])
    return SnippetRun(**{**values, "tokens": tuple(map(tuple, values["tokens"]))})


def serve(run: Callable[[SnippetCase], SnippetRun]) -> None:
    """The main program of a runner. What goes wrong is answered in a line, and printed as a traceback."""
    case = read_case(Path(sys.argv[1]))
    signal.alarm(case.limit_s)
    try:
        answer = asdict(run(case))
    except Exception as error:  # noqa: BLE001  (whatever the snippet raises is the answer)
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {sentence_of(error)}"}
    case.answer.write_text(json.dumps(answer), encoding="utf-8")
