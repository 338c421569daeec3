"""`python -m kvray.engines.llama_cpp.sizes_program FILE.gguf`: a line of settings in, a line of sizes out, both JSON.

The file's header is loaded without its weights, once for each way to place them; contexts are made and freed.
"""

from __future__ import annotations

import json
import re
import select
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from kvray.engines.failures import OutOfMemoryError, UnsupportedError
from kvray.engines.llama_cpp.binding import engine_log, library
from kvray.engines.llama_cpp.context import context_params
from kvray.engines.llama_cpp.native_model import NativeModel
from kvray.engines.llama_cpp.said import Said
from kvray.engines.llama_cpp.settings import ContextSettings, SplitMode
from kvray.engines.llama_cpp.sizes import Sizes
from kvray.models.gguf_header import GgufHeader, check_gguf_file, tensor_bytes

IDLE_S = 2.0
"""Without a question, after which it ends: nothing else is to run while a sweep measures."""
_STAYING = re.compile(r"\(and (\d+) others\) cannot be used with preferred buffer type")
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"


class SizesProgram:
    """Answers for one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._header = check_gguf_file(path)
        self._models: dict[tuple[bool, int, SplitMode, int], NativeModel] = {}

    def sizes(self, settings: ContextSettings) -> Sizes | None:
        """What a context with `settings` takes; `None` where llama.cpp makes none."""
        try:
            model = self._model(settings)
        except (OutOfMemoryError, UnsupportedError):
            return None
        log, llama = engine_log(), library()
        begun = log.mark
        context = llama.llama_init_from_model(model.handle, context_params(llama, settings, None))
        if not context:
            return None
        llama.llama_free(context)
        said = Said.of(log.since(begun))
        copied, used = rearranged_bytes(self._header, model.said) if settings.repack else (0, 0)
        buffers = [one for one in said.buffers if one.use in ("compute", "output")]
        return Sizes(
            cache_mib=sum(part.k_mib + part.v_mib for part in said.parts),
            cache_parts=len(said.parts),
            gpu_mib=sum(one.mib for one in buffers if one.is_on_gpu),
            host_mib=sum(one.mib for one in buffers if not one.is_on_gpu),
            copied_bytes=copied,
            used_bytes=used,
        )

    def _model(self, settings: ContextSettings) -> NativeModel:
        place = (settings.repack, settings.n_gpu_layers, settings.split_mode, settings.n_cpu_moe)
        if place not in self._models:
            self._models[place] = NativeModel(self._path, settings, only_sizes=True)
        return self._models[place]


def rearranged_bytes(header: GgufHeader, said: Sequence[str]) -> tuple[int, int]:
    """Bytes of the matrices that are held a second time, rearranged for the CPU, and of those whose first copy is read
    as well, by what llama.cpp has `said` while it loaded the model.

    It says how many tensors stay as they are, not which: vectors and the table of embeddings do so always, and of the
    matrices each is taken for one as any other.
    """
    if not any(buffer.is_rearranged for buffer in Said.of(said).buffers):
        return 0, 0
    tensors = header.tensors
    is_tied = _HEAD not in tensors
    matrices = [name for name, one in tensors.items() if len(one.shape) > 1 and (name != _EMBEDDING or is_tied)]
    staying = sum(1 + int(found[1]) for line in said if (found := _STAYING.search(line)))
    others = len(tensors) - len(matrices) + is_tied  # a table that is embedding and head is loaded twice
    share = 1 - min(len(matrices), max(0, staying - others)) / max(1, len(matrices))
    copied = share * sum(tensor_bytes(tensors[name]) for name in matrices)
    used = tensor_bytes(tensors[_EMBEDDING]) if is_tied and _EMBEDDING in tensors else 0
    return round(copied), min(round(copied), used)


def _main(path: str) -> None:
    program = SizesProgram(Path(path))
    while select.select([sys.stdin], [], [], IDLE_S)[0] and (line := sys.stdin.readline()):
        values = json.loads(line)
        settings = ContextSettings(**{**values, "split_mode": SplitMode(values["split_mode"])})
        told = program.sizes(settings)
        sys.stdout.write(json.dumps(None if told is None else asdict(told)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main(*sys.argv[1:])
