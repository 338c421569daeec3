"""What every part of the kit is given: an engine, a small model of it, a short workload and its space."""

from __future__ import annotations

import pytest

from kvray.candidate import DeviceType, DType
from kvray.engines.base import EngineAdapter, ModelRequest
from kvray.engines.registry import get_engine
from kvray.space.constraints import SpaceFacts
from kvray.space.search_space import SearchSpace, build_space
from kvray.testing.trial_contract import CPU
from kvray.workload import WorkloadProfile, create_custom_profile


class EngineFixtures:
    """Subclasses name the engine and the model.

    Attributes:
        engine: its name, as the entry point in the group `kvray.engines` has it.
        missing_model: a model id that the engine takes for one of its own, and that leads to nothing.
    """

    engine: str
    missing_model: str

    @pytest.fixture
    def model_id(self) -> str:
        """A model that loads in about a second on a CPU. Every subclass names one."""
        raise NotImplementedError

    @pytest.fixture
    def adapter(self) -> EngineAdapter:
        """The engine, found as a sweep finds it."""
        return get_engine(self.engine)

    @pytest.fixture
    def request_(self, model_id: str) -> ModelRequest:
        """What is asked of the engine."""
        return ModelRequest(model_id=model_id)

    @pytest.fixture
    def profile(self) -> WorkloadProfile:
        """Two prompt lengths and two answer lengths, all of them short."""
        return create_custom_profile(
            "contract",
            context_lengths=(24, 40),
            output_lengths=(4, 6),
            weight_ttft=0.4,
            weight_throughput=0.4,
            weight_memory=0.2,
        )

    @pytest.fixture
    def space(self, adapter: EngineAdapter, request_: ModelRequest, profile: WorkloadProfile) -> SearchSpace:
        """What the engine measures by default on a CPU."""
        model = adapter.describe_model(request_)
        return build_space(
            adapter.default_space(model, CPU, profile),
            baseline=adapter.baseline(model, CPU, batch_size=1),
            facts=SpaceFacts(device=DeviceType.CPU, dtypes=frozenset(DType)),
            engine_rules=adapter.rules(request_, model, profile),
        )
