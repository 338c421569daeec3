"""One ranking over all engines that are here: SmolLM2's GGUF file on ci-micro, as a user starts it.

It says what the sweep took, how much of that was kvray's own (not loading, warming up or measuring), and how much
better the best found of each engine is than what that engine does with nothing set. The ratio is that of the scores:
the geometric mean of TTFT, tok/s and peak memory with the profile's weights. vLLM takes part where `make vllm-env` has
made its environment. `--quick` measures short prompts and does not confirm.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from output import Figure, make_parser, print_table, write_figures
from overhead import demo_model

from kvray.analysis.ranking import RankedCandidate
from kvray.engines.base import ModelRequest
from kvray.engines.transformers import TransformersAdapter
from kvray.store.parquet import ResultsStore
from kvray.tuning.result import TuneResult, read_result

VLLM_PYTHON = Path(__file__).parent.parent / ".venv-vllm" / "bin" / "python"


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--engine", default="transformers,llama_cpp,vllm", help="engines, the first is the baseline's")
    parser.add_argument("--vllm-python", type=Path, default=VLLM_PYTHON, help="the Python that holds vLLM")
    arguments = parser.parse_args()
    engines = [name for name in arguments.engine.split(",") if name != "vllm" or arguments.vllm_python.exists()]
    # A GGUF file is converted once in a machine's life, so that is not part of a sweep's seconds.
    TransformersAdapter().describe_model(ModelRequest(model_id=demo_model()))
    command = [sys.executable, "-m", "kvray", "tune", demo_model(), "--profile", "ci-micro", "--json"]
    command += ["--engine", ",".join(engines)]
    if "vllm" in engines:
        command += ["--engine-python", f"vllm={arguments.vllm_python}"]
    if arguments.quick:
        command += ["--context", "64", "--output-len", "8", "--confirm", "0"]
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        done = subprocess.run([*command, "--output", folder], stdout=subprocess.PIPE, text=True, check=True)
        wall_s = time.monotonic() - started
        result = read_result(ResultsStore(folder), json.loads(done.stdout)["run_id"])
    write_figures(arguments.json, report(result, wall_s), quick=arguments.quick)


def report(result: TuneResult, wall_s: float) -> dict[str, Figure]:
    """The tables for people, and the figures."""
    ranked = result.analysis.ranking.entries
    print_table(
        f"One ranking of {', '.join(result.manifest.engines)}",
        ("rank", "candidate", "score", "TTFT ms", "tok/s", "peak MiB", "KL"),
        [_row(entry) for entry in ranked],
    )
    ratios = {
        one.engine: math.exp(one.best.utility - one.default.utility)
        for one in result.analysis.engines
        if one.default is not None and one.default.utility is not None
    }
    print_table(
        "Best found of each engine ÷ what it does with nothing set, by score",
        ("engine", "best found", "ratio"),
        [(one.engine, one.best.record.candidate.label, ratios.get(one.engine, "–")) for one in result.analysis.engines],
    )
    launched = [one.record for one in result.results if one.record.status.was_launched]
    busy_s = sum(one.busy_s or 0.0 for one in launched)
    print(f"\n{wall_s:.0f} s for {len(launched)} trials, {1 - busy_s / wall_s:.0%} of it not in measuring processes")
    return {
        "engines": ",".join(result.manifest.engines),
        "wall_s": wall_s,
        "busy_s": busy_s,
        "own_share": 1 - busy_s / wall_s,
        "trials": len(launched),
        "ranked": len(ranked),
        "winner": ranked[0].record.candidate.label,
        **{f"best_over_default_{engine}": ratio for engine, ratio in ratios.items()},
        **{f"best_{one.engine}": one.best.record.candidate.label for one in result.analysis.engines},
        **{f"trials_{name}": sum(one.engine == name for one in launched) for name in result.manifest.engines},
    }


def _row(entry: RankedCandidate) -> tuple[object, ...]:
    metrics, kl = entry.metrics, entry.record.kl_mean
    kl_text = "–" if kl is None else f"{kl:.2g}"
    figures = (entry.score, metrics.ttft_ms, metrics.decode_tok_s, metrics.peak_mib or 0.0)
    return (entry.rank, entry.record.candidate.label, *figures, kl_text)


if __name__ == "__main__":
    main()
