"""vLLM through the kit of all engines. It lives in a Python of its own (`make vllm-env`): from here trials are measured
there, and `make vllm-test` runs in that Python what the kit loads in the test's own process."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvray.candidate import Candidate, CompileMode, DeviceType, DType
from kvray.engines.base import CrashedError, EngineAdapter, LoadedModel, ModelRequest, Observed, UnsupportedError
from kvray.engines.registry import get_engine
from kvray.engines.vllm.arguments import DEFAULT_BLOCKS
from kvray.space.constraints import SpaceFacts
from kvray.space.search_space import SearchSpace, build_space
from kvray.testing.driver_contract import DriverContract
from kvray.testing.engine_contract import EngineContract
from kvray.testing.engine_fixtures import EngineFixtures
from kvray.testing.trial_contract import CPU, TrialContract, still_alive
from kvray.trial.process import Launcher
from kvray.trial.spec import TrialSpec
from kvray.workload import Cell, WorkloadProfile, create_custom_profile

ROOT = Path(__file__).parents[2]
PHASE_S = 900.0
IS_HERE = importlib.util.find_spec("vllm") is not None
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "vocab_size": 256,
}


def vllm_python() -> str | None:
    paths = (os.environ.get("KVRAY_VLLM_PYTHON"), ROOT / ".venv-vllm" / "bin" / "python")
    return next((str(path) for path in paths if path and Path(path).exists()), None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights whose heads vLLM's CPU kernels take."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return f"random:{folder}"


@pytest.fixture(scope="module")
def kept() -> Iterator[list[LoadedModel]]:
    models: list[LoadedModel] = []
    yield models
    for one in models:
        one.close()


class VllmFixtures(EngineFixtures):
    engine = "vllm"
    missing_model = "random:nowhere"

    @pytest.fixture
    def model_id(self, model: str) -> str:
        return model


class TestVllmInTheDriver(VllmFixtures, DriverContract):
    """What is asked before any trial, wherever vLLM is."""


@pytest.mark.skipif(IS_HERE or vllm_python() is None, reason="vLLM has no Python of its own here (make vllm-env)")
@pytest.mark.slow
@pytest.mark.timeout(1800)
class TestVllmTrials(VllmFixtures, TrialContract):
    """From kvray's own Python."""

    def _spec_of(self, adapter: EngineAdapter, request_: ModelRequest, profile: WorkloadProfile) -> TrialSpec:
        """Its baseline compiles, which takes minutes on a busy machine."""
        return replace(super()._spec_of(adapter, request_, profile), timeout_s=PHASE_S)

    @pytest.fixture
    def launcher(
        self, adapter: EngineAdapter, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> Launcher:
        monkeypatch.setenv("KVRAY_CACHE", str(tmp_path_factory.getbasetemp() / "kvray-cache"))
        return Launcher(adapter, python=vllm_python())


@pytest.mark.skipif(not IS_HERE, reason="vLLM is not installed in this Python")
@pytest.mark.slow
@pytest.mark.timeout(1800)
class TestVllmEngine(VllmFixtures, EngineContract):
    """In vLLM's Python."""

    cache_step = DEFAULT_BLOCKS[DeviceType.CPU]

    @pytest.fixture
    def profile(self) -> WorkloadProfile:
        """The engine is started for its longest cell, so it is one that fills two blocks."""
        return create_custom_profile(
            "contract",
            context_lengths=(24, 200),
            output_lengths=(4, 6),
            weight_ttft=0.4,
            weight_throughput=0.4,
            weight_memory=0.2,
        )

    @pytest.fixture
    def adapter(self) -> EngineAdapter:
        adapter = get_engine(self.engine)
        os.environ.update(adapter.process_environment())
        return adapter

    @pytest.fixture
    def space(self, adapter: EngineAdapter, request_: ModelRequest, profile: WorkloadProfile) -> SearchSpace:
        """A start of vLLM takes half a minute, so three candidates stand for all: eager, with 8 bits, with threads that
        are bound to no CPU."""
        model = adapter.describe_model(request_)
        eager, *each = [
            block.having({"compile": (CompileMode.OFF,)}) for block in adapter.default_space(model, CPU, profile)
        ]
        some = [block for block in each if {"kv_cache_dtype", "omp_threads_bind"} & set(block.settings)]
        baseline = adapter.baseline(model, CPU, batch_size=1)
        space = build_space(
            [eager, *some],
            baseline=baseline,
            facts=SpaceFacts(device=DeviceType.CPU, dtypes=frozenset(DType)),
            engine_rules=adapter.rules(request_, model, profile),
            canonical=adapter.axes(CPU)[0].follows,
        )
        without = tuple(one for one in space.candidates if one.compile is CompileMode.OFF)
        return SearchSpace(baseline=without[0], candidates=without, rejected=space.rejected, asked_for=len(without))

    @pytest.fixture
    def loaded(
        self,
        kept: list[LoadedModel],
        adapter: EngineAdapter,
        request_: ModelRequest,
        space: SearchSpace,
        profile: WorkloadProfile,
    ) -> LoadedModel:
        """One engine for all tests that load no other."""
        if not kept:
            adapter.fetch_weights(request_)
            kept.append(adapter.load(request_, space.baseline, DeviceType.CPU, profile))
        return kept[0]

    def check_observed(self, candidate: Candidate, observed: object) -> None:
        assert isinstance(observed, Observed)
        assert observed.kernel_prefill == observed.kernel_decode == "CPU_ATTN"
        assert observed.cache_layers == "2 layers"
        assert observed.kv_dtype == (candidate.setting("kv_cache_dtype") or "bfloat16")
        assert observed.threads

    def test_the_pool_of_blocks_is_as_large_as_it_was_forecast(
        self,
        adapter: EngineAdapter,
        request_: ModelRequest,
        space: SearchSpace,
        profile: WorkloadProfile,
        loaded: LoadedModel,
    ) -> None:
        costs, longest = adapter.cost_model(adapter.describe_model(request_)), profile.cells(1, rung=2)[-1]
        assert costs is not None
        pool = costs.memory(space.baseline, longest, DeviceType.CPU).cache
        loaded.prepare(longest)
        assert loaded.kv_cache_bytes() == round(pool * 2 / 3), "two of three blocks; the fourth is vLLM's own"

    def test_an_engine_whose_worker_dies_has_crashed(
        self, adapter: EngineAdapter, request_: ModelRequest, space: SearchSpace, profile: WorkloadProfile
    ) -> None:
        model = adapter.load(request_, space.baseline, DeviceType.CPU, profile)
        model.prepare(Cell(24, 4, 1))
        model.generate(4)
        own, *others = model.processes()
        assert own == os.getpid()
        os.kill(others[-1], signal.SIGKILL)
        with pytest.raises(CrashedError, match="died unexpectedly"):
            model.generate(4)
        model.close()
        assert still_alive(others) == []

    def test_a_model_that_vllm_does_not_know_is_refused_in_its_own_words(
        self, adapter: EngineAdapter, profile: WorkloadProfile, tmp_path: Path
    ) -> None:
        config = {**CONFIG, "architectures": ["NopeForCausalLM"], "model_type": "nope"}
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        request = ModelRequest(model_id=f"random:{tmp_path}")
        baseline = adapter.baseline(adapter.describe_model(request), CPU, batch_size=1)
        with pytest.raises(UnsupportedError, match="nope"):
            adapter.load(request, baseline, DeviceType.CPU, profile)
