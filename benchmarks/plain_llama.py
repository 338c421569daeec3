"""How a user times llama.cpp's C API: the binding and a clock, nothing of kvray. Run by `fidelity.py`.

Its argument is JSON: model (a GGUF file), text (a file), flash, type_k, type_v, threads, cells, repeats.
"""

import ctypes
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np


def main() -> None:
    asked = json.loads(sys.argv[1])
    silence()
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(asked["model"].encode(), llama_cpp.llama_model_default_params())
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    text = tokenize(vocabulary, Path(asked["text"]).read_bytes())
    runs: list[dict[str, Any]] = []
    for context, tokens in asked["cells"]:
        session = llama_cpp.llama_init_from_model(model, parameters(asked, context + tokens))
        for repeat in range(-2, asked["repeats"]):  # two calls to warm up
            run = generate(session, text[:context], tokens, words=llama_cpp.llama_vocab_n_tokens(vocabulary))
            runs += [{"cell": [context, tokens], **run}] if repeat >= 0 else []
        threads = llama_cpp.llama_n_threads(session)
        llama_cpp.llama_free(session)
    print(json.dumps({"threads": threads, "runs": runs}))


NOBODY = llama_cpp.llama_log_callback(lambda *_: None)


def silence() -> None:
    """What the library says is for nobody."""
    llama_cpp.llama_log_set(NOBODY, None)


def parameters(asked: dict[str, Any], tokens: int) -> Any:
    """What `llama-cli` and `llama-server` start from, with what was asked."""
    given = llama_cpp.llama_context_default_params()
    given.n_ctx, given.n_batch, given.n_ubatch = tokens, 2048, 512
    given.n_threads = given.n_threads_batch = asked["threads"]
    given.flash_attn_type = int(asked["flash"])
    given.type_k, given.type_v = (
        getattr(llama_cpp, f"GGML_TYPE_{asked[name].upper()}") for name in ("type_k", "type_v")
    )
    given.swa_full = False
    return given


def tokenize(vocabulary: Any, text: bytes) -> list[int]:
    ids = (llama_cpp.llama_token * len(text))()
    count = llama_cpp.llama_tokenize(vocabulary, text, len(text), ids, len(text), True, False)
    return list(ids[:count])


def generate(session: Any, prompt: list[int], tokens: int, *, words: int) -> dict[str, float]:
    """Greedily, from an empty cache."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(session), False)
    stamps, fed = [], prompt
    started = time.perf_counter()
    for _ in range(tokens):
        ids = (llama_cpp.llama_token * len(fed))(*fed)
        if llama_cpp.llama_decode(session, llama_cpp.llama_batch_get_one(ids, len(fed))) != 0:
            sys.exit("llama_decode failed")
        logits = llama_cpp.llama_get_logits_ith(session, -1)  # waits until they are there
        fed = [int(np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (words,)).argmax())]
        stamps.append(time.perf_counter())
    first, *rest = stamps
    itl_ms = statistics.median(b - a for a, b in itertools.pairwise(stamps)) * 1e3
    return {"ttft": (first - started) * 1e3, "decode": len(rest) / (rest[-1] - first), "itl": itl_ms}


if __name__ == "__main__":
    main()
