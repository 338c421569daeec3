"""What a sweep would do, and what is refused before one is started."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

import kvray.probes.cpu
import kvray.tuning.local_device
import kvray.tuning.preview
from kvray.candidate import AttentionBackend, CacheStrategy, CompileMode, DeviceType, DType
from kvray.config import TuneConfig, cache_dir
from kvray.engines.base import DeviceFacts, EngineAdapter, ModelInfo, ModelRequest
from kvray.errors import ModelError, NoCandidatesError, ProfileError, SweepError
from kvray.forecast.hardware import Hardware, HardwareKey
from kvray.forecast.shape import LayerShape, ModelShape
from kvray.probes.gpu import GpuInfo, select_visible
from kvray.space.axis import Axis, AxisValue
from kvray.space.menu import shared_axis
from kvray.space.search_space import SpaceBlock
from kvray.testing.fake import MAX_CONTEXT, FakeAdapter
from kvray.tuning.local_device import detect_device, warn_of_disturbed_rates
from kvray.tuning.preview import Preview, Refusal, forecast_only
from kvray.tuning.resolved import check_request, resolve, with_measured_rates
from kvray.workload import WorkloadProfile, create_custom_profile

GPUS = tuple(
    GpuInfo(
        index=index,
        uuid=f"GPU-{index}",
        name=name,
        memory_total_mib=1000.0,
        compute_capability=capability,
        driver_version="1",
    )
    for index, (name, capability) in enumerate([("New", (9, 0)), ("Old", (7, 5))])
)


class ChoosyAdapter(FakeAdapter):
    """An engine whose menu has every kind of line."""

    def axes(self, device: DeviceFacts) -> tuple[Axis, ...]:
        caches = AxisValue(value="dynamic"), AxisValue(value="static", obstacle="no room")
        attentions = (
            AxisValue(value="eager"),
            AxisValue(value="sdpa"),
            AxisValue(value="sdpa_flash", on_request="it is slow"),
            AxisValue(value="sdpa_cudnn", obstacle="CUDA only", on_request="it is rare"),
        )
        dtypes = (
            AxisValue(value="float32"),
            AxisValue(value="float16", on_request="it is emulated"),
            AxisValue(value="bfloat16", obstacle="too old"),
        )
        return shared_axis("cache", caches), shared_axis("attention", attentions), shared_axis("dtype", dtypes)

    def default_space(self, model: ModelInfo, device: DeviceFacts, profile: WorkloadProfile) -> tuple[SpaceBlock, ...]:
        (axes,) = super().default_space(model, device, profile)
        return (replace(axes, dtypes=(DType.FLOAT32,)),)


@pytest.fixture(autouse=True)
def logger_as_by_default() -> Iterator[None]:
    logger = logging.getLogger("kvray")
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [], True
    yield
    logger.handlers, logger.propagate = handlers, propagate


def config(*, contexts: tuple[int, ...] = (64,), **values: Any) -> TuneConfig:
    profile = create_custom_profile(
        "small",
        context_lengths=contexts,
        output_lengths=(4, 8),
        batch_sizes=values.pop("batch_sizes", (1,)),
        weight_ttft=0.4,
        weight_throughput=0.4,
        weight_memory=0.2,
    )
    given: dict[str, Any] = {"model_id": "fake:ok", "profile": profile, "device": DeviceType.CPU, "engine": "fake"}
    return TuneConfig(**{**given, **values})


def preview_sweep(config: TuneConfig, adapter: EngineAdapter) -> Preview:
    return kvray.tuning.preview.preview_sweep(resolve(check_request(config, adapter)))


def known_hardware(config: TuneConfig, adapter: EngineAdapter, **how: Any) -> Hardware | None:
    return with_measured_rates(resolve(check_request(config, adapter)), **how).hardware


def labels(preview: Preview) -> list[str]:
    return [candidate.label for candidate in preview.space.candidates]


# What would be measured


def test_the_whole_space_of_the_engine_is_previewed_baseline_first() -> None:
    preview = preview_sweep(config(), FakeAdapter())
    assert len(labels(preview)) == 12
    assert labels(preview)[0] == preview.space.baseline.label == "dynamic/sdpa/float32"
    assert preview.dropped_contexts == ()


def test_each_axis_can_be_narrowed() -> None:
    narrowed = config(
        caches=(CacheStrategy.STATIC,), attentions=(AttentionBackend.SDPA_FLASH,), dtypes=(DType.FLOAT16,)
    )
    preview = preview_sweep(narrowed, FakeAdapter())
    assert labels(preview) == ["dynamic/sdpa/float32", "static/sdpa_flash/float16"]
    assert preview.space.asked_for == 1


def test_the_baseline_has_the_smallest_batch_that_is_asked_for() -> None:
    preview = preview_sweep(config(batch_sizes=(4, 2), attentions=(AttentionBackend.SDPA,)), FakeAdapter())
    assert preview.space.baseline.batch_size == 2
    assert {candidate.batch_size for candidate in preview.space.candidates} == {2, 4}


def test_compiling_is_an_axis_like_the_others() -> None:
    preview = preview_sweep(config(compiles=("off", "default")), FakeAdapter())
    assert {candidate.compile for candidate in preview.space.candidates} == {CompileMode.OFF, CompileMode.DEFAULT}


def test_a_full_space_has_all_that_the_engine_offers() -> None:
    preview = preview_sweep(config(space="full"), FakeAdapter())
    assert len(labels(preview)) == 24
    assert {candidate.compile for candidate in preview.space.candidates} == {CompileMode.OFF, CompileMode.DEFAULT}


def test_a_space_file_replaces_the_default_space(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "- cache: [static]\n  dtype: [float16]\n- attention: [eager]\n  cache: [dynamic]\n  compile: [off]\n"
    )
    preview = preview_sweep(config(space=str(path)), FakeAdapter())
    assert labels(preview) == [
        "dynamic/sdpa/float32",
        "static/eager/float16",
        "static/sdpa/float16",
        "static/sdpa_math/float16",
        "dynamic/eager/float32",
        "dynamic/eager/bfloat16",
    ]


def test_a_fixed_length_goes_to_every_static_cache_that_names_none() -> None:
    request = config(caches=("static", "static(max_cache_len=99)", "dynamic"), attentions=("sdpa",), static_len=512)
    preview = preview_sweep(request, FakeAdapter())
    assert {str(candidate.cache_choice) for candidate in preview.space.candidates} == {
        "dynamic",
        "static(max_cache_len=512)",
        "static(max_cache_len=99)",
    }


def test_contexts_that_the_model_cannot_hold_are_dropped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    fits = MAX_CONTEXT - 8
    preview = preview_sweep(config(contexts=(64, fits, fits + 1, 9000)), FakeAdapter())
    assert preview.profile.context_lengths == (64, fits)
    assert preview.dropped_contexts == (fits + 1, 9000)
    assert [record.getMessage() for record in caplog.records if record.name == "kvray.tuning.preview"] == [
        "Prompts of 4089, 9000 tokens are left out: with up to 8 new ones they exceed the 4096 that the model holds."
    ]


def test_without_dropped_contexts_there_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    preview_sweep(config(contexts=(64, MAX_CONTEXT - 8)), FakeAdapter())
    assert caplog.records == []


def test_a_profile_of_which_no_context_fits_is_refused() -> None:
    with pytest.raises(ProfileError, match=r"No context length of profile .* fits: the model holds 4096 tokens"):
        preview_sweep(config(contexts=(9000,)), FakeAdapter())


def test_a_model_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match=r"knows no model 'nope'"):
        preview_sweep(config(model_id="nope"), FakeAdapter())


# Menus and obstacles


def test_a_narrowedfor_nothing_that_can_be_had_gives_each_reason_and_what_there_is() -> None:
    request = config(attentions=(AttentionBackend.SDPA_CUDNN, AttentionBackend.SDPA_MATH))
    expected = (
        r"^No valid candidate is left: sdpa_cudnn: CUDA only; sdpa_math: unknown to this engine\. "
        r"Available here: eager, sdpa, sdpa_flash\.$"
    )
    with pytest.raises(NoCandidatesError, match=expected):
        check_request(request, ChoosyAdapter())
    with pytest.raises(NoCandidatesError, match=expected):
        preview_sweep(request, ChoosyAdapter())


@pytest.mark.parametrize(
    ("narrowed", "reason"),
    [
        (config(caches=(CacheStrategy.STATIC,)), "static: no room"),
        (config(dtypes=(DType.BFLOAT16,)), "bfloat16: too old"),
    ],
)
def test_every_axis_is_looked_at(narrowed: TuneConfig, reason: str) -> None:
    with pytest.raises(NoCandidatesError, match=reason):
        check_request(narrowed, ChoosyAdapter())


def test_a_narrowedof_which_something_can_be_had_goes_on_with_that() -> None:
    request = config(dtypes=(DType.FLOAT32, DType.BFLOAT16), attentions=(AttentionBackend.SDPA,))
    check_request(request, ChoosyAdapter())
    preview = preview_sweep(request, ChoosyAdapter())
    assert labels(preview) == ["dynamic/sdpa/float32"]
    assert {one.reason for one in preview.space.rejected} == {
        "bfloat16 is not supported on this cpu (dtype-on-device)",
        "static: no room (available-here)",
    }


def test_when_rules_reject_all_that_was_asked_for_their_reasons_are_given() -> None:
    request = config(attentions=(AttentionBackend.SDPA_CUDNN,))
    check_request(request, FakeAdapter())
    with pytest.raises(NoCandidatesError, match=r"left: PyTorch has no cudnn attention kernel for the CPU .*Widen"):
        preview_sweep(request, FakeAdapter())


def test_what_is_neither_measured_nor_rejected_is_left_out_with_the_reason() -> None:
    assert preview_sweep(config(), ChoosyAdapter()).left_out == (
        ("attention", "sdpa_flash", "it is slow"),
        ("attention", "sdpa_cudnn", "CUDA only"),
        ("dtype", "float16", "it is emulated"),
        ("dtype", "bfloat16", "too old"),
    )


def test_what_was_asked_for_is_not_left_out_and_what_was_not_is() -> None:
    preview = preview_sweep(config(dtypes=(DType.FLOAT16,), attentions=(AttentionBackend.SDPA,)), ChoosyAdapter())
    assert [(value, reason) for _, value, reason in preview.left_out] == [
        ("eager", "not asked for"),
        ("sdpa_flash", "it is slow"),
        ("sdpa_cudnn", "CUDA only"),
        ("bfloat16", "too old"),
    ]


# Forecasts

GIB_OF_PARAMETERS = 2**28
"""In float32; half as much in bfloat16."""


class MeasuringAdapter(FakeAdapter):
    """An engine that knows its model's shape, and a device that copies a gigabyte a second."""

    measures_hardware: ClassVar[bool] = True

    def __init__(self) -> None:
        self.measured: list[tuple[DeviceType, int | None]] = []
        self.disturbance: str | None = None
        self.rate = 1e9

    def describe_model(self, request: ModelRequest) -> ModelInfo:
        shape = ModelShape(
            total_parameters=GIB_OF_PARAMETERS,
            lookup_parameters=0,
            vocab=1000,
            hidden=64,
            intermediate=256,
            heads=4,
            layers=(LayerShape(kv_heads=4, key_dim=16, value_dim=16),) * 4,
        )
        return replace(super().describe_model(request), shape=shape)

    def measure_hardware(self, device: DeviceType, threads: int | None) -> Hardware | None:
        self.measured.append((device, threads))
        rates = dict.fromkeys(DType, self.rate)
        return Hardware(
            device=device,
            copy_bytes_s=self.rate,
            matmul_flops_s=rates,
            stream_bytes_s=rates,
            layer_s=0.0,
            step_s=0.0,
            disturbance=self.disturbance,
        )


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MeasuringAdapter:
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return MeasuringAdapter()


def with_free_memory(monkeypatch: pytest.MonkeyPatch, mib: float | None) -> None:
    monkeypatch.setattr(kvray.tuning.preview, "free_memory_mib", lambda device: mib)


def test_what_cannot_fit_is_rejected_with_the_numbers_and_keeps_its_forecast(
    engine: MeasuringAdapter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_free_memory(monkeypatch, 900.0)
    preview = preview_sweep(config(attentions=("sdpa",)), engine)
    assert labels(preview) == ["dynamic/sdpa/float32", "dynamic/sdpa/bfloat16", "static/sdpa/bfloat16"]
    (rejected,) = preview.space.rejected
    assert rejected.candidate.label == "static/sdpa/float32"
    assert rejected.reason == (
        "needs 1,024 MiB for 64→8 by forecast, but only 873 MiB can be used (900 MiB free, less 3 %) (forecast)"
    )
    assert preview.forecasts[rejected.candidate.candidate_id].peak_mib == pytest.approx(1024, rel=0.01)
    assert [record.getMessage() for record in caplog.records] == [
        "The baseline needs 1,024 MiB for 64→8 by forecast, but only 873 MiB can be used (900 MiB free, less 3 %); "
        "it is measured anyway."
    ]


def test_with_memory_enough_nothing_is_rejected(engine: MeasuringAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    with_free_memory(monkeypatch, 2000.0)
    preview = preview_sweep(config(), engine)
    assert preview.space.rejected == ()
    assert set(preview.forecasts) == {one.candidate_id for one in preview.space.candidates}


def test_without_a_forecast_all_are_launched(engine: MeasuringAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    with_free_memory(monkeypatch, 1.0)
    preview = preview_sweep(config(forecast=False), engine)
    assert (len(labels(preview)), preview.forecasts) == (12, {})
    assert known_hardware(config(forecast=False), engine) is None


def test_when_nothing_that_was_asked_for_fits_the_sweep_is_refused(
    engine: MeasuringAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free_memory(monkeypatch, 100.0)
    with pytest.raises(NoCandidatesError, match=r"left: needs 512 MiB .* only 97 MiB can be used"):
        preview_sweep(config(caches=("static",), dtypes=("bfloat16",)), engine)


def test_of_an_unknown_shape_or_an_unknown_memory_nothing_is_rejected(
    engine: MeasuringAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free_memory(monkeypatch, None)
    assert len(labels(preview_sweep(config(), engine))) == 12
    with_free_memory(monkeypatch, 1.0)
    preview = preview_sweep(config(), FakeAdapter())
    assert (len(labels(preview)), preview.forecasts) == (12, {})


def test_on_a_cluster_memory_is_forecast_and_nothing_is_measured_or_rejected(
    engine: MeasuringAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free_memory(monkeypatch, 1.0)
    request = config(address="head:6379")
    assert known_hardware(request, engine) is None
    preview = preview_sweep(request, engine)
    assert len(labels(preview)) == len(preview.forecasts) == 12
    assert {one.ttft_ms for one in preview.forecasts.values()} == {None}
    assert engine.measured == []


def test_rates_measured_while_others_computed_are_measured_again_after_hours_and_the_user_is_told(
    engine: MeasuringAdapter, caplog: pytest.LogCaptureFixture
) -> None:
    now, hour = [1e9], 3600.0
    engine.disturbance = "other programs used 1.0 of 2 CPUs"
    disturbed = known_hardware(config(), engine, clock=lambda: now[0])
    assert disturbed is not None
    (kept,) = (cache_dir() / "hardware").iterdir()
    assert caplog.messages == [
        "While this device's rates were measured, other programs used 1.0 of 2 CPUs, so forecast times are too long. "
        f"The rates are measured again in 6 hours; to measure them now, delete {kept} and repeat the command."
    ]
    assert preview_sweep(config(), engine).hardware == disturbed
    now[0] += 2.5 * hour
    assert known_hardware(config(), engine, clock=lambda: now[0]) == disturbed
    assert "The rates are measured again in 4 hours; " in caplog.messages[-1]
    assert len(engine.measured) == 1
    now[0] += 4 * hour
    engine.disturbance = None
    calm = known_hardware(config(), engine, clock=lambda: now[0])
    assert calm == replace(disturbed, disturbance=None, measured_at=now[0])
    now[0] += 1000 * hour
    assert known_hardware(config(), engine, clock=lambda: now[0]) == calm
    assert len(engine.measured) == 2


def test_disturbed_rates_are_measured_at_once_where_their_file_was_deleted(
    engine: MeasuringAdapter, caplog: pytest.LogCaptureFixture
) -> None:
    engine.disturbance = "other programs used 1.0 of 2 CPUs"
    known_hardware(config(), engine, clock=lambda: 1e9)
    told = re.search(r"delete (\S+) and repeat the command", caplog.messages[-1])
    assert told is not None
    Path(told[1]).unlink()
    known_hardware(config(), engine, clock=lambda: 1e9)
    assert len(engine.measured) == 2


def test_rates_that_were_disturbed_are_told_once_for_all_engines(caplog: pytest.LogCaptureFixture) -> None:
    calm = Hardware(
        device=DeviceType.CPU, copy_bytes_s=1.0, matmul_flops_s={}, stream_bytes_s={}, layer_s=0.0, step_s=0.0
    )
    first, second = (replace(calm, disturbance=f"other programs used {cpus} CPUs") for cpus in (1, 2))
    key = HardwareKey.here("fake", DeviceType.CPU, 1)
    warn_of_disturbed_rates([(key, one) for one in (None, calm, first, second)])
    (told,) = caplog.messages
    assert "other programs used 1 CPUs" in told


def test_who_measures_a_gguf_file_unpacked_learns_who_runs_it_as_it_is() -> None:
    seen = preview_sweep(config(), FakeAdapter())
    assert seen.hint is None
    unpacked = replace(seen, model=replace(seen.model, model_id="/a/m.GGUF"))
    assert unpacked.hint == ("The engine llama_cpp runs a GGUF file as it is. To rank it too: --engine fake,llama_cpp.")
    assert replace(unpacked, refused=(Refusal(engine="llama_cpp", reason="no"),)).hint is None


def test_of_rates_that_were_disturbed_twice_the_faster_count(engine: MeasuringAdapter) -> None:
    engine.disturbance = "other programs used 1.0 of 2 CPUs"
    known_hardware(config(), engine, clock=lambda: 0.0)
    engine.rate = 5e8
    slower = known_hardware(config(), engine, clock=lambda: 1e6)
    assert slower is not None
    assert (slower.copy_bytes_s, slower.measured_at) == (1e9, 1e6)
    assert set(slower.matmul_flops_s.values()) == {1e9}


def test_a_forecast_for_another_memory_says_nothing_of_this_machines_and_measures_nothing(
    engine: MeasuringAdapter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_free_memory(monkeypatch, 1.0)
    preview = forecast_only(resolve(check_request(config(), engine)), free_mib=80_000.0)
    assert (preview.free_mib, len(preview.forecasts), preview.space.rejected) == (80_000.0, 12, ())
    assert caplog.messages == []
    assert engine.measured == []


def test_a_device_is_measured_once_after_saying_so_and_only_then_are_seconds_forecast(
    engine: MeasuringAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free_memory(monkeypatch, 2000.0)
    assert {one.ttft_ms for one in preview_sweep(config(), engine).forecasts.values()} == {None}
    said: list[str] = []
    for _ in range(2):
        assert known_hardware(config(), engine, before_measuring=lambda: said.append("now")) is not None
    assert (said, engine.measured) == (["now"], [(DeviceType.CPU, None)])
    preview = preview_sweep(config(), engine)
    # 4 bytes for each parameter at a gigabyte a second
    baseline = preview.forecasts[preview.space.baseline.candidate_id]
    assert baseline.decode_tok_s == pytest.approx(1e9 / (4 * GIB_OF_PARAMETERS), rel=0.01)


def test_threads_that_a_trial_will_have_are_measured(engine: MeasuringAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvray.probes.cpu, "available_cpus", lambda: 8)
    known_hardware(config(slots=4), engine)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    known_hardware(config(), engine)
    assert [threads for _, threads in engine.measured] == [2, 3]


# Devices


def with_gpus(monkeypatch: pytest.MonkeyPatch, visible: str | None = None) -> None:
    monkeypatch.setattr(kvray.tuning.local_device, "visible_gpus", lambda value: select_visible(GPUS, value))
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


def test_gpus_are_taken_by_default_and_the_oldest_sets_the_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch)
    assert detect_device(None) == DeviceFacts(
        device=DeviceType.CUDA, device_name="New", gpu_count=2, compute_capability=(7, 5), gpu_memory_mib=1000.0
    )


def test_only_gpus_that_programs_may_use_count(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, "1")
    assert (detect_device(None).device_name, detect_device(None).gpu_count) == ("Old", 1)


def test_hidden_gpus_leave_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, "")
    assert detect_device(None).device is DeviceType.CPU


def test_the_cpu_can_be_asked_for_on_a_machine_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch)
    facts = detect_device(DeviceType.CPU)
    assert (facts.device, facts.gpu_count, facts.compute_capability) == (DeviceType.CPU, 0, None)


def test_the_threads_of_a_trial_are_known_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, "")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert detect_device(None).trial_threads == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(kvray.probes.cpu, "available_cpus", lambda: 8)
    assert detect_device(None, slots=4).trial_threads == 2


def test_cuda_without_a_gpu_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, "")
    with pytest.raises(SweepError, match=r"Device 'cuda' was asked for, but this machine has no GPU"):
        check_request(config(device=DeviceType.CUDA), FakeAdapter())


def test_cuda_without_a_gpu_here_is_left_to_the_cluster_to_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, "")
    check_request(config(device=DeviceType.CUDA, address="head:6379"), FakeAdapter())


def test_cuda_with_a_gpu_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch)
    check_request(config(device=DeviceType.CUDA), FakeAdapter())
