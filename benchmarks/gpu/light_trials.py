"""Single trials for `first_light.py`: one measurement process each, without Ray, and what it left on the device."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvray.candidate import AttentionBackend, CacheChoice, Candidate, CompileMode, DeviceType, DType
from kvray.engines.base import EngineAdapter, LoadedModel, ModelRequest
from kvray.engines.transformers import TransformersAdapter
from kvray.probes.gpu import used_memory_mib, visible_gpus, wait_until_released
from kvray.record import Role, Run, TrialStatus
from kvray.trial.events import RungFinished, TrialEnded, TrialFacts
from kvray.trial.process import Launcher, TrialProcess
from kvray.trial.spec import TrialSpec
from kvray.workload import WorkloadProfile

TIMEOUT_S = 120.0
_numbers = itertools.count()


class HangingAdapter(TransformersAdapter):
    """Loads nothing, and lets the device (or this thread) spin for ever."""

    def load(self, *arguments: object, **options: object) -> LoadedModel:
        """Hang."""
        del arguments, options
        import torch

        if torch.cuda.is_available():
            torch.ones(1, device="cuda")
            torch.cuda._sleep(1 << 62)
            torch.cuda.synchronize()
        while True:
            time.sleep(1.0)


def candidate(
    cache: str = "dynamic",
    *,
    attention: AttentionBackend = AttentionBackend.SDPA,
    dtype: DType,
    compile: str = "off",
    **more: Any,
) -> Candidate:
    choice = CacheChoice.parse(cache)
    return Candidate(
        engine=TransformersAdapter.name,
        cache=choice.strategy,
        cache_params=choice.params,
        attention=attention,
        dtype=dtype,
        compile=CompileMode(compile),
        **more,
    )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one trial ended, and what it measured at full length."""

    status: TrialStatus
    message: str | None
    runs: tuple[Run, ...]
    facts: TrialFacts | None

    @property
    def is_ok(self) -> bool:
        """Whether it came to its end."""
        return self.status is TrialStatus.OK

    @property
    def text(self) -> str:
        """The status with its message, or with the main figures."""
        if self.is_ok:
            return f"ok, TTFT {self.ttft_ms:,.1f} ms, {self.tok_s:,.1f} tok/s, {self.peak_mib or 0:,.0f} MiB"
        return f"{self.status}: {self.message}"[:400]

    @property
    def kernels(self) -> str:
        """What ran in prefill and in decode."""
        seen = self.facts.observed if self.facts else None
        return f"{seen.kernel_prefill} | {seen.kernel_decode}" if seen else "nothing was observed"

    @property
    def caches(self) -> str:
        """The cache's class, layers and dtype, with the main figures."""
        seen = self.facts.observed if self.facts else None
        return f"{self.text}; {seen.cache_class}, {seen.cache_layers}, {seen.kv_dtype}" if seen else self.text

    @property
    def ttft_ms(self) -> float:
        """Median."""
        return statistics.median(run.ttft_ms for run in self._full)

    @property
    def tok_s(self) -> float:
        """Median."""
        return statistics.median(run.decode_tok_s for run in self._full)

    @property
    def peak_mib(self) -> float | None:
        """The highest of any run."""
        return max((run.peak_mib for run in self._full if run.peak_mib is not None), default=None)

    @property
    def device_peak_mib(self) -> float | None:
        """What NVML saw the process hold."""
        return self.facts.device_peak_mib if self.facts else None

    @property
    def device_peak_gpu_mib(self) -> float | None:
        """The same on the fullest GPU."""
        return self.facts.device_peak_gpu_mib if self.facts else None

    @property
    def tokens(self) -> tuple[tuple[int, ...], ...] | None:
        """Those of the sample."""
        return self.facts.sample.tokens if self.facts and self.facts.sample else None

    @property
    def kv_cache_mib(self) -> float | None:
        """What the cache held."""
        return self.facts.kv_cache_mib if self.facts else None

    @property
    def graph_breaks(self) -> int | None:
        """Places where the compiler gave up."""
        return self.facts.compilation.graph_breaks if self.facts and self.facts.compilation else None

    @property
    def compile_s(self) -> float | None:
        """What compiling cost."""
        return self.facts.compile_s if self.facts else None

    @property
    def power_w(self) -> float | None:
        """What NVML said the board drew."""
        return self.facts.device_state.power_w if self.facts else None

    @property
    def energy_j_per_tok(self) -> float | None:
        """Median over the runs."""
        known = [run.energy_j / (run.output_tokens * run.batch_size) for run in self._full if run.energy_j is not None]
        return statistics.median(known) if known else None

    @property
    def energy_w(self) -> float | None:
        """Energy over the seconds of the run, in which it was used."""
        known = [
            run.energy_j / ((run.ttft_ms + sum(run.itl_ms)) / 1e3) for run in self._full if run.energy_j is not None
        ]
        return statistics.median(known) if known else None

    @property
    def _full(self) -> list[Run]:
        return [run for run in self.runs if run.rung != 0]


class Bench:
    """Runs trials of one model one by one.

    Attributes:
        lost_mib: device memory that was held after the worst trial, beyond what was held before the first; `None`
            without a GPU.
    """

    def __init__(
        self,
        folder: Path,
        device: DeviceType,
        scratch: Path,
        *,
        adapter: EngineAdapter | None = None,
        model_id: str | None = None,
    ) -> None:
        self.folder = folder
        self.device = device
        self.scratch = scratch
        self.model_id = model_id or f"random:{folder}"
        self.request = ModelRequest(model_id=self.model_id)
        self.adapter = adapter or TransformersAdapter()
        self.lost_mib: float | None = None
        self._launcher: Launcher | None = None
        self._held_before_mib = self._held_mib()

    @property
    def native(self) -> DType:
        """The model's own dtype."""
        return self.adapter.describe_model(self.request).native_dtype

    def run(self, what: Candidate, profile: WorkloadProfile, *, timeout_s: float = TIMEOUT_S) -> Outcome:
        """One trial with all rungs."""
        spec = TrialSpec(
            run_id="first-light",
            trial_id=f"{next(_numbers)}-{what.candidate_id}",
            role=Role.SEARCH,
            request=self.request,
            candidate=what,
            profile=profile,
            device=self.device,
            timeout_s=timeout_s,
        )
        if self._launcher is None:
            os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
            self._launcher = Launcher(self.adapter)
        process = TrialProcess(self._launcher, spec, self.scratch / f"{spec.trial_id}.log")
        try:
            end = _advance(process)
        finally:
            process.close()
        wait_until_released(process.pids)
        held = self._held_mib()
        if held is not None and self._held_before_mib is not None:
            self.lost_mib = max(self.lost_mib or 0.0, held - self._held_before_mib)
        return Outcome(status=end.status, message=end.message, runs=tuple(process.runs), facts=end.facts)

    def _held_mib(self) -> float | None:
        gpus = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES")) if self.device is DeviceType.CUDA else ()
        return used_memory_mib(gpus[0]) if gpus else None


def _advance(process: TrialProcess) -> TrialEnded:
    while isinstance(event := process.advance(), RungFinished):
        pass
    return event
