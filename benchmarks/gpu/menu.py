"""The menu on one GPU, in one call on a bare host: real architectures with random weights, so that speed and memory
are real and quality is not.

For each model a whole sweep, then: how every trial ended, TTFT, tok/s, memory, and the share of the device's copy
bandwidth that decoding reaches: (bytes of weights + bytes of the cache) × tok/s ÷ bandwidth, at batch 1. Beside it the
allocator's peak of a plain `generate` in a process without kvray.

    python benchmarks/gpu/menu.py [--models llama_3_2_1b,qwen2_5_0_5b] [--full] [--json FILE]

The largest model is measured on request, with compiled static caches only: `--models llama_3_1_8b`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from output import Figure, make_parser, print_table, write_figures
from transformers import AutoConfig, AutoModelForCausalLM

from kvray.candidate import DeviceType
from kvray.config import SearchStrategy, TuneConfig
from kvray.engines.transformers import TransformersAdapter
from kvray.record import Role, TrialRecord
from kvray.tuning.result import TuneResult
from kvray.tuning.search import TuningSearch
from kvray.workload import WorkloadProfile, create_custom_profile

MODELS = Path(__file__).parent / "models"
DEFAULT_MODELS = "llama_3_2_1b,qwen2_5_0_5b"
COMPILED_ONLY = ("llama_3_1_8b",)
MIB = 2**20
COPY_BYTES = 2**30
PLAIN = """
import sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
folder, device, context, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
config = AutoConfig.from_pretrained(folder)
with torch.device(device):
    model = AutoModelForCausalLM.from_config(config, dtype=config.dtype or torch.float32).eval()
prompt = torch.randint(0, config.vocab_size, (1, context), device=device)
model.generation_config.eos_token_id = None
for _ in range(2):
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False)
print(torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else 0.0)
"""


def main() -> None:
    arguments = parse()
    figures: dict[str, Figure] = {}
    if arguments.print_bandwidth:
        print(copy_bandwidth(arguments.device))
        return
    # In a process of its own: one that holds the GPU would disturb every run of the sweep.
    bandwidth = printed_number([__file__, "--print-bandwidth", "--device", arguments.device])
    figures["copy_gb_s"] = bandwidth / 1e9
    for name in arguments.models.split(","):
        folder = Path(name) if Path(name).is_dir() else MODELS / name
        with tempfile.TemporaryDirectory() as results:
            result = sweep(folder, results, arguments)
        figures |= report(folder, result, bandwidth, arguments.device)
    write_figures(arguments.json, figures, quick=arguments.quick)


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--models", default=DEFAULT_MODELS, help="names under models/, or folders with a config.json")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--full", action="store_true", help="the full space instead of the default one")
    parser.add_argument("--print-bandwidth", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def workload(quick: bool) -> WorkloadProfile:
    return create_custom_profile(
        "gpu-menu",
        context_lengths=(64,) if quick else (512, 2048),
        output_lengths=(16,) if quick else (128,),
        repeats=2 if quick else 3,
        weight_ttft=0.4,
        weight_throughput=0.4,
        weight_memory=0.2,
    )


def sweep(folder: Path, results: str, arguments: argparse.Namespace) -> TuneResult:
    narrowed = {"caches": ("dynamic", "static"), "attentions": ("sdpa",), "compiles": ("off", "reduce-overhead")}
    config = TuneConfig(
        model_id=f"random:{folder}",
        profile=workload(arguments.quick),
        device=DeviceType(arguments.device),
        output_dir=results,
        space="full" if arguments.full else "default",
        search=SearchStrategy.ASHA,  # the whole menu is wanted, not only its best
        confirm_rounds=0,
        **(narrowed if folder.name in COMPILED_ONLY else {}),
    )
    return TuningSearch(config=config, adapter=TransformersAdapter()).run()


def report(folder: Path, result: TuneResult, bandwidth: float, device: str) -> dict[str, Figure]:
    records = [one.record for one in result.results if one.record.status.was_launched]
    weights = weight_bytes(folder)
    rows = [row(one, weights, bandwidth) for one in sorted(records, key=lambda one: -(one.decode_tok_s or 0))]
    heads = ("candidate", "status", "TTFT ms", "tok/s", "peak MiB", "reserved", "NVML", "roofline", "decode kernel")
    print_table(folder.name, heads, rows)
    for one in records:
        if one.status.is_failure:
            print(f"  {one.candidate.label}: {one.status}: {one.message}")
    baseline = next(one for one in records if one.role is Role.BASELINE)
    best = max(records, key=lambda one: one.decode_tok_s or 0)
    cell = max(result.manifest.profile.cells(1, rung=2))
    plain_mib = plain_peak_mib(folder, device, cell.context_tokens, cell.output_tokens)
    own = [run.peak_mib for one in result.results if one.record is baseline for run in one.runs if run.cell == cell]
    statuses = Counter(one.status.value for one in records)
    found: dict[str, Figure] = {
        "statuses": json.dumps(statuses),
        "best": best.candidate.label,
        "best_over_default_decode": (best.decode_tok_s or 0) / (baseline.decode_tok_s or 1),
        "best_roofline_share": rows[0][7],
        "peak_over_plain": max(peak or 0.0 for peak in own) / plain_mib if plain_mib and own else None,
    }
    print_table("in short", ("figure", "value"), list(found.items()))
    return {f"{folder.name}_{key}": value for key, value in found.items()}


def row(one: TrialRecord, weights: dict[str, int], bandwidth: float) -> tuple[str | float, ...]:
    moved = weights[one.dtype.value] + (one.kv_cache_mib or 0) * MIB
    return (
        one.candidate.label,
        one.status.value,
        one.ttft_ms or 0.0,
        one.decode_tok_s or 0.0,
        one.peak_mib or 0.0,
        one.reserved_peak_mib or 0.0,
        one.device_peak_mib or 0.0,
        moved * (one.decode_tok_s or 0.0) / one.batch_size / bandwidth,
        one.kernel_decode or "",
    )


def weight_bytes(folder: Path) -> dict[str, int]:
    """Bytes that a token's decoding reads of the weights, by dtype: all but the input embeddings, of which it reads one
    row, unless the output layer is the same table."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    numbers = sum(one.numel() for one in model.parameters())
    if not config.tie_word_embeddings:
        numbers -= model.get_input_embeddings().weight.numel()
    return {"float32": 4 * numbers, "float16": 2 * numbers, "bfloat16": 2 * numbers}


def copy_bandwidth(device: str) -> float:
    """Bytes per second that a copy within the device's memory reads and writes, the best of ten."""
    source = torch.empty(COPY_BYTES // (1 if device == "cuda" else 8), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rates = []
    for _ in range(10):
        seconds = timed_copy(target, source)
        rates.append(2 * int(source.numel()) / seconds)
    return max(rates)


def timed_copy(target: torch.Tensor, source: torch.Tensor) -> float:
    if source.device.type != "cuda":
        started = time.perf_counter()
        target.copy_(source)
        return time.perf_counter() - started
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    target.copy_(source)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def plain_peak_mib(folder: Path, device: str, context: int, tokens: int) -> float:
    return printed_number(["-c", PLAIN, str(folder), device, str(context), str(tokens)])


def printed_number(arguments: list[str]) -> float:
    """The last thing that a Python process with these arguments prints."""
    done = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
