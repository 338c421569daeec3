"""The one place that imports llama.cpp's Python binding: its C API by ctypes, never the class `Llama`.

What the library says is caught (`engine_log`); its errors also go to standard error, where a trial's log keeps them.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import re
import sys
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from kvray.errors import EngineError
from kvray.extras import Extra
from kvray.probes.cpu import cpu_flags

_MODULE = "llama_cpp.llama_cpp"
_DEBUG, _ERROR, _CONTINUED = 1, 4, 5
"""Levels of `enum ggml_log_level`."""
_CPU_FLAGS = {
    "AVX": "avx",
    "AVX2": "avx2",
    "AVX_VNNI": "avx_vnni",
    "F16C": "f16c",
    "FMA": "fma",
    "AVX512": "avx512f",
    "AVX512_VBMI": "avx512_vbmi",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8",
    "DOTPROD": "asimddp",
    "MATMUL_INT8": "i8mm",
    "SVE": "sve",
}
"""Instructions that make multiplications faster: llama.cpp's name and the flag of /proc/cpuinfo."""


class EngineLog:
    """What the library has said, line by line, without what is for its developers. Keeps the last `most_lines`."""

    def __init__(self, most_lines: int = 20_000) -> None:
        self._lines: deque[tuple[int, str]] = deque(maxlen=most_lines)
        self._unfinished = ""
        self._level = 0
        self.mark = 0
        """Lines so far; what `since` takes to tell only what comes from now on."""

    def add(self, level: int, text: str) -> None:
        """Note a piece of text, which may be a part of a line."""
        self._level = self._level if level == _CONTINUED else level
        *whole, self._unfinished = (self._unfinished + text).split("\n")
        for line in filter(str.strip, whole):
            if self._level == _DEBUG:
                continue
            self._lines.append((self._level, line))
            self.mark += 1
            if self._level == _ERROR:
                sys.stderr.write(f"{line}\n")
                sys.stderr.flush()

    def since(self, mark: int) -> tuple[str, ...]:
        """The lines after `mark`."""
        return tuple(line for _, line in self._after(mark))

    def errors_since(self, mark: int) -> tuple[str, ...]:
        """What went wrong after `mark`, without the names of the functions that say so; each once."""
        said = (re.sub(r"^\w+: ", "", line) for level, line in self._after(mark) if level == _ERROR)
        return tuple(dict.fromkeys(said))

    def _after(self, mark: int) -> list[tuple[int, str]]:
        return list(self._lines)[max(0, len(self._lines) - (self.mark - mark)) :]


@dataclass(frozen=True, kw_only=True)
class Build:
    """How the library was built.

    Attributes:
        version: of llama.cpp, with the commit, as it names them itself.
        system_info: the features of its backends, in its own words.
        left_out: instructions that this machine's CPU has and the build does not use.
    """

    version: str
    system_info: str
    left_out: tuple[str, ...]

    @property
    def note(self) -> str | None:
        """A sentence on what the build leaves out; `None`: nothing."""
        if not self.left_out:
            return None
        return (
            f"llama.cpp is a portable build: it does not use {', '.join(self.left_out)}, which this CPU has. "
            "Compiled on this machine (pip install --no-binary llama-cpp-python llama-cpp-python) it would."
        )


@functools.cache
def library() -> Any:
    """Functions and structures of llama.h, with the library's log caught from the beginning.

    Raises:
        EngineError: the binding is absent or its library cannot be loaded.
    """
    try:
        module = importlib.import_module(_MODULE)
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(
            f"The engine llama_cpp needs llama-cpp-python, which cannot be loaded: {error}",
            hint=f"Install it: {Extra.LLAMA_CPP.install_command}",
        ) from error
    module.llama_log_set(_log_callback(module), ctypes.c_void_p(0))
    module.llama_backend_init()
    return module


@functools.cache
def engine_log() -> EngineLog:
    """What the library has said in this process."""
    return EngineLog()


@functools.cache
def describe_build() -> Build:
    """How the installed library was built, and what that leaves out on this machine. Loads the library.

    Raises:
        EngineError
    """
    system_info = library().llama_print_system_info().decode()
    return Build(
        version=", commit ".join(filter(None, (_text("llama_version"), _text("ggml_commit")))) or "unknown",
        system_info=system_info,
        left_out=left_out_instructions(system_info, cpu_flags()),
    )


def left_out_instructions(system_info: str, flags: Collection[str]) -> tuple[str, ...]:
    """Instructions among `flags` (names of /proc/cpuinfo) that a build with `system_info` does not use."""
    used = set(re.findall(r"(\w+) = [1-9]", system_info))
    return tuple(name for name, flag in _CPU_FLAGS.items() if flag in flags and name not in used)


def native_function(name: str, result: Any, arguments: Sequence[Any]) -> Any | None:
    """A function of llama.cpp's libraries that the binding does not declare; `None`: this build has none."""
    function = getattr(library()._lib, name, None)
    if function is not None:
        function.restype, function.argtypes = result, list(arguments)
    return function


def _text(function: str) -> str | None:
    """What a function without arguments says."""
    found = native_function(function, ctypes.c_char_p, ())
    return None if found is None else found().decode()


@functools.cache
def _log_callback(module: Any) -> Any:
    """Kept for the life of the process, because the library calls it at any time."""
    log = engine_log()
    return module.llama_log_callback(lambda level, text, _: log.add(level, text.decode(errors="replace")))
