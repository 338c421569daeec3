"""What quality loss looks like: exact paths, other dtypes, quantised caches, and caches with a planted bug.

The default limit (`kvray.workload.MAX_QUALITY_LOSS`) was chosen from this table. Quantised caches need the packages
optimum-quanto and hqq; a row that cannot be had says why. Then what measuring quality takes of a ci-micro trial.
`--quick` leaves all but three rows out. `--engine llama_cpp` measures every type of llama.cpp's cache instead
(`kv_types.py`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from output import Figure, make_parser, print_table, write_figures
from overhead import demo_model
from transformers import DynamicCache, QuantizedCache

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.engines.base import ModelRequest
from kvray.engines.transformers import TransformersAdapter
from kvray.engines.transformers.loaded import TransformersModel
from kvray.errors import KvrayError, sentence_of
from kvray.record import Role
from kvray.trial.protocol import TrialProtocol
from kvray.trial.quality import QualityLoss, Reference, compare, forced_tokens, summarize
from kvray.trial.reference import quality_cell, reference_path, save_reference
from kvray.trial.spec import ReferenceSpec, TrialSpec
from kvray.workload import Cell, get_profile

SINK_TOKENS = 4
MakeCache = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row: a configuration, or a cache that no candidate names."""

    name: str
    cache: CacheStrategy = CacheStrategy.DYNAMIC
    attention: AttentionBackend = AttentionBackend.SDPA
    dtype: DType = DType.FLOAT32
    make_cache: MakeCache | None = None

    @property
    def candidate(self) -> Candidate:
        """The configuration, but for the cache that none names."""
        return Candidate(engine="transformers", cache=self.cache, attention=self.attention, dtype=self.dtype)


class ShiftedCache(DynamicCache):
    """A planted bug: keys lie one place beside their values."""

    def update(self, *arguments: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Roll what a right cache returns."""
        keys, values = super().update(*arguments, **options)
        return keys.roll(1, dims=-2), values


class SinklessCache(DynamicCache):
    """A planted bug: the first tokens are gone once the prompt is read."""

    def update(self, keys: Any, values: Any, layer: int, *arguments: Any, **options: Any) -> tuple[Any, Any]:
        """Drop them from what is kept, not from what the prompt itself sees."""
        is_first = self.get_seq_length(layer) == 0
        seen: tuple[Any, Any] = super().update(keys, values, layer, *arguments, **options)
        kept = self.layers[layer]
        if is_first and not getattr(kept, "is_sliding", False):  # a window drops them by itself
            kept.keys, kept.values = kept.keys[..., SINK_TOKENS:, :], kept.values[..., SINK_TOKENS:, :]
        return seen


def quantised(backend: str, **options: Any) -> MakeCache:
    return lambda config: QuantizedCache(backend=backend, config=config, **options)


CASES = (
    Case(name="dynamic, again"),
    Case(name="static", cache=CacheStrategy.STATIC),
    Case(name="bfloat16", dtype=DType.BFLOAT16),
    Case(name="eager", attention=AttentionBackend.EAGER),
    Case(name="sdpa_math", attention=AttentionBackend.SDPA_MATH),
    Case(name="fp8", make_cache=quantised("fp8")),
    Case(name="hqq 8 bit", make_cache=quantised("hqq", nbits=8, axis_key=1, axis_value=1)),
    Case(name="hqq 4 bit", make_cache=quantised("hqq", nbits=4, axis_key=1, axis_value=1)),
    Case(name="hqq 2 bit", make_cache=quantised("hqq", nbits=2, axis_key=1, axis_value=1)),
    Case(name="quanto 4 bit", make_cache=quantised("quanto", nbits=4)),
    Case(name="quanto 2 bit", make_cache=quantised("quanto", nbits=2)),
    Case(name="bug: keys shifted by one", make_cache=lambda config: ShiftedCache(config=config)),
    Case(name="bug: sink dropped", make_cache=lambda config: SinklessCache(config=config)),
)
QUICK = 3


class CaseModel(TransformersModel):
    """A model that runs a case's own cache."""

    def __init__(self, model: str, case: Case) -> None:
        super().__init__(ModelRequest(model_id=model), case.candidate, DeviceType.CPU)
        self._make_cache = case.make_cache

    def _fresh_cache(self) -> None:
        if self._make_cache is None:
            super()._fresh_cache()
        else:
            self._cache = self._make_cache(self._text_config)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("models", nargs="*", help="GGUF files or folders; by default the demo's")
    parser.add_argument("--context", type=int, default=512, help="tokens of context (Transformers)")
    parser.add_argument("--engine", choices=("transformers", "llama_cpp"), default="transformers")
    parser.add_argument("--no-speed", action="store_true", help="leave speed and memory out (llama_cpp)")
    arguments = parser.parse_args()
    if arguments.engine == "llama_cpp":
        from kv_types import measure_types

        measure_types(arguments)
    else:
        measure_cases(arguments)


def measure_cases(arguments: argparse.Namespace) -> None:
    """The tables of Transformers, and their figures."""
    cell, figures, models = Cell(arguments.context, 16, 1), dict[str, Figure](), arguments.models or [demo_model()]
    for model in models:
        name = Path(model).stem
        losses = measure(model, cell, CASES[:QUICK] if arguments.quick else CASES)
        print_table(
            f"{name}: loss against dynamic/sdpa/float32, {forced_tokens(cell)} tokens forced, cell {cell.label}",
            ("configuration", "KL, nats", "of decoded", "ΔNLL, nats", "its standard error", "top-1 agreement"),
            [(case, *_row(loss)) for case, loss in losses.items()],
        )
        for case, loss in losses.items():
            key = f"{name}_{case}".replace(":", "").replace(",", "").replace(" ", "_").lower()
            values = {} if isinstance(loss, str) else vars(loss)
            figures |= {f"{key}_{field}": value for field, value in values.items()}
    share = share_of_trial(models[0])
    print(f"\nmeasuring quality took {share * 100:.1f} % of a ci-micro trial of {Path(models[0]).name}")
    figures["quality_share_of_trial"] = share
    write_figures(arguments.json, figures, quick=arguments.quick)


def measure(model: str, cell: Cell, cases: Sequence[Case]) -> dict[str, QualityLoss | str]:
    """The loss of each case, or why it has none."""
    reference = summarize(_forced(model, Case(name="reference"), cell))
    losses = {}
    for case in cases:
        losses[case.name] = _loss(model, case, cell, reference)
        print(f"{case.name}: {losses[case.name]}", file=sys.stderr, flush=True)
    return losses


def share_of_trial(model: str) -> float:
    """Seconds of measuring quality over all in which a ci-micro trial of the baseline is busy."""
    case = Case(name="baseline")
    adapter, request, device = TransformersAdapter(), ModelRequest(model_id=model), DeviceType.CPU
    info = adapter.identify_model(request, adapter.describe_model(request))
    reference = ReferenceSpec(candidate=case.candidate, model_revision=info.revision)
    spec = TrialSpec(
        run_id="benchmark",
        trial_id="quality",
        role=Role.BASELINE,
        request=request,
        candidate=case.candidate,
        profile=get_profile("ci-micro"),
        device=device,
        timeout_s=600.0,
        reference=reference,
    )
    save_reference(_reference(model, case, quality_cell(spec)), reference_path(spec, reference))
    trial = TrialProtocol(
        spec, adapter, emit=lambda _: None, may_continue=lambda: True, device_memory_mib=lambda _: None
    )
    trial.run()
    return (trial.facts.quality_s or 0.0) / trial.facts.busy_s


def _loss(model: str, case: Case, cell: Cell, reference: Reference) -> QualityLoss | str:
    try:
        return compare(reference, _forced(model, case, cell))
    except KvrayError as error:
        return sentence_of(error)


def _forced(model: str, case: Case, cell: Cell) -> Any:
    loaded = CaseModel(model, case)
    loaded.prepare(cell)
    return loaded.forced_log_probabilities(loaded.forced_text(forced_tokens(cell)))


def _reference(model: str, case: Case, cell: Cell) -> Reference:
    loaded = CaseModel(model, case)
    loaded.prepare(cell)
    text = loaded.forced_text(forced_tokens(cell))
    return summarize(loaded.forced_log_probabilities(text), text)


def _row(loss: QualityLoss | str) -> tuple[str, ...]:
    if isinstance(loss, str):
        return (loss[:60], "–", "–", "–", "–")
    return (
        f"{loss.kl_mean:.2g}",
        f"{loss.kl_decode:.2g}",
        f"{loss.nll_delta:+.2g}",
        f"{loss.nll_delta_se:.2g}",
        f"{loss.top1_agreement * 100:.1f} %",
    )


if __name__ == "__main__":
    main()
