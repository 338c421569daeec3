"""A scripted model and a trial specification, for tests of the protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.engines.base import (
    OBSERVED_TOKENS,
    Compilation,
    ForcedText,
    ForcedToken,
    Generation,
    LoadedModel,
    ModelRequest,
    Observed,
)
from kvray.probes.disturbance import Conditions, RunWatch, TrialWatch
from kvray.record import Role
from kvray.testing.fake import FakeAdapter
from kvray.trial.spec import TrialSpec
from kvray.workload import Cell, WorkloadProfile, create_custom_profile


def profile_of(**changes: Any) -> WorkloadProfile:
    values: dict[str, Any] = {
        "name": "sample",
        "context_lengths": (24, 48),
        "output_lengths": (4, 20),
        "repeats": 3,
        "weight_ttft": 0.4,
        "weight_throughput": 0.4,
        "weight_memory": 0.2,
    }
    return create_custom_profile(**{**values, **changes})


def candidate_of(**changes: Any) -> Candidate:
    values: dict[str, Any] = {
        "engine": "fake",
        "cache": CacheStrategy.DYNAMIC,
        "attention": AttentionBackend.SDPA,
        "dtype": DType.FLOAT32,
    }
    return Candidate(**{**values, **changes})


def spec_of(
    model_id: str = "fake:ok", *, timeout_s: float = 20.0, profile: WorkloadProfile | None = None, **changes: Any
) -> TrialSpec:
    candidate = candidate_of(**changes)
    return TrialSpec(
        run_id="20260101-000000-test",
        trial_id=f"0000-{candidate.candidate_id}",
        role=Role.SEARCH,
        request=ModelRequest(model_id=model_id),
        candidate=candidate,
        profile=profile or profile_of(),
        device=DeviceType.CPU,
        timeout_s=timeout_s,
    )


class Clock:
    """Stands still unless told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class ScriptedWatch(TrialWatch):
    """Says of the runs in turn what it was told; then that all is calm."""

    def __init__(self, *disturbances: str | None, energy_j: float | None = None) -> None:
        super().__init__(DeviceType.CPU)
        self._disturbances = list(disturbances)
        self._energy_j = energy_j

    def start_run(self) -> RunWatch:
        disturbance = self._disturbances.pop(0) if self._disturbances else None
        return ScriptedRunWatch(self, Conditions(disturbance=disturbance, energy_j=self._energy_j))


class ScriptedRunWatch(RunWatch):
    def __init__(self, trial: TrialWatch, conditions: Conditions) -> None:
        super().__init__(trial)
        self._conditions = conditions

    def finish(self) -> Conditions:
        return self._conditions


class Scripted(LoadedModel):
    """A model on a clock of its own: first tokens take `ttfts` seconds in turn (the last one for ever after).

    Every call moves `clock` on by its TTFT, and everything else (loading, preparing, observing) by 1000 s.
    """

    def __init__(
        self,
        ttfts: Iterable[float] = (1.0,),
        observed: Observed | None = None,
        clock: Clock | None = None,
        compilation: Compilation | None = None,
    ) -> None:
        self.clock = clock or Clock()
        self.calls: list[str] = []
        self._ttfts = list(ttfts)
        self._observed = observed or Observed(cache_class="Scripted")
        self._compilation = compilation
        self.cell = Cell(1, 1, 1)
        self.probability = 0.5
        """Probability of token 0, one of two, in `forced_log_probabilities`."""

    def prepare(self, cell: Cell) -> None:
        self.calls.append(f"prepare {cell.label}")
        self.clock.now_s += 1000.0
        self.cell = cell

    def compilation(self) -> Compilation | None:
        return self._compilation

    def generate(self, output_tokens: int) -> Generation:
        self.calls.append(f"generate {output_tokens}")
        ttft = self._ttfts.pop(0) if len(self._ttfts) > 1 else self._ttfts[0]
        self.clock.now_s += ttft
        stamps = tuple(ttft + 0.1 * number for number in range(output_tokens))
        return Generation(started_s=0.0, token_s=stamps, tokens=(tuple(range(output_tokens)),) * self.cell.batch_size)

    def observe(self, output_tokens: int = OBSERVED_TOKENS) -> Observed:
        self.calls.append(f"observe {output_tokens}")
        self.clock.now_s += 1000.0
        return self._observed

    def forced_text(self, forced: int) -> ForcedText:
        return ForcedText(ids=(0,) * (self.cell.context_tokens + self.cell.output_tokens), forced=forced)

    def forced_log_probabilities(self, text: ForcedText) -> Iterator[ForcedToken]:
        self.calls.append(f"force {text.forced}")
        for place in range(text.forced):
            with np.errstate(divide="ignore"):
                yield place, 0, np.log(np.array([[self.probability, 1 - self.probability]], dtype=np.float32))

    def kv_cache_bytes(self) -> int | None:
        return 2 * 1024 * 1024

    def reset_peak_memory(self) -> None:
        self.calls.append("reset_peak")

    def peak_memory_mib(self) -> float | None:
        self.calls.append("peak")
        return 64.0

    def reserved_memory_mib(self) -> float | None:
        return 96.0

    def count_tokens(self, text: str) -> int:
        return len(text)

    def complete(self, text: str, max_new_tokens: int) -> str:
        return text

    def close(self) -> None:
        self.calls.append("close")


class Stamping(Scripted):
    """Its observed generations have time stamps."""

    def observe(self, output_tokens: int = OBSERVED_TOKENS) -> Observed:
        seen, generation = super().observe(output_tokens), self.generate(output_tokens)
        del self.calls[-1]
        self.clock.now_s -= 1.0  # within the thousand seconds of observing
        return replace(seen, generation=generation)


class ScriptedAdapter(FakeAdapter):
    """Loads the scripted model it was given."""

    def __init__(self, model: Scripted) -> None:
        self.model = model

    def load(self, *arguments: object, **options: object) -> LoadedModel:
        self.model.clock.now_s += 1000.0
        return self.model
