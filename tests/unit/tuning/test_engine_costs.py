"""Forecasts come from the cost model of each candidate's own engine, here of the fake one with its axis `tile`."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

import kvray.tuning.preview
from kvray.candidate import Candidate, DeviceType, DType
from kvray.cli.app import run
from kvray.config import SearchStrategy, TuneConfig
from kvray.engines.base import EngineAdapter, ModelInfo
from kvray.forecast.cost_model import CostModel
from kvray.forecast.hardware import Hardware
from kvray.forecast.memory import MIB, MemoryNeed
from kvray.forecast.prediction import does_not_fit, forecast, forecast_cell, longest_context
from kvray.sweep.samplers import make_sampler
from kvray.testing.cost_contract import check_costs
from kvray.testing.fake import FakeAdapter
from kvray.testing.fake_costs import SHAPE, FakeCosts
from kvray.tuning.engines import SweepEngines, preview_engines
from kvray.tuning.preview import Preview
from kvray.tuning.resolved import Resolved, check_request, resolve
from kvray.workload import Cell, Limits, create_custom_profile

HARDWARE = Hardware(
    device=DeviceType.CPU,
    copy_bytes_s=1e9,
    matmul_flops_s=dict.fromkeys(DType, 1e9),
    stream_bytes_s=dict.fromkeys(DType, 1e9),
    layer_s=0.0,
    step_s=0.0,
)
TILE_MIB = 64 * 4 / MIB
"""Of each token of a tile in float32."""


class HeavyCosts(FakeCosts):
    """Weights twice."""

    def memory(self, candidate: Candidate, cell: Cell, device: DeviceType) -> MemoryNeed:
        need = super().memory(candidate, cell, device)
        return MemoryNeed(weights=2 * need.weights, cache=need.cache, transient=0, on_each_gpu=need.on_each_gpu)


class HeavyAdapter(FakeAdapter):
    name: ClassVar[str] = "heavy"

    def cost_model(self, model: ModelInfo) -> CostModel | None:
        return HeavyCosts(SHAPE)


class SilentAdapter(FakeAdapter):
    name: ClassVar[str] = "silent"

    def cost_model(self, model: ModelInfo) -> CostModel | None:
        return None


def config(engine: str = "fake", **values: Any) -> TuneConfig:
    profile = create_custom_profile(
        "small",
        context_lengths=(1000,),
        output_lengths=(8,),
        weight_ttft=0.4,
        weight_throughput=0.4,
        weight_memory=0.2,
    )
    profile = profile.model_copy(update={"limits": values.pop("limits", profile.limits)})
    narrow = {"caches": ("dynamic",), "attentions": ("sdpa",), "dtypes": ("float32",)}
    given = {"model_id": "fake:sized", "profile": profile, "device": DeviceType.CPU, "engine": engine, **narrow}
    return TuneConfig(**{**given, **values})


def resolved(request: TuneConfig, adapter: EngineAdapter | None = None) -> Resolved:
    return resolve(check_request(request, adapter or FakeAdapter()))


def tiled(*tiles: int, **values: Any) -> TuneConfig:
    return config(settings={"tile": (None, *tiles)}, **values)


def by_tile(preview: Preview) -> dict[object, Candidate]:
    return {dict(one.settings).get("tile"): one for one in preview.space.candidates}


def test_a_forecast_depends_on_the_engines_own_axis() -> None:
    preview = kvray.tuning.preview.forecast_only(resolved(tiled(16, 512)))
    peaks = {tile: preview.forecasts[one.candidate_id].peak_mib for tile, one in by_tile(preview).items()}
    assert peaks[16] - peaks[None] == pytest.approx(16 * TILE_MIB)
    assert peaks[512] - peaks[None] == pytest.approx(512 * TILE_MIB)


def test_what_cannot_fit_by_the_engines_costs_is_rejected_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = FakeCosts(SHAPE).memory(resolved_baseline(), Cell(1000, 8, 1), DeviceType.CPU).peak / MIB
    monkeypatch.setattr(FakeAdapter, "measures_hardware", True)
    monkeypatch.setattr(kvray.tuning.preview, "free_memory_mib", lambda device: (plain + 100 * TILE_MIB) / 0.97)
    preview = kvray.tuning.preview.preview_sweep(resolved(tiled(1, 1000)))
    assert set(by_tile(preview)) == {None, 1}
    (rejected,) = preview.space.rejected
    assert rejected.reason.startswith(f"needs {plain + 1000 * TILE_MIB:,.0f} MiB for 1000→8 by forecast, but only ")


def resolved_baseline() -> Candidate:
    return kvray.tuning.preview.forecast_only(resolved(config())).space.baseline


def test_a_limit_that_no_candidate_keeps_is_told_by_the_engines_costs() -> None:
    preview = kvray.tuning.preview.preview_sweep(resolved(tiled(512, limits=Limits(max_peak_mib=1.0))))
    (told,) = preview.unreachable_limits
    assert "--max-vram 1 MiB in every cell: the leanest, dynamic/sdpa/float32, is forecast at" in told


def test_the_search_begins_with_what_the_engines_costs_call_fast() -> None:
    preview = kvray.tuning.preview.forecast_only(resolved(tiled(1, 64, 1000)))
    profile, costs = preview.profile, FakeCosts(SHAPE)
    forecasts = {
        one.candidate_id: forecast(costs, one, profile, DeviceType.CPU, HARDWARE) for one in preview.space.candidates
    }
    candidates = by_tile(preview)
    seconds = {tile: forecasts[one.candidate_id].ttft_ms or 0.0 for tile, one in candidates.items()}
    assert min(seconds, key=lambda tile: seconds[tile]) == 64
    sampler = make_sampler(
        SearchStrategy.MODEL, preview.space.candidates, profile, forecasts, axes=preview.axes, seed=0
    )
    sampler.launched(candidates[None].candidate_id)
    assert sampler.proposal() == candidates[64]


def test_the_longest_context_is_that_of_the_engines_costs() -> None:
    costs, preview = FakeCosts(SHAPE), kvray.tuning.preview.forecast_only(resolved(tiled(1000)))
    asked: dict[str, Any] = {"output_tokens": 8, "device": DeviceType.CPU, "hardware": None, "free_mib": 8.0}
    plain, tile = (longest_context(costs, by_tile(preview)[one], **asked) for one in (None, 1000))
    token_bytes = 4 * 128 * 4  # layers × elements × bytes
    assert plain - tile == pytest.approx(1000 * 64 * 4 / token_bytes, abs=1)


def test_over_several_gpus_is_split_what_the_engine_splits() -> None:
    profile, costs = config().profile, FakeCosts(SHAPE)
    one = by_tile(kvray.tuning.preview.forecast_only(resolved(tiled(1000))))[1000]
    two = Candidate.from_dict({**one.to_dict(), "parallelism": 2})
    need = costs.memory(two, Cell(1000, 8, 1), DeviceType.CUDA)
    told = forecast(costs, two, profile, DeviceType.CUDA, HARDWARE)
    assert told.highest_peak_mib == pytest.approx((need.held + 2 * need.on_each_gpu) / MIB)
    each_mib = (need.held / 2 + need.on_each_gpu) / MIB
    assert does_not_fit(told, None, each_mib / 0.97 + 0.01) is None
    assert "on each of 2 GPUs" in (does_not_fit(told, None, each_mib / 0.97 - 0.01) or "")
    alone = forecast(costs, one, profile, DeviceType.CUDA, HARDWARE)
    assert told.cells[0].ideal_decode_tok_s == pytest.approx(2 * (alone.cells[0].ideal_decode_tok_s or 0.0))


def joined(*adapters: EngineAdapter) -> Preview:
    engines = SweepEngines(adapters)
    request = config(",".join(one.name for one in adapters))
    return preview_engines(engines, engines.resolve(engines.check(request)))


def test_of_two_engines_each_forecasts_its_own_candidates() -> None:
    preview = joined(FakeAdapter(), HeavyAdapter())
    peaks = {one.engine: preview.forecasts[one.candidate_id].peak_mib for one in preview.space.candidates}
    assert peaks["heavy"] - peaks["fake"] == pytest.approx(4 * SHAPE.total_parameters / MIB)


def test_of_two_engines_each_candidate_is_held_to_a_limit_with_what_its_own_engine_needs() -> None:
    preview = joined(FakeAdapter(), HeavyAdapter())
    heavy, light = (replace(HARDWARE, device=DeviceType.CUDA, resident_mib=needed) for needed in (5000.0, 0.0))
    limited = preview.profile.model_copy(update={"limits": Limits(max_peak_mib=1.0)})
    others = tuple(replace(one, hardware=light) for one in preview.others)
    (told,) = replace(preview, profile=limited, hardware=heavy, others=others).unreachable_limits
    assert "the leanest, heavy:dynamic/sdpa/float32, is forecast at" in told


def test_beside_an_engine_without_costs_nothing_is_forecast() -> None:
    assert joined(FakeAdapter(), SilentAdapter()).forecasts == {}
    assert kvray.tuning.preview.forecast_only(resolved(config("silent"), SilentAdapter())).forecasts == {}


def test_the_command_narrows_attention_compile_and_own_axes(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["forecast", "fake:sized", "--engine", "fake", "--context", "64", "--output-len", "4", "--memory", "8000"]
    narrow = ["--attention", "eager", "--compile", "default", "--dtype", "float32", "--cache", "static"]
    assert run([*line, *narrow, "--set", "tile=16", "--device", "cpu", "--json"], verbose=False) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [one["label"] for one in shown["candidates"]] == [
        "dynamic/sdpa/float32",
        "static/eager/float32+compile:default+tile:16",
    ]
    assert {one["attention"] for one in shown["longest_contexts"]} == {"sdpa", "eager"}


def test_the_command_says_where_an_engine_forecasts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["forecast", "fake:ok", "--engine", "fake", "--context", "64", "--output-len", "4", "--device", "cpu"]
    assert run(line, verbose=False) != 0
    assert "Nothing can be forecast of fake:ok: engine fake forecasts nothing of it." in capsys.readouterr().err


def test_the_cost_model_of_the_guide_forecasts() -> None:
    page = (Path(__file__).parents[3] / "docs" / "own_engine.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "guide"}
    exec(page.split("# costs.py\n")[1].split("```")[0], names)
    costs: CostModel = names["MineCosts"](SHAPE)
    told, fake = (
        forecast(one, resolved_baseline(), config().profile, DeviceType.CPU, HARDWARE)
        for one in (costs, FakeCosts(SHAPE))
    )
    assert (told.peak_mib, told.decode_tok_s) == (fake.peak_mib, fake.decode_tok_s)
    assert told.ttft_ms is not None
    assert fake.ttft_ms is not None
    assert 0 < told.ttft_ms < fake.ttft_ms  # it leaves attention out


class ForgetfulCosts(FakeCosts):
    """Takes longer prompts for cheaper."""

    def memory(self, candidate: Candidate, cell: Cell, device: DeviceType) -> MemoryNeed:
        return MemoryNeed(weights=2 * MIB, cache=MIB // cell.context_tokens, transient=0)


def test_the_contract_kit_notices_costs_that_fall_with_a_longer_prompt() -> None:
    cells, one = (Cell(24, 4, 1), Cell(40, 4, 1)), resolved_baseline()
    for costs, fault in ((FakeCosts(SHAPE), None), (ForgetfulCosts(SHAPE), "peak_mib of longer prompts")):
        told = [forecast_cell(costs, one, cell, DeviceType.CPU, HARDWARE) for cell in cells]
        with contextlib.nullcontext() if fault is None else pytest.raises(AssertionError, match=fault):
            check_costs(told, one.label)
