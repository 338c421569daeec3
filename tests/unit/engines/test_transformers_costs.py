"""Forecasts are those that were recorded before engines brought their cost models."""

from __future__ import annotations

import pytest
from transformers_grid import CELLS, DEVICES, FREE_MIB, OUTPUT_TOKENS, grid, key_of, recorded

from kvray.engines.transformers.costs import TransformersCosts
from kvray.forecast.prediction import longest_context
from kvray.forecast.roofline import copy_s


def test_a_grid_of_candidates_is_forecast_as_it_was_recorded() -> None:
    expected = recorded()
    combinations = {key_of(name, one, device): (shape, one, device) for name, shape, one, device in grid()}
    assert combinations.keys() == expected.keys()
    for key, (shape, one, device) in combinations.items():
        costs, hardware = TransformersCosts(shape), DEVICES[device]
        *cells, (longest,) = expected[key]
        for cell, (weights, cache, transient, prefill_s, decode_s, ideal_s) in zip(CELLS, cells, strict=True):
            need = costs.memory(one, cell, device)
            assert (need.weights, need.cache, need.transient, need.on_each_gpu) == (weights, cache, transient, 0), key
            assert costs.prefill_s(one, cell, hardware) == pytest.approx(prefill_s, rel=1e-12), key
            assert costs.decode_step_s(one, cell, hardware) == pytest.approx(decode_s, rel=1e-12), key
            assert copy_s(costs.least_read_bytes(one, cell), hardware) == pytest.approx(ideal_s, rel=1e-12), key
        asked = {"output_tokens": OUTPUT_TOKENS, "device": device, "hardware": hardware, "free_mib": FREE_MIB}
        assert longest_context(costs, one, **asked) == longest, key  # type: ignore[arg-type]
