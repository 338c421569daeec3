"""How often device, engine and model are asked from the command to the first trial."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

import kvray.tuning.local_device
import kvray.tuning.resolved
from kvray.candidate import DeviceType, DType
from kvray.config import TuneConfig
from kvray.engines.base import DeviceFacts, ModelInfo, ModelRequest
from kvray.errors import ModelError
from kvray.forecast.hardware import Hardware
from kvray.forecast.shape import LayerShape, ModelShape
from kvray.probes.cpu import wished_threads
from kvray.space.axis import Axis
from kvray.sweep.remote_device import _seen_here
from kvray.testing.fake import FakeAdapter
from kvray.tuning.engines import SweepEngines
from kvray.tuning.preview import preview_sweep
from kvray.tuning.ready_sweep import with_rates
from kvray.tuning.resolved import check_request, resolve
from kvray.tuning.search import TuningSearch
from kvray.workload import get_profile

ASKED = ("detect_device", "axes", "describe_model", "load_hardware", "measure_hardware")


class CountingAdapter(FakeAdapter):
    """Counts what is asked of it, and ends a sweep before Ray would start: it cannot fetch its weights."""

    measures_hardware: ClassVar[bool] = True

    def __init__(self, asked: Counter[str]) -> None:
        self.asked = asked

    def axes(self, device: DeviceFacts) -> tuple[Axis, ...]:
        self.asked["axes"] += 1
        return super().axes(device)

    def describe_model(self, request: ModelRequest) -> ModelInfo:
        self.asked["describe_model"] += 1
        info = super().describe_model(request)
        layers = (LayerShape(kv_heads=4, key_dim=16, value_dim=16),) * 4
        shape = ModelShape(
            total_parameters=1000,
            lookup_parameters=0,
            vocab=1000,
            hidden=64,
            intermediate=256,
            heads=4,
            layers=layers,
        )
        return ModelInfo(**{**vars(info), "shape": shape})

    def measure_hardware(self, device: DeviceType, threads: int | None) -> Hardware | None:
        self.asked["measure_hardware"] += 1
        rates = dict.fromkeys(DType, 1e9)
        return Hardware(
            device=device, copy_bytes_s=1e9, matmul_flops_s=rates, stream_bytes_s=rates, layer_s=0.0, step_s=0.0
        )

    def fetch_weights(self, request: ModelRequest) -> None:
        raise ModelError("Far enough.")


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "cache"))
    count: Counter[str] = Counter()

    def counted(module: ModuleType, function: str, name: str) -> None:
        plain = getattr(module, function)

        def ask(*arguments: Any) -> Any:
            count[name] += 1
            return plain(*arguments)

        monkeypatch.setattr(module, function, ask)

    # Whoever calls `detect_device`, it asks for the processor's name.
    counted(kvray.tuning.local_device, "cpu_name", "detect_device")
    counted(kvray.tuning.resolved, "load_hardware", "load_hardware")
    return count


def config(folder: Path) -> TuneConfig:
    profile = get_profile("ci-micro")
    return TuneConfig(model_id="fake:ok", profile=profile, device=DeviceType.CPU, engine="fake", output_dir=folder)


def test_a_sweep_asks_once_of_everything_until_ray_starts(asked: Counter[str], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Far enough"):
        TuningSearch(config=config(tmp_path / "out"), adapter=CountingAdapter(asked)).run()
    assert asked == dict.fromkeys(ASKED, 1)


def test_a_dry_run_asks_once_and_measures_nothing(asked: Counter[str], tmp_path: Path) -> None:
    TuningSearch(config=config(tmp_path / "out"), adapter=CountingAdapter(asked)).preview()
    assert asked == dict.fromkeys(ASKED[:-1], 1)


def test_rates_that_were_measured_go_into_the_forecast_without_being_read_again(
    asked: Counter[str], tmp_path: Path
) -> None:
    resolved = resolve(check_request(config(tmp_path), CountingAdapter(asked)))
    assert resolved.hardware is None
    measured = kvray.tuning.resolved.with_measured_rates(resolved)
    assert {one.decode_tok_s for one in preview_sweep(resolved).forecasts.values()} == {None}
    assert all(one.decode_tok_s for one in preview_sweep(measured).forecasts.values())
    assert asked["load_hardware"] == 1


def test_that_the_device_is_measured_is_told_once_for_all_engines(asked: Counter[str], tmp_path: Path) -> None:
    resolved = resolve(check_request(config(tmp_path), CountingAdapter(asked)))
    told: list[str] = []
    with_rates(SweepEngines([resolved.adapter]), [resolved, resolved], before=lambda: told.append("measuring"))
    assert (told, asked["measure_hardware"]) == (["measuring"], 2)


def test_a_node_that_was_measured_gives_the_forecast_that_it_gives_as_a_machine_of_its_own(
    asked: Counter[str], tmp_path: Path
) -> None:
    adapter, here = CountingAdapter(asked), config(tmp_path)
    kvray.tuning.resolved.with_measured_rates(resolve(check_request(here, adapter)))
    local = preview_sweep(resolve(check_request(here, adapter)))
    there = here.model_copy(update={"address": "127.0.0.1:6379"})
    node = _seen_here([adapter], DeviceType.CPU, 0, wished_threads(), there.slots_beside)
    assert preview_sweep(resolve(check_request(there, adapter, node=node))).forecasts == local.forecasts
    assert all(one.decode_tok_s for one in local.forecasts.values())
