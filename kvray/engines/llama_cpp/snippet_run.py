"""Runs a generated snippet as it stands and tells what it did. `python -m` this module, see `engines.snippet_case`."""

from __future__ import annotations

import runpy

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.engines.llama_cpp.binding import engine_log, library
from kvray.engines.llama_cpp.model_file import gguf_path
from kvray.engines.llama_cpp.native_model import NativeModel
from kvray.engines.llama_cpp.said import Said
from kvray.engines.llama_cpp.settings import context_settings
from kvray.engines.llama_cpp.texts import ModelTexts
from kvray.engines.snippet_case import SnippetCase, SnippetRun, serve

TEXT = "The capital of France is"
_TEXT_TOKENS = 4
_ANY = Candidate(engine="llama_cpp", cache=CacheStrategy.STATIC, attention=AttentionBackend.FLASH, dtype=DType.FLOAT32)
"""Any would do: only the vocabulary is asked."""


def run_snippet(case: SnippetCase) -> SnippetRun:
    """Two calls: the measured prompts for their tokens, and a text as a user gives it.

    As in the measurement no token ends an answer, but for the text.
    """
    library()  # from here on its log is caught
    program = runpy.run_path(str(case.snippet), run_name="snippet")
    log = engine_log()
    begun = log.mark
    model, context = program["load"]()
    said = Said.of(log.since(begun))
    prompts = _prompts(case)
    rows = program["generate"](model, context, prompts, case.cell.output_tokens, endless=True)
    text = program["tokens_of"](model, TEXT)
    program["text_of"](model, program["generate"](model, context, [text], _TEXT_TOKENS)[0])
    made = [tuple(row[case.cell.context_tokens :]) for row in rows]
    return SnippetRun(tokens=tuple(made if len(made) == 1 else (made[0], made[-1])), cache_class=said.cache_class)


def _prompts(case: SnippetCase) -> list[list[int]]:
    """Those of the trials, written by the file's own tokenizer."""
    model = NativeModel(gguf_path(case.request), context_settings(_ANY, case.cell, device=DeviceType.CPU))
    try:
        return ModelTexts(model).prompts(case.cell)
    finally:
        model.close()


if __name__ == "__main__":
    serve(run_snippet)
