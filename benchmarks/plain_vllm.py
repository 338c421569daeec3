"""How a user times vLLM offline: its engine's step loop and a clock, nothing of kvray. Run by `fidelity.py`, in the
Python that holds vLLM.

Its argument is JSON: model (a folder), text (a file), options (of `vllm.LLM`), cells, repeats.
"""

import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind


def main() -> None:
    asked = json.loads(sys.argv[1])
    longest = max(context + tokens for context, tokens in asked["cells"])
    # A repeated prompt must be read again.
    model = LLM(asked["model"], max_model_len=longest, enable_prefix_caching=False, **asked["options"])
    text = model.get_tokenizer()(Path(asked["text"]).read_text("utf-8"))["input_ids"]
    runs: list[dict[str, Any]] = []
    for context, tokens in asked["cells"]:
        for repeat in range(-2, asked["repeats"]):  # two calls to warm up
            run = generate(model.llm_engine, f"{context}-{tokens}-{repeat}", text[:context], tokens)
            runs += [{"cell": [context, tokens], **run}] if repeat >= 0 else []
    print(json.dumps({"threads": None, "runs": runs}))


def generate(engine: Any, name: str, prompt: list[int], tokens: int) -> dict[str, float]:
    """Greedily, exactly `tokens`."""
    wanted = SamplingParams(
        temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
    )
    stamps: list[float] = []
    started = time.perf_counter()
    engine.add_request(name, {"prompt_token_ids": prompt}, wanted)
    while engine.has_unfinished_requests():
        for output in engine.step():
            stamps += [time.perf_counter()] * len(output.outputs[0].token_ids)
    first, *rest = stamps
    itl_ms = statistics.median(b - a for a, b in itertools.pairwise(stamps)) * 1e3
    return {"ttft": (first - started) * 1e3, "decode": len(rest) / (rest[-1] - first), "itl": itl_ms}


if __name__ == "__main__":
    main()
