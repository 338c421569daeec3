"""What the driver relies on: all that it asks of an engine before a sweep, without loading a model."""

from __future__ import annotations

import pickle
import subprocess

import pytest

from kvray.candidate import DeviceType
from kvray.engines.base import EngineAdapter, ModelRequest
from kvray.errors import ModelError
from kvray.search_paths import child_environment, python_command
from kvray.space.search_space import SearchSpace
from kvray.testing.axes_contract import AxesContract
from kvray.testing.cost_contract import CostContract
from kvray.testing.engine_fixtures import EngineFixtures
from kvray.testing.trial_contract import CPU
from kvray.workload import Cell, WorkloadProfile


class DriverContract(EngineFixtures, AxesContract, CostContract):
    """The engine's library need not be here, where its trials run in another Python."""

    def test_the_registry_finds_the_engine_under_its_name(self, adapter: EngineAdapter) -> None:
        assert adapter.name == self.engine

    def test_importing_and_constructing_the_adapter_loads_no_heavy_library(self) -> None:
        code = (
            "import sys; from kvray.engines.registry import get_engine; "
            f"get_engine({self.engine!r}); print({{'torch', 'transformers', 'ray'}} & set(sys.modules))"
        )
        done = subprocess.run(
            python_command("-c", code), capture_output=True, env=child_environment(), text=True, check=True
        )
        assert done.stdout.strip() == "set()"

    def test_the_adapter_travels_to_another_process(self, adapter: EngineAdapter) -> None:
        assert type(pickle.loads(pickle.dumps(adapter))) is type(adapter)

    def test_a_missing_model_is_a_model_error(self, adapter: EngineAdapter) -> None:
        with pytest.raises(ModelError):
            adapter.describe_model(ModelRequest(model_id=self.missing_model))

    def test_the_baseline_is_a_candidate_of_this_engine_with_nothing_forced(
        self, adapter: EngineAdapter, request_: ModelRequest
    ) -> None:
        baseline = adapter.baseline(adapter.describe_model(request_), CPU, batch_size=1)
        assert baseline.engine == self.engine
        assert not baseline.attention.forces_a_kernel

    def test_the_menu_covers_what_the_axes_use(
        self, adapter: EngineAdapter, request_: ModelRequest, profile: WorkloadProfile
    ) -> None:
        model, menu = adapter.describe_model(request_), {(entry.axis, entry.value) for entry in adapter.menu(CPU)}
        for axes in (*adapter.default_space(model, CPU, profile), *adapter.full_space(model, CPU, profile)):
            assert all({("cache", str(one)), ("cache", one.strategy.value)} & menu for one in axes.caches)
            assert {("attention", choice.backend.value) for choice in axes.attentions} <= menu
            assert {("dtype", dtype.value) for dtype in axes.dtypes} <= menu
            assert {("compile", mode.value) for mode in axes.compiles} <= menu

    def test_nothing_is_left_open_in_the_spaces(
        self, adapter: EngineAdapter, request_: ModelRequest, profile: WorkloadProfile
    ) -> None:
        model = adapter.describe_model(request_)
        for axes in (*adapter.default_space(model, CPU, profile), *adapter.full_space(model, CPU, profile)):
            for choice in axes.caches:
                assert adapter.resolve_cache(choice, CPU, profile) == (choice,)

    def test_a_snippet_is_python_and_keeps_a_hostile_model_id_inside_its_string(
        self, adapter: EngineAdapter, space: SearchSpace
    ) -> None:
        hostile = 'x"); import os; os.system("echo hacked"); print("\n{folder}'
        source = adapter.render_snippet(
            ModelRequest(model_id=hostile, revision=hostile),
            loader=None,
            candidate=space.baseline,
            device=DeviceType.CPU,
            cells=[Cell(24, 4, 1)],
        )
        compile(source, "snippet", "exec")
        assert repr(hostile) in source
        assert hostile not in source

    def test_the_memory_note_is_a_sentence(self, adapter: EngineAdapter) -> None:
        assert adapter.memory_note(DeviceType.CPU).endswith(".")
