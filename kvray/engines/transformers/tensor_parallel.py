"""`TensorParallelModel`: one copy of a model on several GPUs, or in several processes on a CPU. The measuring process
is rank 0; the others do the same calls at the same time.

Time stamps and tokens are rank 0's. Memory is that of all ranks together.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import (
    OBSERVED_TOKENS,
    Compilation,
    ForcedText,
    ForcedToken,
    Generation,
    LoadedModel,
    ModelRequest,
    Observed,
    UnsupportedError,
)
from kvray.engines.transformers.loaded import TransformersModel
from kvray.engines.transformers.rank import RankTask
from kvray.engines.transformers.ranks import Ranks
from kvray.engines.transformers.rendezvous import is_in_a_group, joined, leave, meet
from kvray.errors import KvrayError
from kvray.workload import Cell


class TensorParallelModel(LoadedModel):
    """Raises what `TransformersModel` does, and `CrashedError` when a rank has died."""

    def __init__(
        self, request: ModelRequest, candidate: Candidate, device: DeviceType, cells: Sequence[Cell] = ()
    ) -> None:
        if is_in_a_group():
            raise UnsupportedError("this process is already in a group of torch.distributed")
        self._threads_before = torch.get_num_threads()
        self._folder = tempfile.mkdtemp(prefix="kvray-ranks-")  # of the file by which they find each other
        self._device = device
        self._model: TransformersModel | None = None
        ranks = candidate.parallelism
        own = RankTask(
            rank=0,
            ranks=ranks,
            store=Path(self._folder, "store"),
            request=request,
            candidate=candidate,
            device=device,
            cells=tuple(cells),
            threads=None if device is DeviceType.CUDA else max(1, self._threads_before // ranks),
        )
        self._ranks: Ranks | None = None
        try:
            self._ranks = Ranks([replace(own, rank=rank) for rank in range(1, ranks)])
            self._model = self._ranks.together("load", mine=lambda: loaded_rank(own))[0]
        except BaseException:
            self._end(politely=False)
            raise

    @override
    def prepare(self, cell: Cell) -> None:
        self._together("prepare", cell)

    @override
    def generate(self, output_tokens: int) -> Generation:
        generation: Generation = self._together("generate", output_tokens)[0]
        return generation

    @override
    def observe(self, output_tokens: int = OBSERVED_TOKENS) -> Observed:
        """Rank 0 alone is profiled: all run the same kernels on their parts."""
        seen: Observed = self._together("generate", output_tokens, mine=lambda: self._own.observe(output_tokens))[0]
        return seen

    @override
    def last_used(self) -> Observed:
        return self._own.last_used()

    @override
    def forced_text(self, forced: int) -> ForcedText:
        return self._own.forced_text(forced)

    @override
    def forced_log_probabilities(self, text: ForcedText) -> Iterator[ForcedToken]:
        """Whoever reads them may stop: the other ranks go on, so the rest is worked out all the same."""
        with self._in_step("forced", text):
            told = self._own.forced_log_probabilities(text)
            try:
                for one in told:  # noqa: UP028  (`yield from` would close what has to be worked out)
                    yield one
            finally:
                for _ in told:
                    pass

    @override
    def compilation(self) -> Compilation | None:
        return self._own.compilation()

    @override
    def kv_cache_bytes(self) -> int | None:
        return _sum(self._together("kv_cache_bytes"))

    @override
    def processes(self) -> Sequence[int]:
        return (os.getpid(), *(self._ranks.pids if self._ranks is not None else ()))

    @override
    def reset_peak_memory(self) -> None:
        self._together("reset_peak_memory")

    @override
    def peak_memory_mib(self) -> float | None:
        """On a CPU this process's alone, to which kvray adds that of the other ranks."""
        return (
            self._own.peak_memory_mib() if self._device is DeviceType.CPU else _sum(self._together("peak_memory_mib"))
        )

    @override
    def reserved_memory_mib(self) -> float | None:
        return _sum(self._together("reserved_memory_mib"))

    @override
    def count_tokens(self, text: str) -> int:
        return self._own.count_tokens(text)

    @override
    def complete(self, text: str, max_new_tokens: int) -> str:
        return str(self._together("complete", text, max_new_tokens)[0])

    @override
    def close(self) -> None:
        self._end(politely=True)

    @property
    def _own(self) -> TransformersModel:
        if self._model is None:
            raise RuntimeError("the model is closed")
        return self._model

    def _together(self, name: str, *arguments: Any, mine: Callable[[], Any] | None = None) -> tuple[Any, ...]:
        """What every rank gives for the same method, this one first; `mine` in its place here."""
        with self._in_step(name, *arguments) as answers:
            own = mine() if mine is not None else getattr(self._own, name)(*arguments)
        return (own, *answers)

    @contextlib.contextmanager
    def _in_step(self, name: str, *arguments: Any) -> Iterator[list[Any]]:
        if self._ranks is None:
            raise RuntimeError("the model is closed")
        with self._ranks.call(name, *arguments) as answers:
            if name in _COMPUTED:
                meet()
            yield answers

    def _end(self, *, politely: bool) -> None:
        model, self._model = self._model, None
        ranks, self._ranks = self._ranks, None
        if model is not None:
            model.close()
        if ranks is not None:
            politely = politely and ranks.in_step
            if politely:
                with contextlib.suppress(KvrayError):
                    ranks.together("leave", mine=lambda: leave(politely=True))
            ranks.close()
        leave(politely=False)
        torch.set_num_threads(self._threads_before)
        shutil.rmtree(self._folder, ignore_errors=True)


class RankModel:
    """What another rank holds: its part of the model, once `load` was called."""

    def __init__(self, task: RankTask) -> None:
        self._task = task
        self._model: TransformersModel | None = None

    def do(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Make the call that rank 0 makes. Returns what is small enough to be told."""
        if name == "load":
            self._model = loaded_rank(self._task)
            return None
        if name == "leave":
            self._model = None
            leave(politely=True)
            return None
        if name in _COMPUTED:
            meet()
        if name == "forced":
            for _ in self._own.forced_log_probabilities(*arguments):
                pass
            return None
        value = getattr(self._own, name)(*arguments)
        return value if isinstance(value, int | float) else None

    @property
    def _own(self) -> TransformersModel:
        if self._model is None:
            raise RuntimeError("load was not called")
        return self._model


_COMPUTED = ("generate", "forced", "complete")
"""Calls in which the ranks work together, so that all begin at once."""


def loaded_rank(task: RankTask) -> TransformersModel:
    """The rank's part of the model, in the group that its task describes."""
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    with joined(task.rank, ranks=task.ranks, store=task.store, device=task.device):
        return TransformersModel(task.request, task.candidate, task.device, task.cells)


def _sum(values: Sequence[Any]) -> Any:
    return None if None in values else sum(values)
