"""Runs in a process of its own: for each snippet, what it did and what kvray's own `LoadedModel` does; prints JSON.

`python run_snippets.py CASES.json`, a list of {path, request, candidate, cell, prompt, tokens}.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import ModelRequest
from kvray.engines.transformers.attention import kernels_seen
from kvray.engines.transformers.loaded import TransformersModel
from kvray.workload import Cell


def run_snippet(case: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """What the program did, seen from outside; and the prompt's tokens."""
    program = runpy.run_path(case["path"], run_name="snippet")
    model, tokenizer = program["load"]()
    caches: list[Any] = []
    honest = model.generate

    def watched(*arguments: Any, **options: Any) -> Any:
        caches.append(options["past_key_values"])
        return honest(*arguments, **options)

    model.generate = watched
    counters.clear()
    tokens = program["generate"](model, tokenizer, case["prompt"], case["tokens"])
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        again = program["generate"](model, tokenizer, case["prompt"], 2)
    prompt = tokens[:, : tokens.shape[1] - case["tokens"]]
    return {
        "tokens": tokens[:, prompt.shape[1] :].tolist(),
        "repeats": again.tolist() == tokens[:, : prompt.shape[1] + 2].tolist(),
        "cache_class": type(caches[0]).__name__,
        "same_cache": caches[0] is caches[1],
        "kernels": kernels_seen(event.key for event in trace.key_averages()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn_implementation": model.config._attn_implementation,
        "compiled": counters["stats"]["unique_graphs"] > 0,
        "class": type(model).__name__,
    }, prompt


def run_kvray(case: dict[str, Any], prompt: torch.Tensor) -> dict[str, Any]:
    """The tokens of `LoadedModel` for the same prompt, and the text that a plan's session answers."""
    candidate, cell = Candidate.from_dict(case["candidate"]), Cell(*case["cell"])
    model = TransformersModel(ModelRequest(**case["request"]), candidate, DeviceType.CPU, [cell])
    model.prepare(Cell(prompt.shape[1], case["tokens"], prompt.shape[0]))
    model._prompt = prompt
    rows = [list(row) for row in model.generate(case["tokens"]).tokens]
    said = None
    if not model._texts.are_random and isinstance(case["prompt"], str):
        said = (model.complete(case["prompt"], case["tokens"]), model._text_tokenizer.decode(rows[0]))
    return {"measured": rows, "said": said}


def main() -> None:
    """One result per case, in their order."""
    results = []
    for case in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        seen, prompt = run_snippet(case)
        results.append({**seen, **run_kvray(case, prompt)})
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main()
