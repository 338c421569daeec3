"""`EngineWords`: what vLLM logs, in whichever of its processes, kept in a file of its own and read for causes."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from kvray.engines.base import CrashedError, OutOfMemoryError, UnsupportedError
from kvray.errors import KvrayError, sentence_of

_RAISED = re.compile(r"(?:^|\s)(?P<kind>[\w.]*(?:Error|Exception)): (?P<text>\S.*)$")
_NOT_THE_CAUSE = ("root cause", "See stack trace", "initialization failed due to")
_DIED = "died unexpectedly"
"""What a process says of one below it that was killed; what it raises then is no cause."""
_NO_MEMORY = (
    "out of memory",
    "OutOfMemory",
    "can't allocate memory",
    "Cannot allocate memory",
    "bad_alloc",
    "No available memory for the cache blocks",
    "is less than requested memory",
    "is larger than the available KV cache memory",
)
_STARTING_FAILED = "ngine core initialization failed"
_LONGEST_SOCKET = 107
"""Bytes of a Unix socket's path (unix(7)); vLLM's names take 37 of them."""


class EngineWords:
    """The log of one engine. Made before the engine, because its processes read from the environment where to log."""

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="vllm-"))
        self._file = folder / "engine.log"
        self._file.touch()
        config = folder / "logging.json"
        config.write_text(json.dumps(_logging(self._file)), encoding="utf-8")
        os.environ["VLLM_LOGGING_CONFIG_PATH"] = str(config)
        if len(str(folder)) + 38 > _LONGEST_SOCKET:
            os.environ.setdefault("VLLM_RPC_BASE_PATH", "/tmp")
        self._handler = logging.FileHandler(self._file)
        logging.getLogger("vllm").addHandler(self._handler)

    def lines(self) -> list[str]:
        """All that was logged so far."""
        return self._file.read_text(encoding="utf-8", errors="replace").splitlines()

    def cause_of(self, error: Exception) -> KvrayError:
        """What the contract says of `error`, which the engine raised when it was started, with the words of the
        process in which it began."""
        if isinstance(error, KvrayError):
            return error
        text = _sentence(error)
        if _STARTING_FAILED in str(error) and (found := self._first_raised()) is not None:
            text = found
        elif _STARTING_FAILED in str(error):
            return CrashedError(f"vLLM: {text}")
        return error_of(text)

    def death(self, otherwise: str) -> KvrayError:
        """What the contract says of an engine that has died while it was at work, with the last words of the process in
        which that began."""
        text = self._first_raised() or otherwise
        return OutOfMemoryError(f"vLLM: {text}") if _is_out_of_memory(text) else CrashedError(f"vLLM: {text}")

    def close(self) -> None:
        """Stop logging from this process."""
        logging.getLogger("vllm").removeHandler(self._handler)
        self._handler.close()

    def _first_raised(self) -> str | None:
        for line in self.lines():
            if _DIED in line:
                return line.partition(": ")[2]
            found = _RAISED.search(line)
            if found is not None and not any(word in line for word in _NOT_THE_CAUSE):
                return f"{found['kind'].rpartition('.')[2]}: {found['text']}"
        return None


def _sentence(error: Exception) -> str:
    """What `error` says; of a check by pydantic, which vLLM's configuration goes through, what was found."""
    found = getattr(error, "errors", None)
    if not callable(found):
        return sentence_of(error)
    return "; ".join(sentence_of(ValueError(str(one["msg"]).removeprefix("Value error, "))) for one in found())


def error_of(text: str) -> KvrayError:
    """The contract's error for what vLLM says: memory ran out, or it refuses what is asked for."""
    kind = OutOfMemoryError if _is_out_of_memory(text) else UnsupportedError
    return kind(f"vLLM: {text}")


def _is_out_of_memory(text: str) -> bool:
    return any(word in text for word in _NO_MEMORY)


def _logging(file: Path) -> dict[str, Any]:
    """Into `file`, where messages are read without a prefix, and to standard output, where a trial's log is."""
    handlers = {
        "file": {"class": "logging.FileHandler", "filename": str(file), "formatter": "plain"},
        "stream": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "plain"},
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(levelname)s %(name)s: %(message)s"}},
        "handlers": handlers,
        "loggers": {"vllm": {"handlers": list(handlers), "level": "INFO", "propagate": False}},
    }
