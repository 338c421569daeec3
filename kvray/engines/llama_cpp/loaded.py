"""`LlamaCppModel`: one candidate in one process, measured by llama.cpp's C API. Imports no torch.

Measured contexts have no callback. Proof and quality are taken from another context with the same settings, so that
what they need of memory is not in the measured one's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import (
    OBSERVED_TOKENS,
    ForcedText,
    ForcedToken,
    Generation,
    LoadedModel,
    ModelRequest,
    Observed,
    OutOfMemoryError,
    UnsupportedError,
)
from kvray.engines.llama_cpp import proof
from kvray.engines.llama_cpp.asked import check_candidate
from kvray.engines.llama_cpp.binding import describe_build
from kvray.engines.llama_cpp.context import NativeContext
from kvray.engines.llama_cpp.forced import check_text, force
from kvray.engines.llama_cpp.graph import GraphRecorder, Step
from kvray.engines.llama_cpp.greedy import Prompt, choices, generate
from kvray.engines.llama_cpp.model_file import gguf_path
from kvray.engines.llama_cpp.native_model import NativeModel
from kvray.engines.llama_cpp.settings import ContextSettings, context_settings
from kvray.engines.llama_cpp.texts import ModelTexts
from kvray.probes.cpu import PeakRss, available_memory_mib, release_heap
from kvray.workload import Cell, WorkloadProfile

_SPARE = 1.5
"""Memory that must be free for a second context, as a multiple of what the first one has."""


def load_model(
    request: ModelRequest, candidate: Candidate, device: DeviceType, profile: WorkloadProfile
) -> LoadedModel:
    """Load the GGUF file that `request` names, for `candidate`.

    Raises:
        UnsupportedError, OutOfMemoryError, ModelError
    """
    check_candidate(candidate)
    return LlamaCppModel(gguf_path(request), candidate, device, profile.cells(candidate.batch_size, rung=0)[0])


class LlamaCppModel(LoadedModel):
    """Raises what the contract says, with the engine's own words inside.

    Args:
        cell: any that will be measured: what the weights are loaded with does not depend on it.
    """

    def __init__(self, path: Path, candidate: Candidate, device: DeviceType, cell: Cell) -> None:
        self._candidate, self._device = candidate, device
        self._model = NativeModel(path, self._settings_for(cell))
        self._texts = ModelTexts(self._model)
        self._ends, self._suppressed = self._model.end_tokens(), self._model.suppressed_tokens()
        self._never_chosen = np.concatenate((self._ends, self._suppressed))
        heads = self._model.sizes_of_heads()
        self._heads = None if heads is None else proof.Heads(keys=heads[0], values=heads[1])
        self._rss = PeakRss()
        self._settings: ContextSettings | None = None
        self._context: NativeContext | None = None
        self._text_context: tuple[ContextSettings, NativeContext] | None = None
        self._cell: Cell | None = None
        self._prompt: Prompt | None = None
        self._fed_tokens = 0

    @override
    def prepare(self, cell: Cell) -> None:
        """A cell that needs the same context goes on with the last one's, emptied before every generation."""
        settings = self._settings_for(cell)
        if settings != self._settings or self._context is None:
            self._drop_contexts()
            self._settings = settings
            self._context = NativeContext(self._model, settings)
        self._cell, self._fed_tokens = cell, 0
        self._prompt = Prompt.of(self._texts.prompts(cell), self._never_chosen)

    @override
    def generate(self, output_tokens: int) -> Generation:
        made = generate(self._prepared_context, self._prepared_prompt, output_tokens)
        self._fed_tokens = self._prepared_prompt.tokens + output_tokens - 1
        return made

    @override
    def observe(self, output_tokens: int = OBSERVED_TOKENS) -> Observed:
        recorder, settings = GraphRecorder(), self._prepared_settings
        with self._beside(recorder) as context:
            made = generate(context, self._prepared_prompt, output_tokens, recorder)
            evidence = self._evidence(context)
            seen = proof.observed_context(settings, evidence)
            layers = proof.layers_on_gpu(context.said, self._model.layers)
            # One that had to give way has pages to touch yet; on a GPU each graph is waited for under the callback.
            is_alike = self._context is not None and self._device is DeviceType.CPU
        for step in Step:
            seen = seen.joined(proof.observed_attention(settings, step, recorder.attention(step), layers))
        made_of_it = proof.resolved(evidence, describe_build())
        return replace(seen, resolved=made_of_it, generation=made if is_alike else None)

    @override
    def last_used(self) -> Observed:
        context = self._prepared_context
        seen = proof.observed_context(self._prepared_settings, self._evidence(context))
        held = {context.held_tokens(one) for one in range(self._prepared_settings.n_seq_max)}
        return seen.joined(proof.observed_tokens(held, self._fed_tokens))

    @override
    def forced_text(self, forced: int) -> ForcedText:
        return ForcedText(ids=tuple(self._texts.forced(self._prepared_cell, forced)), forced=forced)

    @override
    def forced_log_probabilities(self, text: ForcedText) -> Iterator[ForcedToken]:
        check_text(text, self._model.vocabulary)
        with self._beside() as context:
            yield from force(context, text, rows=self._prepared_cell.batch_size, vocabulary=self._model.vocabulary)

    @override
    def kv_cache_bytes(self) -> int | None:
        return proof.cache_bytes(self._evidence(self._prepared_context))

    @override
    def reset_peak_memory(self) -> None:
        self._rss.reset()

    @override
    def peak_memory_mib(self) -> float | None:
        """On a GPU what llama.cpp has there, all of which it takes before it computes."""
        if self._device is DeviceType.CPU:
            return self._rss.read_mib()
        return self._prepared_context.said.gpu_mib

    @override
    def count_tokens(self, text: str) -> int:
        return len(self._model.tokenize(text, as_prompt=True))

    @override
    def complete(self, text: str, max_new_tokens: int) -> str:
        ids = self._model.tokenize(text, as_prompt=True)
        if not ids:
            raise UnsupportedError("an empty text has nothing to go on from")
        made: list[int] = []
        context = self._context_for_text(Cell(len(ids), max_new_tokens, 1))
        for (token,) in choices(context, Prompt.of([ids], self._suppressed)):
            if token in self._ends:
                break
            made.append(int(token))
            if len(made) == max_new_tokens:
                break
        return self._model.detokenize(made)

    @override
    def close(self) -> None:
        self._drop_contexts()
        self._model.close()
        release_heap()

    def _settings_for(self, cell: Cell) -> ContextSettings:
        return context_settings(self._candidate, cell, device=self._device)

    @contextlib.contextmanager
    def _beside(self, recorder: GraphRecorder | None = None) -> Iterator[NativeContext]:
        """Another context like the measured one, which gives way for so long where memory does not hold both."""
        on_node = None if recorder is None else recorder.on_node
        if not self._has_room_for_two():
            self._drop_measured()
        try:
            context = self._made_beside(on_node)
            try:
                yield context
            finally:
                context.close()
        finally:
            release_heap()
            if self._context is None:
                self._context, self._fed_tokens = NativeContext(self._model, self._prepared_settings), 0

    def _made_beside(self, on_node: Any | None) -> NativeContext:
        try:
            return NativeContext(self._model, self._prepared_settings, on_node=on_node)
        except OutOfMemoryError:
            if self._context is None:
                raise
        self._drop_measured()
        return NativeContext(self._model, self._prepared_settings, on_node=on_node)

    def _has_room_for_two(self) -> bool:
        """In host memory, where taking too much is not refused but ends processes."""
        return available_memory_mib() > _SPARE * self._prepared_context.said.host_mib

    def _drop_measured(self) -> None:
        if self._context is not None:
            self._context.close()
        self._context = None

    def _drop_contexts(self) -> None:
        self._drop_measured()
        if self._text_context is not None:
            self._text_context[1].close()
        self._text_context = None
        release_heap()

    def _context_for_text(self, cell: Cell) -> NativeContext:
        """Kept for the next text that needs the same."""
        settings = self._settings_for(cell)
        if self._text_context is None or self._text_context[0] != settings:
            self._drop_contexts()
            self._text_context = settings, NativeContext(self._model, settings)
        return self._text_context[1]

    def _evidence(self, context: NativeContext) -> proof.Evidence:
        return proof.Evidence(said=context.said, sizes=context.sizes, window=self._model.window, heads=self._heads)

    @property
    def _prepared_context(self) -> NativeContext:
        if self._context is None:
            raise _unprepared()
        return self._context

    @property
    def _prepared_settings(self) -> ContextSettings:
        if self._settings is None:
            raise _unprepared()
        return self._settings

    @property
    def _prepared_prompt(self) -> Prompt:
        if self._prompt is None:
            raise _unprepared()
        return self._prompt

    @property
    def _prepared_cell(self) -> Cell:
        if self._cell is None:
            raise _unprepared()
        return self._cell


def _unprepared() -> RuntimeError:
    return RuntimeError("prepare() was not called")
