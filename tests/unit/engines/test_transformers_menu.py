"""What the adapter offers on which device."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

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
from kvray.engines.base import DeviceFacts, ModelInfo, ModelRequest
from kvray.engines.transformers import TransformersAdapter, menu
from kvray.errors import NoCandidatesError
from kvray.extras import Extra, install_command
from kvray.space.constraints import SpaceFacts, first_objection
from kvray.space.menu import check_any_available
from kvray.space.search_space import SearchSpace, build_space
from kvray.workload import get_profile

SDPA = AttentionBackend.SDPA

CPU = DeviceFacts(device=DeviceType.CPU, device_name="a CPU")
AMPERE = DeviceFacts(device=DeviceType.CUDA, device_name="a GPU", gpu_count=1, compute_capability=(8, 0))
TURING = DeviceFacts(device=DeviceType.CUDA, device_name="an old GPU", gpu_count=1, compute_capability=(7, 5))
ADAPTER = TransformersAdapter()


def model(dtype: DType = DType.BFLOAT16) -> ModelInfo:
    return ModelInfo(model_id="o/m", revision="r", architecture="A", max_context=4096, native_dtype=dtype)


def obstacles(device: DeviceFacts) -> dict[tuple[str, str], str]:
    return {(entry.axis, entry.value): entry.obstacle for entry in ADAPTER.menu(device) if entry.obstacle}


def test_a_cpu_lacks_what_needs_cuda_and_each_line_says_so() -> None:
    lacking = obstacles(CPU)
    assert {value for axis, value in lacking if axis == "attention"} == {
        "sdpa_efficient",
        "sdpa_cudnn",
        "flash_attention_2",
        "flash_attention_3",
        "xformers",
        "flash",
        "hub_kernel",
    }
    assert lacking.pop(("attention", "flash")).startswith("Transformers has no fused kernel of its own: take sdpa_")
    assert {value for axis, value in lacking if axis == "cache"} == {"offloaded", "offloaded_static"}
    assert ("compile", "reduce-overhead") in lacking
    assert ("weights_limit_mib", "MiB") in lacking
    assert all("CUDA" in reason for reason in lacking.values())


def test_an_obstacle_names_the_gpu_generation_first_and_then_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(menu, "find_spec", lambda module: None)
    menu._is_installed.cache_clear()
    assert (
        obstacles(TURING)["attention", "flash_attention_2"] == "needs compute capability 8.0 (Ampere), this GPU has 7.5"
    )
    assert obstacles(AMPERE)["attention", "flash_attention_2"] == "needs the package flash-attn"
    assert (
        obstacles(AMPERE)["attention", "flash_attention_3"] == "needs compute capability 9.0 (Hopper), this GPU has 8.0"
    )
    packages = f"needs a package: {install_command(Extra.QUANTIZED)} brings hqq"
    assert obstacles(AMPERE)["cache", "quantized(backend=hqq,nbits=4)"] == packages
    assert obstacles(TURING)["dtype", "bfloat16"] == "needs compute capability 8.0 (Ampere), this GPU has 7.5"
    menu._is_installed.cache_clear()


def test_fp8_needs_a_transformers_that_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ("cache", "quantized(backend=fp8)") not in obstacles(CPU)
    monkeypatch.setattr(menu, "version", lambda package: "5.17.0")
    expected = "needs transformers 5.21 or newer, this is 5.17.0"
    assert obstacles(CPU)["cache", "quantized(backend=fp8)"] == expected


def test_what_is_slow_or_the_same_is_on_request() -> None:
    on_request = {entry.value for entry in ADAPTER.menu(CPU) if entry.on_request}
    assert {"float16", "sdpa_flash", "default", "paged", "flex_attention"} <= on_request
    on_gpu = {entry.value for entry in ADAPTER.menu(AMPERE) if entry.on_request}
    assert {"float16", "float32", "max-autotune-no-cudagraphs"} <= on_gpu
    assert not {"default", "reduce-overhead", "paged", "sdpa_flash"} & on_gpu


def space(
    device: DeviceFacts, info: ModelInfo | None = None, profile: str = "chat-agent", *, full: bool = False
) -> SearchSpace:
    info, workload = info or model(), get_profile(profile)
    blocks = (ADAPTER.full_space if full else ADAPTER.default_space)(info, device, workload)
    return build_space(
        blocks,
        baseline=ADAPTER.baseline(info, device, batch_size=1),
        facts=SpaceFacts(device=device.device, dtypes=frozenset(DType), gpu_count=1),
        engine_rules=ADAPTER.rules(ModelRequest(model_id="o/m"), info, workload),
    )


def test_the_default_space_is_of_a_size_to_wait_for() -> None:
    assert 8 <= len(space(CPU).candidates) <= 12
    assert 20 <= len(space(AMPERE).candidates) <= 40
    assert not space(AMPERE).rejected
    compiled = [one for one in space(AMPERE).candidates if one.compile is not CompileMode.OFF]
    assert {one.cache for one in compiled} == {CacheStrategy.STATIC}


def test_the_full_space_has_every_value_that_can_be_had() -> None:
    for device in (CPU, AMPERE):
        everything = space(device, full=True)
        points = [*everything.candidates, *(one.candidate for one in everything.rejected)]
        for entry in ADAPTER.menu(device):
            if entry.obstacle or entry.axis not in ("cache", "attention", "dtype", "compile"):
                continue
            values = {str(one.cache_choice if entry.axis == "cache" else getattr(one, entry.axis)) for one in points}
            bare = {value.partition("(")[0] for value in values}
            assert entry.value in values | bare, entry.value


def test_the_models_own_dtype_is_always_in_the_space() -> None:
    assert DType.FLOAT16 in {one.dtype for one in space(CPU, model(DType.FLOAT16)).candidates}
    assert DType.FLOAT16 not in {one.dtype for one in space(CPU).candidates}


def test_a_window_is_half_the_longest_sequence_and_bounded() -> None:
    (short,) = ADAPTER.resolve_cache(CacheChoice.parse("sliding_window"), CPU, get_profile("ci-micro"))
    assert str(short) == "sliding_window(sinks=4,window=272)"
    (long,) = ADAPTER.resolve_cache(CacheChoice.parse("sliding_window(sinks=8)"), CPU, get_profile("rag"))
    assert str(long) == "sliding_window(sinks=8,window=1024)"


def test_a_bare_quantized_means_every_variant_that_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(menu, "_is_installed", lambda module: module == "hqq")
    choices = ADAPTER.resolve_cache(CacheChoice.parse("quantized"), CPU, get_profile("ci-micro"))
    assert [str(one) for one in choices] == [
        "quantized(backend=hqq,nbits=8)",
        "quantized(backend=hqq,nbits=4)",
        "quantized(backend=hqq,nbits=2)",
        "quantized(backend=fp8)",
    ]


WINDOWED = replace(model(), layer_kinds=("sliding_attention",) * 2, architecture="M")
HYBRID = replace(model(), layer_kinds=("sliding_attention", "full_attention"), architecture="G")
RECURRENT = replace(model(), layer_kinds=("linear_attention",) * 2, architecture="S", missing_attentions=(SDPA,))


@pytest.mark.parametrize(
    ("changes", "info", "reason"),
    [
        ({"compile": "default"}, model(), "compiles the decode step only with a static cache, not with dynamic"),
        ({"compile": "default", "cache": "static"}, model(), None),
        ({"cache": "sliding_window(window=1024,sinks=4)"}, WINDOWED, "every layer is sliding attention"),
        ({"cache": "sliding_window(window=1024,sinks=4)"}, HYBRID, None),
        ({"cache": "sliding_window(window=9000,sinks=4)"}, model(), "a window of 9000 would drop nothing"),
        ({"cache": "quantized(backend=fp8)"}, HYBRID, "full attention only, this one has sliding attention"),
        ({"cache": "paged"}, RECURRENT, "pages keys and values only, this model has linear attention"),
        ({"attention": "sdpa"}, RECURRENT, "Transformers has no sdpa for S"),
        ({"cache": "static(max_cache_len=100)"}, model(), "8448 tokens, more than max_cache_len=100"),
        ({"cache": "static(max_cache_len=9000)"}, model(), None),
        ({"attention": "flex_attention", "cache": "static"}, model(), "block masks do not work with a cache of fixed"),
        ({"attention": "flex_attention"}, model(), None),
        ({"cache": "paged", "attention": "sdpa_math"}, model(), "where sdpa_math cannot be had"),
        ({"cache": "paged", "prefill_chunk": 64}, model(), "cuts prompts by itself"),
        ({"prefill_chunk": 8192}, model(), "pieces of 8192 would not cut it"),
        ({"prefill_chunk": 512}, model(), None),
        ({"weights_limit_mib": 900}, model(), None),
        ({"weights_limit_mib": 900}, replace(model(), random_weights=True), "random weights are made on the device"),
        ({"weights_limit_mib": 9, "compile": "default", "cache": "static"}, model(), "does not compile a model with"),
        ({"attention": "them/kernel"}, model(), "code by others than kernels-community: it needs --trust-remote-code"),
        ({"attention": "kernels-community/flash-attn2"}, model(), None),
        ({"cache": "dynamic(nbits=4)"}, model(), "dynamic does not take nbits"),
    ],
)
def test_what_cannot_be_combined_is_rejected_with_the_reason(
    changes: dict[str, Any], info: ModelInfo, reason: str | None
) -> None:
    cache = CacheChoice.parse(changes.pop("cache", "dynamic"))
    attention = AttentionChoice.parse(changes.pop("attention", "eager"))
    given = Candidate(
        engine="transformers",
        cache=cache.strategy,
        cache_params=cache.params,
        attention=attention.backend,
        hub_kernel=attention.hub_kernel,
        dtype=DType.BFLOAT16,
        **{**changes, "compile": CompileMode(changes.get("compile", "off"))},
    )
    facts = SpaceFacts(device=DeviceType.CUDA, dtypes=frozenset(DType), gpu_count=1)
    found = first_objection(given, facts, ADAPTER.rules(ModelRequest(model_id="o/m"), info, get_profile("chat-agent")))
    assert found is None if reason is None else reason in str(found)


def test_a_models_baseline_has_no_sdpa_where_its_architecture_has_none() -> None:
    assert ADAPTER.baseline(model(), CPU, batch_size=2).attention is SDPA
    assert ADAPTER.baseline(RECURRENT, CPU, batch_size=2).attention is AttentionBackend.EAGER


def test_compiled_code_is_kept_apart_by_torch_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path))
    environment = ADAPTER.process_environment()
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        assert environment[name].startswith(str(tmp_path / "compiled" / "torch-2."))


def test_the_lock_of_an_interrupted_build_is_found_inside_optimum_quanto(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = tmp_path / "optimum" / "quanto" / "library" / "extensions" / "cpp" / "build"
    build.mkdir(parents=True)
    (tmp_path / "optimum" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "optimum", raising=False)
    assert TransformersAdapter().build_locks() == []
    (build / "lock").touch()
    assert TransformersAdapter().build_locks() == [build / "lock"]


def test_a_number_that_no_value_of_its_axis_can_be_had_for_is_told_by_the_axis() -> None:
    expected = r"left: weights_limit_mib: leaves weights in host memory, .* CUDA GPU\. Leave weights_limit_mib out"
    with pytest.raises(NoCandidatesError, match=expected):
        check_any_available({"weights_limit_mib": (900,)}, ADAPTER.axes(CPU))
    check_any_available({"weights_limit_mib": (900, None)}, ADAPTER.axes(CPU))
    check_any_available({"weights_limit_mib": (900,)}, ADAPTER.axes(AMPERE))
