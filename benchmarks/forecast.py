"""How far forecasts are from what is measured: peak memory, TTFT, tokens per second, and the order of candidates.

Real candidates of several architectures (the demo model, and small Llama, Qwen2, Mistral and Gemma-3 shapes with random
weights) run in this process, their engine's default space each. On a CPU memory is what the tensors of model and cache
hold; beside it stands the most that PyTorch's allocator had given out at once, which is what a peak on a GPU is. The
rank correlation is Spearman's of predicted with measured utility within a model, then the mean over models.

`--results DIR` reads the records of sweeps instead; `--quick` takes two small models, few candidates, short prompts.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from output import Figure, make_parser, print_table, write_figures
from overhead import demo_model
from torch.profiler import ProfilerActivity, profile

from kvray.analysis.aggregate import Metrics
from kvray.analysis.score import utility
from kvray.candidate import CacheStrategy, Candidate, DeviceType
from kvray.config import TuneConfig
from kvray.engines.base import ModelRequest
from kvray.engines.transformers import TransformersAdapter
from kvray.engines.transformers.loaded import TransformersModel
from kvray.errors import KvrayError, sentence_of
from kvray.forecast.memory import MIB
from kvray.forecast.prediction import CellForecast
from kvray.store.parquet import ResultsStore
from kvray.trial.measure import decode_tok_s, ttft_ms
from kvray.tuning.preview import Preview, preview_sweep
from kvray.tuning.resolved import check_request, resolve, with_measured_rates
from kvray.workload import Cell, WorkloadProfile, create_custom_profile

NEAR = 0.10
RUNS = 3
SIZES: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 512},
    "gemma3_text": {"head_dim": 64, "sliding_window": 256, "hidden_activation": "gelu_pytorch_tanh"},
}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One cell, predicted and measured. MiB, ms, tokens per second; `None`: not known.

    Attributes:
        peak: predicted and measured, of what the module says.
        allocated: the same for the allocator's highest.
    """

    model: str
    candidate: Candidate
    predicted: Metrics
    measured: Metrics
    peak: tuple[float, float] | None
    allocated: tuple[float, float] | None = None


class WatchedModel(TransformersModel):
    """Says what its tensors hold."""

    def held_mib(self) -> float:
        """Memory of the weights, and of the cache after the last generation."""
        return (self._weight_bytes() + (self.kv_cache_bytes() or 0)) / MIB

    def allocated_mib(self, cell: Cell) -> float:
        """Most that PyTorch's allocator had given out at once in a generation for `cell`, its cache made anew."""
        self._drop_cache()
        self._cell = None

        def generate() -> None:
            self.prepare(cell)
            self.generate(2)

        return (self._weight_bytes() + highest_allocated_bytes(generate)) / MIB

    def _weight_bytes(self) -> int:
        return sum(int(one.numel() * one.element_size()) for one in self._model.parameters())


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--results", metavar="DIR", help="results folder whose records are read")
    arguments = parser.parse_args()
    workload = create_custom_profile(
        "forecast",
        context_lengths=(128, 256) if arguments.quick else (256, 1024),
        output_lengths=(16,),
        weight_ttft=0.4,
        weight_throughput=0.4,
        weight_memory=0.2,
    )
    if arguments.results:
        pairs, workload = read(ResultsStore(arguments.results), workload)
    else:
        pairs = measure_all(workload, quick=arguments.quick)
    report(pairs)
    write_figures(arguments.json, figures(pairs, workload), quick=arguments.quick)


def measure_all(workload: WorkloadProfile, *, quick: bool) -> list[Pair]:
    """All models; of each the default space."""
    pairs: list[Pair] = []
    with tempfile.TemporaryDirectory() as folder:
        models = {} if quick else {"demo": demo_model()}
        for model_type, changes in list(ARCHITECTURES.items())[:: 3 if quick else 1]:
            models[model_type] = f"random:{write_config(Path(folder) / model_type, model_type, changes)}"
        for name, model_id in models.items():
            preview = previewed(model_id, workload)
            for candidate in preview.space.candidates[:: 2 if quick else 1]:
                pairs += measured(name, model_id, candidate, preview)
    return pairs


def write_config(folder: Path, model_type: str, changes: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **SIZES, **changes}))
    return folder


def previewed(model_id: str, workload: WorkloadProfile) -> Preview:
    config = TuneConfig(model_id=model_id, profile=workload)
    return preview_sweep(with_measured_rates(resolve(check_request(config, TransformersAdapter()))))


def measured(name: str, model_id: str, candidate: Candidate, preview: Preview) -> list[Pair]:
    """Every cell of one candidate; what cannot be run is said and left out."""
    device = preview.device.device
    try:
        model = WatchedModel(ModelRequest(model_id=model_id), candidate, device)
        pairs = [
            measured_cell(name, model, candidate, one, preview)
            for one in preview.forecasts[candidate.candidate_id].cells
        ]
        model.close()
    except KvrayError as error:
        print(f"{name} {candidate.label}: {sentence_of(error)}", file=sys.stderr)
        return []
    print(f"{name} {candidate.label}", file=sys.stderr, flush=True)
    return pairs


def measured_cell(
    name: str, model: WatchedModel, candidate: Candidate, forecast: CellForecast, preview: Preview
) -> Pair:
    cell, device, costs = forecast.cell, preview.device.device, preview.costs
    if costs is None:
        raise KvrayError(f"{name} cannot be forecast")
    model.prepare(cell)
    model.generate(cell.output_tokens)
    model.reset_peak_memory()
    runs = [model.generate(cell.output_tokens) for _ in range(RUNS)]
    need, allocated = costs.memory(candidate, cell, device), None
    if device is DeviceType.CUDA:
        peak = (need.peak / MIB, model.peak_memory_mib() or 0.0)
    else:
        peak = (forecast.held_mib, model.held_mib())
        if candidate.cache is not CacheStrategy.PAGED:  # another thread works for it
            allocated = (need.peak / MIB, model.allocated_mib(cell))
    return Pair(
        model=name,
        candidate=candidate,
        predicted=metrics(forecast.ttft_ms, forecast.decode_tok_s, peak[0]),
        measured=metrics(
            statistics.median(ttft_ms(one) for one in runs),
            statistics.median(decode_tok_s(one, cell.batch_size) for one in runs),
            peak[1],
        ),
        peak=peak,
        allocated=allocated,
    )


def metrics(first_ms: float | None, tok_s: float | None, peak_mib: float | None) -> Metrics:
    gap_ms = 0.0 if tok_s is None else 1e3 / tok_s
    return Metrics(
        ttft_ms=first_ms or 0.0,
        itl_p50_ms=gap_ms,
        itl_p95_ms=gap_ms,
        itl_p99_ms=gap_ms,
        decode_tok_s=tok_s or 0.0,
        peak_mib=peak_mib,
    )


def read(store: ResultsStore, workload: WorkloadProfile) -> tuple[list[Pair], WorkloadProfile]:
    """One pair for each measured record that has a forecast; the weights are those of the last sweep's profile."""
    pairs = []
    for run_id in store.run_ids():
        workload = store.read_manifest(run_id).profile
        for record in (one.record for one in store.read(run_id)):
            if record.ttft_ms is None or record.forecast_ttft_ms is None:
                continue
            peaks = (record.forecast_peak_mib, record.peak_mib)
            pairs.append(
                Pair(
                    model=f"{record.model_id} {record.profile} rung {record.rung}",
                    candidate=record.candidate,
                    predicted=metrics(record.forecast_ttft_ms, record.forecast_decode_tok_s, peaks[0]),
                    measured=metrics(record.ttft_ms, record.decode_tok_s, peaks[1]),
                    peak=None if peaks[0] is None or peaks[1] is None else (peaks[0], peaks[1]),
                )
            )
    return pairs, workload


def report(pairs: Sequence[Pair]) -> None:
    print_table(
        "Predicted ÷ measured, median over cells",
        ("model", "candidate", "cells", "TTFT", "tok/s", "peak", "allocator's peak"),
        [
            (
                model,
                label,
                len(group),
                middle(one.predicted.ttft_ms / one.measured.ttft_ms for one in group),
                middle(one.predicted.decode_tok_s / one.measured.decode_tok_s for one in group),
                middle(one.peak[0] / one.peak[1] for one in group if one.peak),
                middle(one.allocated[0] / one.allocated[1] for one in group if one.allocated),
            )
            for (model, label), group in grouped(pairs, lambda one: (one.model, one.candidate.label))
        ],
    )


def figures(pairs: Sequence[Pair], workload: WorkloadProfile) -> dict[str, Figure]:
    ranks = {model: rank_correlation(group, workload) for model, group in grouped(pairs, lambda one: one.model)}
    known = [value for value in ranks.values() if value is not None]
    made: dict[str, Figure] = {
        "cells": len(pairs),
        "peak_within_10pct_share": near_share(one.peak for one in pairs),
        "allocated_within_10pct_share": near_share(one.allocated for one in pairs),
        "rank_correlation": statistics.mean(known) if known else None,
        "ttft_ratio_p50": middle(one.predicted.ttft_ms / one.measured.ttft_ms for one in pairs),
        "decode_ratio_p50": middle(one.predicted.decode_tok_s / one.measured.decode_tok_s for one in pairs),
    }
    print_table("All", ("figure", "value"), list(made.items()))
    print_table("Rank correlation of utility", ("model", "Spearman"), list(ranks.items()))
    return {**made, **{f"rank_correlation_{Path(model).name}": value for model, value in ranks.items()}}


def rank_correlation(pairs: Sequence[Pair], workload: WorkloadProfile) -> float | None:
    """Spearman's, of the candidates of one model by their mean utility over cells; `None` for fewer than three."""
    by_candidate = [group for _, group in grouped(pairs, lambda one: one.candidate.candidate_id)]
    if len(by_candidate) < 3:
        return None
    predicted = [statistics.mean(utility(one.predicted, workload) for one in group) for group in by_candidate]
    real = [statistics.mean(utility(one.measured, workload) for one in group) for group in by_candidate]
    return float(np.corrcoef(ranked(predicted), ranked(real))[0, 1])


def ranked(values: Sequence[float]) -> list[float]:
    """Ranks, equal values sharing their mean."""
    return [sum(other < value for other in values) + sum(other == value for other in values) / 2 for value in values]


def near_share(pairs: Iterable[tuple[float, float] | None]) -> float | None:
    known = [pair for pair in pairs if pair is not None]
    return sum(abs(guess / real - 1) <= NEAR for guess, real in known) / len(known) if known else None


def middle(values: Iterable[float]) -> float | None:
    listed = list(values)
    return statistics.median(listed) if listed else None


def grouped(pairs: Sequence[Pair], key: Callable[[Pair], Any]) -> list[tuple[Any, list[Pair]]]:
    return [(one, [pair for pair in pairs if key(pair) == one]) for one in dict.fromkeys(map(key, pairs))]


def highest_allocated_bytes(work: Callable[[], object]) -> int:
    """Most bytes of tensors made in `work` that were alive at once, by the profiler's account of the CPU allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    with tempfile.NamedTemporaryFile(suffix=".json") as trace:
        seen.export_chrome_trace(trace.name)
        events = json.loads(Path(trace.name).read_bytes())["traceEvents"]
    changes = [event["args"] for event in events if event.get("name") == "[memory]"]
    begin = int(changes[0]["Total Allocated"]) - int(changes[0]["Bytes"])
    return max(int(one["Total Allocated"]) for one in changes) - begin


if __name__ == "__main__":
    main()
