"""Runs a generated snippet as it stands and tells what it did. `python -m` this module, see `engines.snippet_case`."""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import BatchEncoding

from kvray.candidate import DeviceType
from kvray.engines.base import OBSERVED_TOKENS
from kvray.engines.hugging_face.model_folder import fetched_path
from kvray.engines.hugging_face.texts import ModelTexts
from kvray.engines.hugging_face.tokenizer import load_tokenizer
from kvray.engines.snippet_case import SnippetCase, SnippetRun, read_case, serve
from kvray.engines.transformers.attention import kernels_seen
from kvray.engines.transformers.rendezvous import joined
from kvray.engines.transformers.tracing import ProfilingStreamer, Trace
from kvray.probes.orphans import die_with_parent
from kvray.search_paths import child_environment, python_command

TEXT = "The capital of France is"
_RANK = "KVRAY_SNIPPET_RANK"
"""Environment variable that tells a further rank which one it is."""


def run_snippet(case: SnippetCase) -> SnippetRun:
    """Three calls: the measured prompts for their tokens, again under a profiler, and a text as a user gives it.

    As in the measurement no token ends a sequence, but for the text.
    """
    program = runpy.run_path(str(case.snippet), run_name="snippet")
    with _ranks_joined(case, program):
        model, tokenizer = program["load"]()
    ends = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = None
    measured = load_tokenizer(case.request, fetched_path(case.request))
    measured_texts = ModelTexts.of(case.request, measured, model.config)
    given = _Given(measured_texts.prompts(case.cell), model.device)
    watched = _Watched(model)
    tokens = program["generate"](model, given, given.prompts, case.cell.output_tokens)
    with watched.profiled():
        program["generate"](model, given, given.prompts, max(OBSERVED_TOKENS, case.cell.output_tokens))
    model.generation_config.eos_token_id = ends
    if not measured_texts.are_random:
        texts = TEXT if case.cell.batch_size == 1 else [TEXT] * case.cell.batch_size
        program["generate"](model, tokenizer, texts, OBSERVED_TOKENS)
    return SnippetRun(
        tokens=tuple(tuple(row.tolist()[case.cell.context_tokens :]) for row in _ends(tokens)),
        cache_class=watched.cache_class,
        kernel_prefill=watched.kernels(lambda trace: trace.prefill),
        kernel_decode=watched.kernels(lambda trace: trace.decode),
    )


@contextlib.contextmanager
def _ranks_joined(case: SnippetCase, program: Mapping[str, Any]) -> Iterator[None]:
    """Where the snippet wants several processes, the others run the same beside this one, as torchrun starts them."""
    ranks, rank = int(program.get("RANKS", 1)), int(os.environ.get(_RANK, "0"))
    if ranks == 1:
        yield
        return
    for other in range(1, ranks) if rank == 0 else ():
        command = python_command("-m", "kvray.engines.transformers.snippet_run", sys.argv[1])
        subprocess.Popen(command, env={**child_environment(), _RANK: str(other)})
    device = DeviceType(str(program["DEVICE"]).partition(":")[0])
    with joined(rank, ranks=ranks, store=case.snippet.with_name("ranks"), device=device):
        yield


def _other_rank() -> None:
    """What a further rank does with the same case; its answer is the first one's."""
    die_with_parent()
    case = read_case(Path(sys.argv[1]))
    signal.alarm(case.limit_s)
    run_snippet(case)


def _ends(rows: Any) -> list[Any]:
    return [rows[0]] if len(rows) == 1 else [rows[0], rows[-1]]


class _Given:
    """Stands in for a tokenizer whose text is known already: as token ids."""

    def __init__(self, rows: list[list[int]], device: torch.device) -> None:
        self._rows = rows
        self._device = device
        self.prompts: int | list[int] = 0 if len(rows) == 1 else list(range(len(rows)))

    def __call__(self, text: int | list[int], *, return_tensors: str | None = None, **options: Any) -> Any:
        del options
        rows = [self._rows[one] for one in ([text] if isinstance(text, int) else text)]
        if return_tensors is None:
            return {"input_ids": rows[0]}
        ids = torch.tensor(rows, device=self._device)
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


class _Watched:
    """Sees the cache that `model.generate` really used, and on demand the kernels. Continuous batching goes another
    way, of which nothing is seen here."""

    def __init__(self, model: Any) -> None:
        self.cache_class: str | None = None
        self._trace: Trace | None = None
        self._streamer: ProfilingStreamer | None = None
        self._honest = model.generate
        model.generate = self._generate

    @contextlib.contextmanager
    def profiled(self) -> Iterator[None]:
        with contextlib.closing(ProfilingStreamer()) as streamer:
            self._streamer = streamer
            yield
            self._streamer = None
        if streamer.stamps:
            self._trace = streamer.trace()

    def kernels(self, phase: Any) -> str | None:
        return None if self._trace is None else " + ".join(kernels_seen(phase(self._trace))) or None

    def _generate(self, *given: Any, **options: Any) -> Any:
        output = self._honest(*given, **options, return_dict_in_generate=True, streamer=self._streamer)
        self.cache_class = type(output.past_key_values).__name__
        return output.sequences


if __name__ == "__main__":
    if _RANK in os.environ:
        _other_rank()
    else:
        serve(run_snippet)
