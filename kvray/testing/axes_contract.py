"""What options, space files and the search rely on: the axes that an engine declares."""

from __future__ import annotations

import itertools

import pytest

from kvray.candidate import DeviceType, ParamValue
from kvray.engines.base import EngineAdapter, ModelRequest, UnsupportedError
from kvray.space.axis import UNSET, Axis, AxisKind, canonical_form, with_settings
from kvray.space.menu import SHARED_AXES
from kvray.space.search_space import SearchSpace
from kvray.testing.trial_contract import CPU
from kvray.workload import WorkloadProfile


def own_axes(adapter: EngineAdapter) -> list[Axis]:
    """The axes that only this engine has."""
    return [axis for axis in adapter.axes(CPU) if axis.name not in SHARED_AXES]


def values_of(axis: Axis) -> list[ParamValue | None]:
    """Values of `axis` as a user may write them, read: its lines, its aliases, and a number."""
    words = [one.value for one in axis.values] if axis.kind is not AxisKind.NUMBER else [f"{axis.least:g}"]
    return [axis.parse(word) for word in (*words, *axis.aliases)]


class AxesContract:
    """What an axis declares is what the engine does. `EngineContract` brings the other fixtures."""

    def test_an_axis_reads_back_each_of_its_values(self, adapter: EngineAdapter) -> None:
        axes = adapter.axes(CPU)
        assert len({axis.name for axis in axes}) == len(axes)
        for axis in own_axes(adapter):
            assert axis.parse(UNSET) is None
            for value in values_of(axis):
                assert value is None or axis.lines_of(value)

    def test_the_spaces_use_declared_axes_only(
        self, adapter: EngineAdapter, request_: ModelRequest, profile: WorkloadProfile
    ) -> None:
        model, own = adapter.describe_model(request_), {axis.name for axis in own_axes(adapter)}
        for block in (*adapter.default_space(model, CPU, profile), *adapter.full_space(model, CPU, profile)):
            assert set(block.settings) <= own

    def test_what_a_candidate_comes_to_comes_to_itself(
        self, adapter: EngineAdapter, space: SearchSpace, profile: WorkloadProfile
    ) -> None:
        for axis, candidate in itertools.product(own_axes(adapter), space.candidates):
            for value in values_of(axis):
                once = canonical_form(with_settings(candidate, {axis.name: value}), adapter.axes(CPU), profile)
                assert canonical_form(once, adapter.axes(CPU), profile) == once

    def test_a_setting_that_no_axis_declares_is_refused_when_a_model_is_loaded(
        self, adapter: EngineAdapter, request_: ModelRequest, space: SearchSpace, profile: WorkloadProfile
    ) -> None:
        adapter.fetch_weights(request_)
        with pytest.raises(UnsupportedError, match="no_such_axis"):
            adapter.load(request_, with_settings(space.baseline, {"no_such_axis": 1}), DeviceType.CPU, profile)
