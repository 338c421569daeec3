"""One configuration in optimum-benchmark, by the interpreter of an environment that holds it. Run by `fidelity.py`.

Its argument is JSON: model (a folder), dtype, attention, cell, repeats. The inline launcher measures in this process:
the tool's own process launcher waits busily in the parent, which takes a core from what it measures.
"""

import json
import sys

import torch
from optimum_benchmark import Benchmark, BenchmarkConfig, InferenceConfig, InlineConfig, PyTorchConfig


def main() -> None:
    asked = json.loads(sys.argv[1])
    context, tokens = asked["cell"]
    config = BenchmarkConfig(
        name="fidelity",
        launcher=InlineConfig(),
        backend=PyTorchConfig(
            model=asked["model"],
            task="text-generation",
            library="transformers",
            device="cpu",
            torch_dtype=asked["dtype"],
            attn_implementation=asked["attention"],
        ),
        scenario=InferenceConfig(
            iterations=asked["repeats"],
            duration=0,
            warmup_runs=2,
            input_shapes={"batch_size": 1, "sequence_length": context},
            generate_kwargs={"max_new_tokens": tokens, "min_new_tokens": tokens},
        ),
    )
    report = Benchmark.launch(config)
    pairs = zip(report.prefill.latency.values, report.decode.latency.values, strict=True)
    runs = [
        {"cell": asked["cell"], "ttft": prefill * 1e3, "decode": (tokens - 1) / decode} for prefill, decode in pairs
    ]
    print(json.dumps({"threads": torch.get_num_threads(), "runs": runs}))


if __name__ == "__main__":
    main()
