"""What a property holds against an input: only errors of kvray's own with one line and their exit code; no code of the
input run, nothing written elsewhere, no process or connection, no hang, no memory without bound."""

from __future__ import annotations

import ast
import contextlib
import faulthandler
import functools
import io
import os
import re
import resource
import signal
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TextIO

import hypothesis
from fed import TALLIES, Tally
from hostile_values import CANARY
from hypothesis import HealthCheck, given, settings

import kvray
from kvray.candidate import DeviceType, DType
from kvray.cli.app import run
from kvray.cli.encoding import show_all_signs
from kvray.errors import KvrayError
from kvray.forecast.hardware import Hardware

NOTES = "KVRAY_FUZZ_NOTES"
"""Names a folder where the tallies are noted before each input is fed, for whoever outlives this process."""
INPUT_TIMEOUT_S, STALLED_S, MEMORY_GROWTH_MIB = 15.0, 120.0, 700.0
"""The first is of the processor's time, which other programs do not use up."""
QUICK_EXAMPLES = 30
RATES = Hardware(
    device=DeviceType.CPU,
    copy_bytes_s=1e10,
    matmul_flops_s={DType.FLOAT32: 1e11, DType.BFLOAT16: 1e11},
    stream_bytes_s={DType.FLOAT32: 1e10, DType.BFLOAT16: 1e10},
    layer_s=1e-4,
    step_s=1e-3,
    resident_mib=300.0,
)
"""This machine counts as measured, so that no input measures it."""
CELL = ("--device", "cpu", "--context", "16", "--output-len", "4", "--dry-run")
"""Options of a preview that ends soon."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod")
_STARTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
)
_INSTALLED = (Path(kvray.__file__).parent, Path(hypothesis.__file__).parents[1])
_CODE = tuple(str(path.resolve()) for path in (*_INSTALLED, *map(Path, sysconfig.get_paths().values())))


def fuzzes(kind: str, **inputs: Any) -> Callable[[Callable[..., bool]], Callable[..., None]]:
    """Make a property of a function that feeds one input and tells whether kvray accepted it; count what it is fed."""

    def decorate(feed: Callable[..., bool]) -> Callable[..., None]:
        @functools.wraps(feed)
        def fed(*arguments: Any, **named: Any) -> None:
            tally = TALLIES.setdefault(kind, Tally())
            tally.inputs += 1
            _note(kind, tally)
            started = time.monotonic()
            try:
                tally.accepted += feed(*arguments, **named)
            finally:
                tally.seconds += time.monotonic() - started

        deep = settings.get_current_profile_name() == "deep"
        few = settings(max_examples=QUICK_EXAMPLES)
        bounded = settings(None if deep else few, deadline=None, suppress_health_check=list(HealthCheck))
        return bounded(given(**inputs)(fed))

    return decorate


def _note(kind: str, tally: Tally) -> None:
    if folder := os.environ.get(NOTES):
        Path(folder, kind).write_text(f"{tally.inputs} {tally.accepted} {tally.seconds:.1f}", encoding="utf-8")


class BrokenPromiseError(AssertionError):
    """An input that kvray did not meet as promised."""


class TimedOutError(BaseException):
    """An input took longer than `INPUT_TIMEOUT_S`. Not an `Exception`: nobody may take it for an error of theirs."""


class Place:
    """The folders that inputs are fed in, and a watch over what happens while they are. Only what lies in `cache` and
    `output` may change meanwhile."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.input, self.cache, self.output, self.cwd = (root / name for name in ("input", "cache", "output", "cwd"))
        for folder in (self.input, self.cache, self.output, self.cwd):
            folder.mkdir()
        self._stalled = (root / "stalled.txt").open("w")

    def cli(self, *arguments: object) -> tuple[int, str]:
        """Exit code and stdout of a command line that is watched.

        Raises:
            BrokenPromiseError: as `watched`, or it ends neither with a result nor with one line that names the problem.
        """
        with self.watched():
            code, out, err = run_line(*arguments)
        if "internal error" in err:
            raise BrokenPromiseError(run_line(*arguments, verbose=True)[2][-2000:])
        lines = [line for line in err.split("\n") if re.match("kvray: (?!warning: |measuring )", line)]
        if "Traceback (most" in err or code in (1, KvrayError.exit_code) or (code and len(lines) != 1):
            raise BrokenPromiseError(f"exit code {code} with {len(lines)} lines: {err.strip()[-300:]!r}")
        return code, out

    @contextlib.contextmanager
    def watched(self, *allowed: type[Exception]) -> Iterator[None]:
        """Watch what happens within.

        Raises:
            BrokenPromiseError: an error that is not `allowed`, an escape, a hang, or too much memory.
        """
        before, peak_mib = self._snapshot(), _peak_mib()
        _watch.begin((str(self.cache), str(self.output)), self._stalled)
        try:
            yield
        except allowed:
            raise
        except KeyboardInterrupt:
            raise
        except TimedOutError as error:
            raise BrokenPromiseError(f"a hang of more than {INPUT_TIMEOUT_S:.0f} s") from error
        except BaseException as error:  # a panic of native code is no `Exception`
            raise BrokenPromiseError(f"{type(error).__name__}: {str(error)[:300]}") from error
        finally:
            escapes = _watch.end()
            escapes += sorted({path for path, _ in before.items() ^ self._snapshot().items()})
        if escapes:
            raise BrokenPromiseError(f"escapes: {'; '.join(escapes)[:500]}")
        if (grown := _peak_mib() - peak_mib) > MEMORY_GROWTH_MIB:
            raise BrokenPromiseError(f"memory grew by {grown:,.0f} MiB")

    def _snapshot(self) -> dict[str, tuple[int, int]]:
        paths = [path for folder in (self.root, self.input, self.cwd) for path in folder.rglob("*")]
        kept = (str(self.cache), str(self.output))
        stats = {str(path): path.lstat() for path in paths if not str(path).startswith(kept)}
        return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


def names_canary(source: str) -> bool:
    """Whether Python `source` uses the canary as a name: an outside string has left its quotes."""
    return any(isinstance(node, ast.Name) and node.id == CANARY for node in ast.walk(ast.parse(source)))


def run_line(*arguments: object, verbose: bool = False) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line, run in this process."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    show_all_signs(streams)  # as `main` does with the streams of the process
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        code = run([str(argument) for argument in arguments], verbose=verbose)
    for stream in streams:
        stream.flush()
    out, err = (stream.buffer.getvalue().decode(errors="replace") for stream in streams)
    return code, out, err


class _Watch:
    """An audit hook that hears of every file, process, module and connection; it cannot be removed, only disarmed."""

    def __init__(self) -> None:
        self._allowed: tuple[str, ...] | None = None
        self._escapes: list[str] = []
        self._is_installed = False

    def begin(self, allowed: tuple[str, ...], stalled: TextIO) -> None:
        if not self._is_installed:
            sys.addaudithook(self._heard)
            self._is_installed = True
        self._escapes = []
        # What other tests have left running in this process is none of the input's doing.
        self._others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
        self._handler = signal.signal(signal.SIGPROF, _time_out)
        signal.setitimer(signal.ITIMER_PROF, INPUT_TIMEOUT_S)
        if NOTES in os.environ:  # native code hears no signal handler; somebody is there who counts that this ended
            faulthandler.dump_traceback_later(STALLED_S, exit=True, file=stalled)
        self._allowed = allowed

    def end(self) -> list[str]:
        self._allowed = None
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, self._handler)
        return self._escapes

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._allowed is None or threading.get_ident() in self._others:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = (flags or 0) & _WRITING or (isinstance(mode, str) and set(mode) & set("wax+"))
            if writes and not self._may_write(path):
                self._escapes.append(f"open {path!r}")
        elif event in _CHANGES:
            folders = [one for one in arguments if isinstance(one, int) and one > 2]
            relative = folders and event != "os.mkdir"  # whose number is a mode
            base = str(Path(f"/proc/self/fd/{folders[0]}").readlink() if relative else Path.cwd())
            paths = [one for one in arguments if isinstance(one, str | bytes)]
            self._escapes += [f"{event} {path!r}" for path in paths if not self._may_write(path, base)]
        elif event in _STARTS or (event == "socket.connect" and isinstance(arguments[1], tuple)):
            self._escapes.append(f"{event} {arguments!r}"[:200])
        elif event == "import" and arguments[1] and not str(arguments[1]).startswith(_CODE):
            self._escapes.append(f"import {arguments[1]}")
        elif event == "exec" and isinstance(arguments[0], CodeType):
            name = arguments[0].co_filename
            if Path(name).is_absolute() and not name.startswith(_CODE):
                self._escapes.append(f"exec {name}")

    def _may_write(self, path: Any, base: str | None = None) -> bool:
        if isinstance(path, int):
            return True
        full = os.path.normpath(os.path.join(base or os.getcwd(), os.fsdecode(path)))  # noqa: PTH109, PTH118
        return full == os.devnull or full.startswith(self._allowed or ())


_watch = _Watch()


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _time_out(signum: int, frame: FrameType | None) -> None:
    raise TimedOutError
