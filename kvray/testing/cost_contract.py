"""What forecasts rely on: the cost model that an engine brings, asked for every candidate of its spaces."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvray.candidate import DeviceType, DType
from kvray.engines.base import EngineAdapter, ModelRequest
from kvray.forecast.hardware import Hardware
from kvray.forecast.prediction import CellForecast, forecast_cell
from kvray.space.constraints import SpaceFacts
from kvray.space.search_space import build_space
from kvray.testing.trial_contract import CPU
from kvray.workload import Cell, WorkloadProfile

CELLS = (Cell(24, 4, 1), Cell(40, 4, 1), Cell(400, 4, 1))
"""A longer prompt each."""
RATES = Hardware(
    device=DeviceType.CPU,
    copy_bytes_s=1e9,
    matmul_flops_s=dict.fromkeys(DType, 1e9),
    stream_bytes_s=dict.fromkeys(DType, 1e9),
    layer_s=1e-5,
    step_s=1e-5,
)


class CostContract:
    """Costs are positive, and a longer prompt never costs less. `EngineFixtures` brings what they are asked for."""

    def test_every_candidate_of_the_spaces_has_costs_that_a_longer_prompt_never_lowers(
        self, adapter: EngineAdapter, request_: ModelRequest, profile: WorkloadProfile
    ) -> None:
        model = adapter.describe_model(request_)
        costs = adapter.cost_model(model)
        if costs is None:
            pytest.skip("no cost model")
        space = build_space(
            (*adapter.default_space(model, CPU, profile), *adapter.full_space(model, CPU, profile)),
            baseline=adapter.baseline(model, CPU, batch_size=1),
            facts=SpaceFacts(device=DeviceType.CPU, dtypes=frozenset(DType)),
            engine_rules=adapter.rules(request_, model, profile),
        )
        for candidate in space.candidates:
            for device in DeviceType:
                told = [forecast_cell(costs, candidate, cell, device, replace(RATES, device=device)) for cell in CELLS]
                check_costs(told, candidate.label)


def check_costs(told: list[CellForecast], label: str) -> None:
    """Hold what is forecast of one candidate against the contract, for prompts that become longer."""
    for one in told:
        assert 0 < one.held_mib <= one.peak_mib, label
        assert one.ideal_decode_tok_s is not None, label
        assert one.ideal_decode_tok_s > 0, label
        assert one.ttft_ms is None or one.ttft_ms > 0, label
        assert one.decode_tok_s is None or one.decode_tok_s > 0, label
    for name, sign in (("peak_mib", 1), ("ttft_ms", 1), ("decode_tok_s", -1), ("ideal_decode_tok_s", -1)):
        values = [getattr(one, name) for one in told]
        known = [sign * value for value in values if value is not None]
        assert known == sorted(known), f"{label}: {name} of longer prompts: {values}"
