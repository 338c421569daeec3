"""`TransformersModel`: one candidate loaded in one process, timed through the library's own `generate`.

`model.generate()` itself runs the decode loop, because that is what a user gets; a streamer takes the time stamps. Each
streamed token has been copied to the host, and `generate` waits for the device at every step anyway to decide whether
to stop, so the stamps force nothing that a plain call does not.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList
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
from kvray.engines.hugging_face.model_folder import fetched_path
from kvray.engines.hugging_face.texts import ModelTexts
from kvray.engines.hugging_face.tokenizer import encoded, load_tokenizer
from kvray.engines.transformers.arguments import Split, call_arguments, kept_length, settings_objection
from kvray.engines.transformers.attention import forced_kernel
from kvray.engines.transformers.caches import cache_bytes, make_cache
from kvray.engines.transformers.device_memory import DeviceMemory
from kvray.engines.transformers.forced import ForcedPlan, force
from kvray.engines.transformers.generation_settings import bare_settings, exact_settings, measured_settings
from kvray.engines.transformers.loading import load_model
from kvray.engines.transformers.observed import (
    ProfiledGeneration,
    UsedCache,
    compilation,
    forget_compiled_graphs,
    observed,
    observed_cache,
)
from kvray.engines.transformers.paged import PagedSession
from kvray.engines.transformers.processors import active_processors, processor_share, timed_processors
from kvray.engines.transformers.tracing import ProfilingStreamer, StampingStreamer, trace_whole
from kvray.engines.transformers.translation import translated_errors
from kvray.probes.cpu import release_heap
from kvray.workload import Cell


def is_divided(weight: Any) -> bool:
    """Whether the ranks of tensor parallelism each have a part of the weight, whatever the model says of itself."""
    return hasattr(weight, "device_mesh")


class TransformersModel(LoadedModel):
    """Raises what the contract says, with the library's own words inside.

    What the checkpoint's generation config does to the scores of tokens (`repetition_penalty`, `suppress_tokens`, …) is
    done here too, because a user's own `generate` does it at every token. Its other settings are set aside: generation
    is one greedy sequence, so that equal weights give equal tokens.
    """

    def __init__(
        self, request: ModelRequest, candidate: Candidate, device: DeviceType, cells: Sequence[Cell] = ()
    ) -> None:
        if (objection := settings_objection(candidate)) is not None:
            raise UnsupportedError(objection)
        if candidate.foreign_kernel is not None and not request.trust_remote_code:
            raise UnsupportedError(f"kernel {candidate.foreign_kernel} is code by others that nobody said to trust")
        self._candidate = candidate
        self._device = torch.device(device.value)
        self._arguments = call_arguments(candidate)
        self._kept_lengths = self._arguments.kept_lengths(cells)
        spans_gpus = self._arguments.split is Split.DEVICE_MAP
        self._memory = DeviceMemory(self._device, gpus=candidate.parallelism if spans_gpus else None)
        forget_compiled_graphs()
        with translated_errors():
            folder = fetched_path(request)
            self._model = load_model(request, folder, self._arguments, self._device)
            self._tokenizer = load_tokenizer(request, folder)
        self._model.eval()
        self._texts = ModelTexts.of(request, self._tokenizer, self._model.config)
        self._eos_token_id = self._model.generation_config.eos_token_id
        self._model.generation_config = measured_settings(self._model.generation_config, self._arguments)
        self._generation_configs: dict[int, GenerationConfig] = {}
        self._cell: Cell | None = None
        self._prompt: torch.Tensor | None = None
        self._cache: Any = None
        self._left: Any = None
        self._fed_tokens = 0
        self._text_cache: tuple[int, Any] | None = None
        self._pages: PagedSession | None = None

    @override
    def prepare(self, cell: Cell) -> None:
        self._drop_cache()
        self._memory.release()
        self._cell = cell
        self._prompt = torch.tensor(self._texts.prompts(cell), dtype=torch.long, device=self._device)
        with translated_errors():
            if self._arguments.static_cache:
                self._cache = make_cache(self._arguments, self._text_config, cell)
            elif self._arguments.paged:
                self._pages = PagedSession(self._model, self._model.generation_config, cell)

    @override
    def generate(self, output_tokens: int) -> Generation:
        """The clock starts before the cache is made or emptied: a user pays for that."""
        if self._pages is not None:
            with translated_errors():
                return self._pages.generate(self._prompt_tensor.tolist(), output_tokens)
        streamer = StampingStreamer()
        self._generation_config(output_tokens)
        with translated_errors():
            started = time.perf_counter()
            sequences = self._generate(output_tokens, streamer)
        return self._timed(started, streamer, sequences)

    @override
    def observe(self, output_tokens: int = OBSERVED_TOKENS) -> Observed:
        generation, spent_s = None, list[float]()
        self._generation_config(output_tokens)
        with translated_errors():
            if self._pages is not None:
                trace = trace_whole(self.generate)
            else:
                started = time.perf_counter()
                with contextlib.closing(ProfilingStreamer()) as streamer, timed_processors(self._model) as spent_s:
                    sequences = self._generate(output_tokens, streamer)
                trace, generation = streamer.trace(), self._timed(started, streamer, sequences)
            seen = observed(
                self._candidate,
                self._arguments,
                self._used,
                ProfiledGeneration(
                    trace=trace,
                    attn_implementation=str(self._text_config._attn_implementation),
                    attends_in_its_own_way=not getattr(self._model, "_supports_sdpa", True),
                    weights_on=frozenset(str(place) for place in getattr(self._model, "hf_device_map", {}).values()),
                    ranks=next((one.device_mesh.size() for one in self._model.parameters() if is_divided(one)), 1),
                ),
            )
        processors = active_processors(self._model.generation_config)
        share = processor_share(spent_s, generation.token_s) if processors and generation else None
        return replace(seen, generation=generation, processors=processors, processor_share=share)

    @override
    def last_used(self) -> Observed:
        return observed_cache(self._candidate, self._arguments, self._used)

    @override
    def forced_text(self, forced: int) -> ForcedText:
        """Random tokens for a model without a tokenizer."""
        return ForcedText(ids=tuple(self._texts.forced(self._prepared_cell, forced)), forced=forced)

    @override
    def forced_log_probabilities(self, text: ForcedText) -> Iterator[ForcedToken]:
        if self._arguments.paged:
            raise UnsupportedError("continuous batching tells no log-probabilities of given tokens")
        # The kernel is forced between tokens too, which is harmless: who reads them calls nothing of torch.
        with translated_errors(), forced_kernel(self._arguments.sdpa_kernel):
            self._fresh_cache()
            plan = self._forced_plan(text)
            yield from force(self._model, plan, self._generate_unprocessed)
        self._memory.release()
        release_heap()

    @override
    def compilation(self) -> Compilation | None:
        return None if self._arguments.compile_mode is None else compilation()

    @override
    def kv_cache_bytes(self) -> int | None:
        used = self._left if self._pages is None else self._pages.cache
        return None if used is None else cache_bytes(used)

    @override
    def reset_peak_memory(self) -> None:
        self._memory.reset_peak()

    @override
    def peak_memory_mib(self) -> float | None:
        return self._memory.peak_mib()

    @override
    def reserved_memory_mib(self) -> float | None:
        return self._memory.reserved_peak_mib()

    @override
    def count_tokens(self, text: str) -> int:
        return len(encoded(self._text_tokenizer, text, verbose=False)["input_ids"])

    @override
    def complete(self, text: str, max_new_tokens: int) -> str:
        """Greedy, like what was measured; of all that may end a text only EOS does."""
        # Some tokenizers give more, such as `token_type_ids`, which no decoder takes and the measurement does not give.
        inputs = encoded(self._text_tokenizer, text, return_tensors="pt", return_attention_mask=True).to(self._device)
        prompt, mask = inputs["input_ids"], inputs["attention_mask"]
        cell = Cell(prompt.shape[1], max_new_tokens, 1)
        config = copy.deepcopy(self._generation_config(max_new_tokens))
        config.eos_token_id = self._eos_token_id
        if self._arguments.paged:
            return self._complete_paged(prompt.tolist(), config, cell)
        with translated_errors(), forced_kernel(self._arguments.sdpa_kernel):
            cache = self._cache_for_text(cell)
            output = self._model.generate(prompt, attention_mask=mask, past_key_values=cache, generation_config=config)
        return str(self._text_tokenizer.decode(output.sequences[0, prompt.shape[1] :], skip_special_tokens=True))

    @override
    def close(self) -> None:
        self._drop_cache()
        self._prompt = self._text_cache = None
        self._model = None
        self._memory.release()

    def _forced_plan(self, text: ForcedText) -> ForcedPlan:
        if max(text.ids) >= (known := self._text_config.vocab_size):
            raise UnsupportedError(
                f"the reference's text has the token {max(text.ids)}, this model knows {known} tokens"
            )
        piece = self._arguments.prefill_chunk_size
        plan = ForcedPlan.of(text, self._prepared_cell, piece=piece, cache=self._cache)
        window = dict(self._arguments.cache_options).get("window")
        if window is not None and plan.last_begin <= int(window):
            # It would seem to lose nothing.
            raise UnsupportedError(
                f"the text of {len(text.ids)} tokens is too short to show what a window of {window} drops"
            )
        return plan

    def _complete_paged(self, rows: list[list[int]], config: GenerationConfig, cell: Cell) -> str:
        with translated_errors(), contextlib.closing(PagedSession(self._model, config, cell)) as pages:
            tokens = pages.generate(rows, cell.output_tokens).tokens[0]
        return str(self._text_tokenizer.decode(tokens, skip_special_tokens=True))

    def _drop_cache(self) -> None:
        if self._pages is not None:
            self._pages.close()
        self._cache = self._left = self._pages = None

    def _generate(self, output_tokens: int, streamer: StampingStreamer) -> torch.Tensor:
        self._left = None
        self._fresh_cache()
        prompt = self._prompt_tensor
        with forced_kernel(self._arguments.sdpa_kernel):
            output = self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                past_key_values=self._cache,
                generation_config=self._generation_config(output_tokens),
                streamer=streamer,
            )
        self._left, self._fed_tokens = output.past_key_values, prompt.shape[1] + output_tokens - 1
        sequences: torch.Tensor = output.sequences
        return sequences

    def _timed(self, started: float, streamer: StampingStreamer, sequences: torch.Tensor) -> Generation:
        prompt_tokens = self._prompt_tensor.shape[1]
        tokens = tuple(tuple(row) for row in sequences[:, prompt_tokens:].tolist())
        # The first stamp is the prompt's own.
        return Generation(started_s=started, token_s=tuple(streamer.stamps[1:]), tokens=tokens)

    def _generate_unprocessed(self, prompt: torch.Tensor, new_tokens: int, processors: LogitsProcessorList) -> Any:
        """Into the cache as it is, and without what the checkpoint wants done to the logits; returns the cache that was
        used."""
        with bare_settings(self._model, self._arguments) as bare:
            output = self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                past_key_values=self._cache,
                generation_config=exact_settings(bare, self._arguments, new_tokens),
                logits_processor=processors,
            )
        return output.past_key_values

    def _generation_config(self, output_tokens: int) -> GenerationConfig:
        """The settings for exactly `output_tokens`; made once per length, outside timed calls."""
        if output_tokens not in self._generation_configs:
            self._generation_configs[output_tokens] = exact_settings(
                self._model.generation_config, self._arguments, output_tokens
            )
        return self._generation_configs[output_tokens]

    def _fresh_cache(self) -> None:
        if self._arguments.static_cache:
            self._cache.reset()
        else:
            self._cache = make_cache(self._arguments, self._text_config, self._prepared_cell)

    def _cache_for_text(self, cell: Cell) -> Any:
        """As in the snippet: a static cache is kept for the next call of its length and emptied, as when measured."""
        if not self._arguments.static_cache:
            return make_cache(self._arguments, self._text_config, cell)
        tokens = kept_length(self._arguments.cache_length(cell), self._kept_lengths)
        if self._text_cache is None or self._text_cache[0] != tokens:
            self._text_cache = None
            rounded = cell._replace(context_tokens=tokens - cell.output_tokens)
            self._text_cache = (tokens, make_cache(self._arguments, self._text_config, rounded))
        cache = self._text_cache[1]
        cache.reset()
        return cache

    @property
    def _text_config(self) -> Any:
        return self._model.config.get_text_config(decoder=True)

    @property
    def _used(self) -> UsedCache:
        """Some models put the cache that they are given away, and go on with one of their own."""
        return UsedCache(
            cache=self._left if self._pages is None else self._pages.cache,
            cell=self._prepared_cell,
            # The last token has not been fed back yet.
            fed_tokens=self._fed_tokens,
            dtype=self._model.dtype,
        )

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

    @property
    def _prompt_tensor(self) -> torch.Tensor:
        if self._prompt is None:
            raise RuntimeError("prepare() was not called")
        return self._prompt
