"""What `fuzz.py` holds against an input: a traceback, an escape, a hang, memory. Installed in the worker's process."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import resource
import signal
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from fuzz_mutator import CANARY

from kvray.cli.app import run
from kvray.cli.encoding import show_all_signs
from kvray.errors import KvrayError

INPUT_TIMEOUT_S = 15.0
MEMORY_GROWTH_MIB = 700.0
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
_CODE = tuple(
    {str(Path(path).resolve()) for path in (*sysconfig.get_paths().values(), str(Path(__file__).parents[1] / "kvray"))}
)


class TimedOutError(BaseException):
    """An input took longer than `INPUT_TIMEOUT_S`. Not an `Exception`: nobody may take it for an error of theirs."""


class BrokenPromiseError(Exception):
    """An input that kvray did not meet as promised: `what` is a key of the figures, `where` tells findings apart."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what}: {where}")
        self.what, self.where = what, where


class Place:
    """The folders of one worker. Only `cache` and `output` may change while an input is fed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.input, self.cache, self.output, self.cwd = (root / name for name in ("input", "cache", "output", "cwd"))
        for folder in (self.input, self.cache, self.output, self.cwd):
            folder.mkdir(parents=True, exist_ok=True)

    def snapshot(self) -> dict[str, tuple[int, int]]:
        """Size and time of everything that must not change."""
        fixed = [path for path in self.root.iterdir() if path not in (self.cache, self.output)]
        paths = [*fixed, *(below for path in fixed if path.is_dir() for below in path.rglob("*"))]
        return {str(path): (stat.st_size, stat.st_mtime_ns) for path in paths if (stat := path.lstat())}


class Watch:
    """An audit hook that hears of every file, process, module and connection; it cannot be removed, only disarmed."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._allowed = tuple(str(path) for path in (place.cache, place.output))
        self._armed = False
        self.escapes: list[str] = []
        sys.addaudithook(self._heard)
        signal.signal(signal.SIGALRM, _time_out)
        self._peak_mib = _peak_mib()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Watch what happens within.

        Raises:
            BrokenPromiseError: an escape, or too much memory.
            TimedOutError: a hang.
        """
        before = self._place.snapshot()
        self.escapes.clear()
        signal.setitimer(signal.ITIMER_REAL, INPUT_TIMEOUT_S)
        self._armed = True
        try:
            yield
        finally:
            self._armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        changed = {path for path, _ in before.items() ^ self._place.snapshot().items()}
        if self.escapes or changed:
            raise BrokenPromiseError("escapes", "; ".join([*self.escapes, *sorted(changed)])[:300])
        grown, self._peak_mib = _peak_mib() - self._peak_mib, _peak_mib()
        if grown > MEMORY_GROWTH_MIB:
            raise BrokenPromiseError("tracebacks", f"memory grew by {grown:,.0f} MiB")

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._armed:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = (flags or 0) & _WRITING or (isinstance(mode, str) and set(mode) & set("wax+"))
            if writes and not self._may_write(path):
                self.escapes.append(f"open {path!r}")
        elif event in _CHANGES:
            folders = [one for one in arguments if isinstance(one, int) and one > 2]
            relative = folders and event != "os.mkdir"  # whose number is a mode
            base = str(Path(f"/proc/self/fd/{folders[0]}").readlink() if relative else Path.cwd())
            self.escapes += [
                f"{event} {one!r}"
                for one in arguments
                if isinstance(one, str | bytes) and not self._may_write(one, base)
            ]
        elif event in _STARTS or (event == "socket.connect" and isinstance(arguments[1], tuple)):
            self.escapes.append(f"{event} {arguments!r}"[:200])
        elif event == "import" and arguments[1] and not str(arguments[1]).startswith(_CODE):
            self.escapes.append(f"import {arguments[1]}")
        elif event == "exec" and isinstance(arguments[0], CodeType) and _is_foreign(arguments[0].co_filename):
            self.escapes.append(f"exec {arguments[0].co_filename}")

    def _may_write(self, path: object, base: str | None = None) -> bool:
        if isinstance(path, int):
            return True
        full = os.path.normpath(os.path.join(base or os.getcwd(), os.fsdecode(os.fspath(path))))  # type: ignore[call-overload]  # noqa: PTH109, PTH118
        return full == os.devnull or full.startswith(self._allowed)


def call_cli(*arguments: str) -> tuple[int, str]:
    """Exit code and stdout of a command line in this process.

    Raises:
        BrokenPromiseError: it did not end as promised: with a result, or with one line that names the problem.
    """
    code, out, err = _run(arguments, verbose=False)
    if "internal error" in err:
        _, _, told = _run(arguments, verbose=True)
        places = re.findall(r'File ".*?[/]kvray[/](.*?)", line (\d+)', told)
        raise BrokenPromiseError("tracebacks", f"{':'.join(places[-1]) if places else '?'} {err.strip()[-200:]}")
    _check_ending(code, err)
    return code, out


def _run(arguments: Sequence[str], *, verbose: bool) -> tuple[int, str, str]:
    kept = io.BytesIO(), io.BytesIO()
    out = io.TextIOWrapper(kept[0], encoding="utf-8", errors="strict")
    err = io.TextIOWrapper(kept[1], encoding="utf-8", errors="backslashreplace")
    show_all_signs((out, err))  # as `main` does with the streams of the process
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(list(arguments), verbose=verbose)
    out.flush()
    err.flush()
    out_text, err_text = (one.getvalue().decode("utf-8", errors="replace") for one in kept)
    return code, out_text, err_text


def _check_ending(code: int, err: str) -> None:
    if "Traceback (most" in err:
        raise BrokenPromiseError("tracebacks", err.strip()[-300:])
    lines = [line for line in err.split("\n") if line.startswith("kvray: ") and "kvray: warning: " not in line]
    if code and len(lines) != 1:
        raise BrokenPromiseError("tracebacks", f"exit code {code} with {len(lines)} lines: {err.strip()[-200:]!r}")
    if code == 1:
        raise BrokenPromiseError("tracebacks", f"exit code 1: {lines[0][:200]}")


def refuses(error: BaseException) -> bool:
    """Whether `error` is one of kvray's own."""
    return isinstance(error, KvrayError)


def described(error: BaseException) -> str:
    """Type, first line, and the innermost place in kvray: what findings are told apart by."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if f"{os.sep}kvray{os.sep}" in frame.filename] or frames[-1:]
    where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__} at {where}: {lines[0][:160]}"


def limit_memory(mib: int) -> None:
    """Let allocations fail beyond `mib` of private memory, before the machine does."""
    resource.setrlimit(resource.RLIMIT_DATA, (mib << 20, mib << 20))


def names_canary(source: str) -> bool:
    """Whether Python `source` uses the canary as a name: an outside string has left its quotes."""
    return any(isinstance(node, ast.Name) and node.id == CANARY for node in ast.walk(ast.parse(source)))


def _is_foreign(filename: str) -> bool:
    return Path(filename).is_absolute() and not filename.startswith(_CODE)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _time_out(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001  (the signature of a handler)
    raise TimedOutError
