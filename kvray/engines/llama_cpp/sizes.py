"""`NativeSizes`: llama.cpp's own arithmetic of what a context takes, without a byte of weights being read.

llama.cpp can load a file's header alone and simulate its allocations (`no_alloc`). That happens in a child process
(`sizes_program`), because a library that meets what it does not expect ends its process.
"""

from __future__ import annotations

import json
import subprocess
import threading
import weakref
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from kvray.engines.llama_cpp.settings import ContextSettings
from kvray.search_paths import child_environment, python_command

ANSWER_S = 20.0
"""In which the child must have answered, its start included."""
_WITHOUT_EFFECT = ("threads", "threads_batch", "poll")
"""Settings that change no size."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a context and its model take, by llama.cpp.

    Attributes:
        cache_mib: keys and values of all layers, wherever they lie; rounded to hundredths for each of `cache_parts`.
        gpu_mib, host_mib: buffers in which graphs are computed, and logits, in a GPU's memory and in the host's.
        copied_bytes: of weights that are held a second time, rearranged for the CPU.
        used_bytes: of those weights whose first copy is read too: a table that is embedding and head.
    """

    cache_mib: float
    cache_parts: int
    gpu_mib: float
    host_mib: float
    copied_bytes: int
    used_bytes: int


class NativeSizes:
    """The sizes of one GGUF file, asked of a child that ends when nothing is asked for a while.

    Args:
        path: of the file, which must be on this machine.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Sizes | None] = {}
        self._child: subprocess.Popen[str] | None = None
        self._is_lost = False

    @classmethod
    def of(cls, model_id: str) -> NativeSizes | None:
        """For the file `model_id`; `None` where it or llama.cpp is not on this machine."""
        path = Path(model_id)
        return cls(path) if find_spec("llama_cpp") is not None and path.is_file() else None

    def sizes(self, settings: ContextSettings) -> Sizes | None:
        """What a context with `settings` takes; `None` where llama.cpp does not say."""
        values = {name: value for name, value in asdict(settings).items() if name not in _WITHOUT_EFFECT}
        key = json.dumps(values)
        if key not in self._known:
            self._known[key] = self._asked(json.dumps(asdict(settings)))
        return self._known[key]

    def _asked(self, question: str) -> Sizes | None:
        """The child's answer. One that has ended by itself, because nothing was asked for a while, is started anew."""
        while not self._is_lost:
            child = self._running()
            if answer := _answer(child, question):
                told = json.loads(answer)
                return None if told is None else Sizes(**told)
            self._is_lost = child.wait() != 0
        return None

    def _running(self) -> subprocess.Popen[str]:
        if self._child is None or self._child.poll() is not None:
            self._child = subprocess.Popen(
                python_command("-m", "kvray.engines.llama_cpp.sizes_program", str(self._path)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**child_environment(), "GGML_NO_BACKTRACE": "1"},
            )
            weakref.finalize(self, _end, self._child)
        return self._child


def _answer(child: subprocess.Popen[str], question: str) -> str:
    """The line that it answers; empty where it ends without an answer. One that hangs is ended."""
    assert child.stdin is not None
    assert child.stdout is not None
    watch = threading.Timer(ANSWER_S, child.kill)
    watch.start()
    try:
        child.stdin.write(f"{question}\n")
        child.stdin.flush()
        return child.stdout.readline()
    except OSError:
        return ""
    finally:
        watch.cancel()


def _end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()
