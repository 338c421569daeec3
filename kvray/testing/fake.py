"""An engine without a model: it sleeps as long as a made-up formula says, and misbehaves on command. For tests only.

The model id is `fake:` followed by comma-separated `WHERE=HOW`: in every candidate whose label contains WHERE, do HOW
(see `Misbehaviour`) while measuring, or in the phase given as `HOW@load`. Example: `fake:static=segv,eager=hang@load`.
A model such as `fake:sized` has a shape, so its candidates are forecast. Two environment variables make one side of a
check behave otherwise: `KVRAY_FAKE_SLOWER` and `KVRAY_FAKE_KERNEL`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from kvray.candidate import (
    AttentionBackend,
    AttentionChoice,
    CacheChoice,
    CacheStrategy,
    Candidate,
    CompileMode,
    DeviceType,
    DType,
)
from kvray.engines.base import (
    OBSERVED_TOKENS,
    DeviceFacts,
    EngineAdapter,
    ForcedText,
    ForcedToken,
    Generation,
    LoadedModel,
    ModelInfo,
    ModelRequest,
    Observed,
    TopLogs,
    UnsupportedError,
)
from kvray.errors import ModelError
from kvray.forecast.cost_model import CostModel
from kvray.space.axis import Axis
from kvray.space.constraints import Constraint
from kvray.space.search_space import SpaceBlock
from kvray.testing import fake_axes
from kvray.testing.fake_costs import SHAPE, FakeCosts
from kvray.testing.fake_server import FakeServer
from kvray.testing.misbehaviour import Misbehaviour
from kvray.workload import Cell, WorkloadProfile

PREFIX = "fake:"
SIZED = "sized"
"""The part of a model id that gives the model a shape, so that its candidates are forecast."""
SLOWER_VARIABLE = "KVRAY_FAKE_SLOWER"
"""By which factor everything takes longer."""
KERNEL_VARIABLE = "KVRAY_FAKE_KERNEL"
"""The kernel that a profiler sees in decode."""
PREFILL_S_PER_TOKEN = 2e-6
DECODE_S_PER_TOKEN = 5e-4
MAX_CONTEXT = 4096
VOCABULARY = 32
TOLD_TOKENS = 8
"""The most probable ones that `topk` tells."""
LOSSY_NOISE = 2.0
"""Standard deviation of what `lossy` adds to the logits."""


class FakeAdapter(EngineAdapter):
    """The engine `fake`."""

    name: ClassVar[str] = "fake"
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "torch", "transformers")
    """It computes in the first alone, and records the others as an engine that is none would."""
    is_parallel: ClassVar[bool] = True

    @override
    def check_model(self, request: ModelRequest) -> None:
        _misbehaviours(request.model_id)

    @override
    def describe_model(self, request: ModelRequest) -> ModelInfo:
        self.check_model(request)
        return ModelInfo(
            model_id=request.model_id,
            revision="1",
            architecture="Fake",
            max_context=MAX_CONTEXT,
            native_dtype=DType.FLOAT32,
            shape=SHAPE if SIZED in request.model_id.removeprefix(PREFIX).split(",") else None,
        )

    @override
    def cost_model(self, model: ModelInfo) -> CostModel | None:
        return None if model.shape is None else FakeCosts(model.shape)

    def fetch_weights(self, request: ModelRequest) -> None:
        """Nothing to fetch."""

    @override
    def baseline(self, model: ModelInfo, device: DeviceFacts, *, batch_size: int) -> Candidate:
        del device
        return Candidate(
            engine=self.name,
            cache=CacheStrategy.DYNAMIC,
            attention=AttentionBackend.SDPA,
            dtype=model.native_dtype,
            batch_size=batch_size,
        )

    @override
    def axes(self, device: DeviceFacts) -> tuple[Axis, ...]:
        return fake_axes.axes(device.device)

    @override
    def rules(self, request: ModelRequest, model: ModelInfo, profile: WorkloadProfile) -> Sequence[Constraint]:
        return (Constraint(name="kernel-on-device", check=fake_axes.kernel_on_device),)

    @override
    def default_space(self, model: ModelInfo, device: DeviceFacts, profile: WorkloadProfile) -> tuple[SpaceBlock, ...]:
        del model, device
        return (
            SpaceBlock(
                caches=(CacheChoice(CacheStrategy.DYNAMIC), CacheChoice(CacheStrategy.STATIC)),
                attentions=tuple(
                    AttentionChoice(one)
                    for one in (AttentionBackend.EAGER, AttentionBackend.SDPA, AttentionBackend.SDPA_MATH)
                ),
                dtypes=(DType.FLOAT32, DType.BFLOAT16),
                batch_sizes=profile.batch_sizes,
            ),
        )

    @override
    def full_space(self, model: ModelInfo, device: DeviceFacts, profile: WorkloadProfile) -> tuple[SpaceBlock, ...]:
        """The default space, compiled as well."""
        (block,) = self.default_space(model, device, profile)
        return (replace(block, compiles=(CompileMode.OFF, CompileMode.DEFAULT)),)

    @override
    def load(
        self, request: ModelRequest, candidate: Candidate, device: DeviceType, profile: WorkloadProfile
    ) -> LoadedModel:
        del profile
        if unknown := dict(candidate.settings).keys() - {axis.name for axis in fake_axes.axes(device)}:
            raise UnsupportedError(f"The fake engine has no axis {', '.join(sorted(unknown))}.")
        model = FakeModel(request, candidate)
        model.misbehave("load")
        return model

    def render_snippet(
        self,
        request: ModelRequest,
        *,
        loader: str | None,
        candidate: Candidate,
        device: DeviceType,
        cells: Sequence[Cell],
    ) -> str:
        """A program that prints what it was made of."""
        del loader, device
        return f"print({request.model_id!r}, {candidate.label!r}, {max(cells).label!r})\n"

    @override
    def memory_note(self, device: DeviceType) -> str:
        del device
        return "Memory is made up."


class FakeModel(LoadedModel):
    """Sleeps; see the module."""

    def __init__(self, request: ModelRequest, candidate: Candidate) -> None:
        self._candidate = candidate
        self._todo = [
            (how, phase) for where, how, phase in _misbehaviours(request.model_id) if where in candidate.label
        ]
        self._factor = fake_axes.speed_factor(candidate) * float(os.environ.get(SLOWER_VARIABLE, "1"))
        self._cell = Cell(1, 1, 1)
        commands = {how for how, _ in self._todo}
        self._is_lossy = Misbehaviour.LOSSY in commands
        self._tells_top_only = Misbehaviour.TOPK in commands
        self._is_staggered = Misbehaviour.STAGGERED in commands
        self._server = FakeServer() if Misbehaviour.SERVER in commands else None

    def misbehave(self, phase: str) -> None:
        """Do what was commanded for this phase, once."""
        now = [entry for entry in self._todo if entry[1] == phase]
        self._todo = [entry for entry in self._todo if entry[1] != phase]
        for how, _ in now:
            how.act()

    @override
    def prepare(self, cell: Cell) -> None:
        self._cell = cell

    @override
    def generate(self, output_tokens: int) -> Generation:
        self.misbehave("measure")
        started = time.perf_counter()
        prefill_s = self._cell.context_tokens * PREFILL_S_PER_TOKEN * self._factor
        if self._server is not None:
            self._server.compute(prefill_s + output_tokens * DECODE_S_PER_TOKEN * self._factor)
        time.sleep(prefill_s)
        rows = self._decode(output_tokens, rows=self._cell.batch_size if self._is_staggered else 1)
        if self._server is not None:
            self._server.wait()
        tokens = (tuple(range(output_tokens)),) * self._cell.batch_size
        if self._is_staggered:
            return Generation.of_sequences(started_s=started, sequence_s=rows, tokens=tokens)
        return Generation(started_s=started, token_s=tuple(rows[0]), tokens=tokens)

    def _decode(self, output_tokens: int, *, rows: int) -> list[list[float]]:
        """The instants of the tokens in each of `rows` rows, which have them in turn."""
        stamps: list[list[float]] = [[] for _ in range(rows)]
        for _ in range(output_tokens):
            for row in stamps:
                time.sleep(DECODE_S_PER_TOKEN * self._factor / rows)
                row.append(time.perf_counter())
        return stamps

    @override
    def observe(self, output_tokens: int = OBSERVED_TOKENS) -> Observed:
        del output_tokens
        return Observed(
            cache_class=f"Fake{self._candidate.cache.title()}",
            cache_layers=f"FakeLayer×1 on GPU {os.environ.get('CUDA_VISIBLE_DEVICES') or 'none'}",
            kernel_prefill=self._candidate.attention.value,
            kernel_decode=os.environ.get(KERNEL_VARIABLE, self._candidate.attention.value),
            kv_dtype=self._candidate.dtype.value,
            threads=1,
        )

    @override
    def forced_text(self, forced: int) -> ForcedText:
        length = max(forced + 1, self._cell.context_tokens + self._cell.output_tokens)
        ids: list[int] = np.random.default_rng(1).integers(VOCABULARY, size=length).tolist()
        return ForcedText(ids=tuple(ids), forced=forced)

    @override
    def forced_log_probabilities(self, text: ForcedText) -> Iterator[ForcedToken]:
        """What it thinks of a token depends on the token before it."""
        self.misbehave("quality")
        if not set(text.ids) <= set(range(VOCABULARY)):
            raise UnsupportedError(f"the reference's text has tokens beyond the {VOCABULARY} that there are")
        noise, begin = np.random.default_rng(2), len(text.ids) - text.forced
        for place, token in enumerate(text.ids[begin:]):
            logits = np.random.default_rng([1, place, text.ids[begin + place - 1]]).normal(size=VOCABULARY)
            if self._is_lossy:
                logits = logits + LOSSY_NOISE * noise.normal(size=VOCABULARY)
            logs = (logits - np.log(np.exp(logits).sum())).astype(np.float32)
            rows = np.stack([logs] * min(2, self._cell.batch_size))
            yield place, token, _top_logs(rows, token) if self._tells_top_only else rows

    @override
    def kv_cache_bytes(self) -> int | None:
        bytes_per_token = 4 if self._candidate.dtype is DType.FLOAT32 else 2
        return self._cell.batch_size * (self._cell.context_tokens + self._cell.output_tokens) * bytes_per_token * 1024

    @override
    def processes(self) -> Sequence[int]:
        return (os.getpid(), *(() if self._server is None else (self._server.pid,)))

    @override
    def reset_peak_memory(self) -> None: ...

    @override
    def peak_memory_mib(self) -> float | None:
        held = self.kv_cache_bytes() or 0
        return 100.0 + held / 2**20 * (1.25 if self._candidate.cache is CacheStrategy.STATIC else 1.0)

    def count_tokens(self, text: str) -> int:
        """Words."""
        return len(text.split())

    def complete(self, text: str, max_new_tokens: int) -> str:
        """As many times `fake` as asked for."""
        del text
        self.misbehave("measure")
        return " ".join(["fake"] * max_new_tokens)

    @override
    def close(self) -> None:
        if self._server is not None:
            self._server.close()


def _top_logs(rows: NDArray[np.float32], token: int) -> TopLogs:
    ids = np.argsort(-rows, axis=1, kind="stable")[:, :TOLD_TOKENS].astype(np.int64)
    return TopLogs(ids=ids, logs=np.take_along_axis(rows, ids, axis=1), token_logs=rows[:, token])


def _misbehaviours(model_id: str) -> list[tuple[str, Misbehaviour, str]]:
    """Parse the commands in a model id into (label part, what, phase)."""
    if not model_id.startswith(PREFIX):
        raise ModelError(f"The fake engine knows no model {model_id!r}.", hint="Use fake:ok.")
    commands = []
    for part in model_id.removeprefix(PREFIX).split(","):
        where, separator, how = part.partition("=")
        if separator:
            name, _, phase = how.partition("@")
            if name not in set(Misbehaviour):
                raise ModelError(f"The fake engine cannot {name!r}.", hint=f"It can {', '.join(Misbehaviour)}.")
            commands.append((where, Misbehaviour(name), phase or "measure"))
    return commands
