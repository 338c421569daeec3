"""`VllmModel`: one candidate in one vLLM engine, timed from the submission of a prompt to each token in our hands."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

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
    SubstitutedError,
    UnsupportedError,
)
from kvray.engines.hugging_face.model_folder import fetched_path
from kvray.engines.hugging_face.texts import ModelTexts
from kvray.engines.hugging_face.tokenizer import encoded, load_tokenizer
from kvray.engines.vllm.arguments import engine_arguments, environment
from kvray.engines.vllm.description import layer_kinds, read_config
from kvray.engines.vllm.forced import Forcing, force
from kvray.engines.vllm.proof import Seen, kv_types, resolved, substitutions
from kvray.engines.vllm.session import Session
from kvray.engines.vllm.words import EngineWords
from kvray.models.source import SourceKind, parse_model_id
from kvray.probes.cpu import PeakRss, release_heap
from kvray.workload import Cell

_MIB = 1024 * 1024


class VllmModel(LoadedModel):
    """Raises what the contract says, with vLLM's own words inside.

    A checkpoint's `repetition_penalty` is applied, because `vllm serve` applies it to every request. All else that its
    generation config asks for is set aside: generation is one greedy sequence.
    """

    def __init__(self, request: ModelRequest, candidate: Candidate, device: DeviceType, cells: Sequence[Cell]) -> None:
        folder = fetched_path(request)
        self._candidate, self._device = candidate, device
        self._arguments = engine_arguments(
            str(folder), candidate, device, cells, kinds=layer_kinds(read_config(folder))
        )
        self._tokenizer = load_tokenizer(request, folder)
        os.environ.update(environment(candidate))
        self._words = EngineWords()
        is_random = parse_model_id(request.model_id).kind is SourceKind.RANDOM
        how = {"load_format": "dummy"} if is_random else {}
        self._session = Session({**self._arguments, **how, "trust_remote_code": request.trust_remote_code}, self._words)
        self._model_config = self._session.config.model_config
        self._texts = ModelTexts.of(request, self._tokenizer, self._model_config.hf_config)
        self._penalty = self._model_config.get_diff_sampling_param().get("repetition_penalty", 1.0)
        self._rss = PeakRss()
        self._seen: Seen | None = None
        self._cell: Cell | None = None
        self._prompts: list[list[int]] = []

    @override
    def prepare(self, cell: Cell) -> None:
        limit = self._session.config.model_config.max_model_len
        if cell.context_tokens + cell.output_tokens > limit:
            raise UnsupportedError(f"the engine is made for {limit} tokens, {cell.label} has more")
        self._cell, self._prompts = cell, self._texts.prompts(cell)

    @override
    def generate(self, output_tokens: int) -> Generation:
        before = self._session.preemptions()
        generation = self._session.generate(self._prompts, self._params(output_tokens))
        if preempted := self._session.preemptions() - before:
            raise SubstitutedError(f"vLLM had no room for all sequences and began {preempted} of them anew")
        return generation

    @override
    def observe(self, output_tokens: int = OBSERVED_TOKENS) -> Observed:
        """The workers say what they have loaded; nothing slows the generation, so it counts as any other."""
        seen = self._workers_say()
        came_to = resolved(self._session.config, seen)
        generation = self.generate(output_tokens)
        backend = " | ".join(sorted(set(seen.backends))) or None
        return Observed(
            cache_class=f"{seen.blocks}×{seen.block_size} tokens",
            cache_layers=f"{len(seen.backends)} layers",
            kernel_prefill=backend,
            kernel_decode=backend,
            kv_dtype=kv_types(seen),
            threads=seen.threads if self._device is DeviceType.CPU else None,
            substitutions=substitutions(self._candidate, self._arguments, came_to),
            processors=None if self._penalty == 1.0 else "repetition_penalty",
            resolved=came_to,
            generation=generation,
        )

    @override
    def forced_text(self, forced: int) -> ForcedText:
        return ForcedText(ids=tuple(self._texts.forced(self._prepared_cell, forced)), forced=forced)

    @override
    def forced_log_probabilities(self, text: ForcedText) -> Iterator[ForcedToken]:
        vocabulary, limit = int(self._model_config.get_vocab_size()), int(self._model_config.max_model_len)
        if unknown := sorted({one for one in text.ids if not 0 <= one < vocabulary}):
            raise UnsupportedError(f"the reference's text has the token {unknown[-1]}, this model knows {vocabulary}")
        if len(text.ids) > limit:
            raise UnsupportedError(f"the reference's text has {len(text.ids)} tokens, the engine is made for {limit}")
        yield from force(self._session, Forcing(text=text, rows=self._prepared_cell.batch_size, vocabulary=vocabulary))
        release_heap()

    @override
    def kv_cache_bytes(self) -> int:
        """Bytes of the blocks that the cell's sequences fill; the pool holds the largest cell."""
        cell, seen = self._prepared_cell, self._workers_say()
        blocks = cell.batch_size * math.ceil((cell.context_tokens + cell.output_tokens) / seen.block_size)
        return round(min(blocks / max(seen.blocks - 1, 1), 1.0) * seen.kv_bytes)

    @override
    def processes(self) -> Sequence[int]:
        return (os.getpid(), *self._session.pids)

    @override
    def reset_peak_memory(self) -> None:
        self._rss.reset()
        if self._device is DeviceType.CUDA:
            self._session.ask_workers("kvray_reset_peak")

    @override
    def peak_memory_mib(self) -> float:
        if self._device is DeviceType.CPU:
            return self._rss.read_mib()
        return self._peaks_mib()[0]

    @override
    def reserved_memory_mib(self) -> float | None:
        return self._peaks_mib()[1] if self._device is DeviceType.CUDA else None

    @override
    def count_tokens(self, text: str) -> int:
        return len(encoded(self._text_tokenizer, text, verbose=False)["input_ids"])

    @override
    def complete(self, text: str, max_new_tokens: int) -> str:
        prompt, limit = list(encoded(self._text_tokenizer, text)["input_ids"]), self._model_config.max_model_len
        if len(prompt) + max_new_tokens > limit:
            raise UnsupportedError(f"the engine is made for {limit} tokens, this needs {len(prompt) + max_new_tokens}")
        ends = self._model_config.try_get_generation_config().get("eos_token_id") or self._text_tokenizer.eos_token_id
        stops = [] if ends is None else list(ends) if isinstance(ends, list) else [ends]
        tokens = self._session.generate([prompt], self._params(max_new_tokens, stop_token_ids=stops)).tokens[0]
        return str(self._text_tokenizer.decode(tokens, skip_special_tokens=True))

    @override
    def close(self) -> None:
        self._session.close()
        self._words.close()

    def _params(self, output_tokens: int, **further: Any) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=0.0,
            repetition_penalty=self._penalty,
            max_tokens=output_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            **further,
        )

    def _workers_say(self) -> Seen:
        if self._seen is None:
            self._seen = Seen.of(self._session.ask_workers("kvray_seen"))
        return self._seen

    def _peaks_mib(self) -> tuple[float, float]:
        """Peaks of all workers together: allocated, and held from the driver."""
        peaks = self._session.ask_workers("kvray_peak_bytes")
        return sum(peak[0] for peak in peaks) / _MIB, sum(peak[1] for peak in peaks) / _MIB

    @property
    def _prepared_cell(self) -> Cell:
        if self._cell is None:
            raise RuntimeError("prepare() was not called")
        return self._cell

    @property
    def _text_tokenizer(self) -> Any:
        if self._tokenizer is None:
            raise UnsupportedError("this model has no tokenizer")
        return self._tokenizer
