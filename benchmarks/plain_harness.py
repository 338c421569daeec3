"""How a user times plain `model.generate()`: Transformers and a clock, nothing of kvray. Run by `fidelity.py`.

Its argument is JSON: model (a folder), text (a file), dtype, attention, kernel, cache, cells, repeats.
"""

import contextlib
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer


class Clock(BaseStreamer):  # type: ignore[misc]
    """The first stamp is the prompt's own."""

    def __init__(self) -> None:
        self.stamps: list[float] = []

    def put(self, value: Any) -> None:  # noqa: ARG002, D102
        self.stamps.append(time.perf_counter())

    def end(self) -> None:  # noqa: D102
        pass


def main() -> None:
    asked = json.loads(sys.argv[1])
    text = AutoTokenizer.from_pretrained(asked["model"])(Path(asked["text"]).read_text("utf-8"), return_tensors="pt")
    options = {"dtype": getattr(torch, asked["dtype"]), "attn_implementation": asked["attention"]}
    model = AutoModelForCausalLM.from_pretrained(asked["model"], **options)
    model.generation_config.eos_token_id = None  # exactly as many tokens as asked for
    runs: list[dict[str, Any]] = []
    with sdpa_kernel([getattr(SDPBackend, asked["kernel"])]) if asked["kernel"] else contextlib.nullcontext():
        for context, tokens in asked["cells"]:
            prompt = text["input_ids"][:, :context]
            call = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": tokens, "do_sample": False}
            for repeat in range(-2, asked["repeats"]):  # two calls to warm up
                clock = Clock()
                started = time.perf_counter()
                model.generate(prompt, streamer=clock, cache_implementation=asked["cache"], **call)
                first, *rest = clock.stamps[1:]
                itl_ms = statistics.median(b - a for a, b in itertools.pairwise([first, *rest])) * 1e3
                run = {"ttft": (first - started) * 1e3, "decode": len(rest) / (rest[-1] - first), "itl": itl_ms}
                runs += [{"cell": [context, tokens], **run}] if repeat >= 0 else []
    print(json.dumps({"threads": torch.get_num_threads(), "runs": runs}))


if __name__ == "__main__":
    main()
