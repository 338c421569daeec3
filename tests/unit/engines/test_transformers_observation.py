"""From operator names to kernels, and what counts as a substitution: no library needed."""

from __future__ import annotations

import contextlib

import pytest

from kvray.candidate import AttentionBackend, CacheChoice, CacheStrategy, Candidate, CompileMode, DType
from kvray.engines.transformers.arguments import call_arguments, settings_objection
from kvray.engines.transformers.attention import forced_kernel, kernel_substitution, kernels_seen
from kvray.workload import Cell

FLASH, MATH = "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_attention_math"


@pytest.mark.parametrize(
    ("operators", "kernels"),
    [
        ({FLASH, "aten::mm"}, ("sdpa_flash",)),
        ({"aten::_scaled_dot_product_flash_attention"}, ("sdpa_flash",)),
        ({"aten::_scaled_dot_product_efficient_attention"}, ("sdpa_efficient",)),
        ({"aten::_scaled_dot_product_cudnn_attention"}, ("sdpa_cudnn",)),
        ({MATH, "aten::softmax"}, ("sdpa_math",)),
        ({FLASH, MATH}, ("sdpa_flash", "sdpa_math")),
        ({"aten::softmax", "aten::matmul"}, ("eager",)),
        ({"aten::matmul"}, ()),
        ({"## Call CompiledFxGraph abc ##", "aten::mm"}, ("compiled",)),
        ({"## Call CompiledFxGraph abc ##", FLASH}, ("sdpa_flash",)),
        ({"void pytorch_flash::flash_fwd_splitkv_kernel<half>", "cudaGraphLaunch"}, ("sdpa_flash",)),
        ({"void flash::flash_fwd_kernel<half>"}, ("flash_attention_2",)),
        ({"cutlass::device_kernel<flash::FlashAttnFwdSm90<half>>"}, ("flash_attention_3",)),
        ({"fmha_cutlassF_bf16_aligned_64x64_rf_sm80"}, ("sdpa_efficient",)),
        ({"triton_tem_fused_flex_attention_0"}, ("flex_attention",)),
        ((), ()),
    ],
)
def test_kernels_are_told_by_their_operators(operators: set[str], kernels: tuple[str, ...]) -> None:
    assert kernels_seen(operators) == kernels


@pytest.mark.parametrize(
    ("asked", "seen", "complaint"),
    [
        ("sdpa", ("sdpa_flash",), None),
        ("sdpa", ("sdpa_math",), None),
        ("sdpa", ("eager",), "asked for SDPA, decode ran eager attention"),
        ("sdpa_math", ("sdpa_math",), None),
        ("sdpa_math", ("sdpa_flash",), "asked for sdpa_math, decode ran sdpa_flash"),
        ("sdpa_flash", ("sdpa_flash", "sdpa_math"), "asked for sdpa_flash, decode ran sdpa_flash + sdpa_math"),
        ("eager", ("eager",), None),
        ("eager", ("sdpa_flash",), "asked for eager, decode ran sdpa_flash"),
        ("sdpa_math", (), "asked for sdpa_math, nothing in decode showed that it ran"),
        ("sdpa", (), None),
        ("sdpa_math", ("compiled",), None),
        ("flex_attention", ("compiled",), None),
        ("sdpa_flash", ("compiled",), "asked for sdpa_flash, decode ran compiled"),
        ("flash_attention_2", ("sdpa_flash",), "asked for flash_attention_2, decode ran sdpa_flash"),
        ("hub_kernel", ("flash_attention_2",), None),
        ("hub_kernel", ("sdpa_math",), "asked for a kernel from a hub, decode ran sdpa_math"),
    ],
)
def test_only_what_was_asked_for_may_run(asked: str, seen: tuple[str, ...], complaint: str | None) -> None:
    assert kernel_substitution(AttentionBackend(asked), "decode", seen) == complaint


def test_nothing_is_forced_unless_asked_for() -> None:
    assert isinstance(forced_kernel(None), contextlib.nullcontext)


def candidate(**changes: object) -> Candidate:
    values: dict[str, object] = {
        "cache": CacheStrategy.DYNAMIC,
        "attention": AttentionBackend.SDPA,
        "dtype": DType.FLOAT32,
    }
    given = {**values, **changes}
    return Candidate(engine="transformers", **{**given, "cache": CacheStrategy(str(given["cache"]))})  # type: ignore[arg-type]


def test_every_value_of_every_axis_has_arguments() -> None:
    for attention in AttentionBackend:
        kernel = "o/k" if attention is AttentionBackend.HUB_KERNEL else None
        arguments = call_arguments(candidate(attention=attention, hub_kernel=kernel))
        assert arguments.attn_implementation == kernel or ("sdpa" if attention.forces_a_kernel else attention.value)
        assert (arguments.sdpa_kernel is not None) == attention.forces_a_kernel
    for cache in CacheStrategy:
        arguments = call_arguments(candidate(cache=cache))
        assert arguments.static_cache == (arguments.cache_class == "StaticCache")
        assert dict(arguments.cache_options).get("offloading", False) is cache.value.startswith("offloaded")
    for dtype in DType:
        assert call_arguments(candidate(dtype=dtype)).dtype == dtype.value
    for mode in CompileMode:
        arguments = call_arguments(candidate(compile=mode))
        assert arguments.compile_mode == (None if mode is CompileMode.OFF else mode.value)
        assert arguments.generate_options["disable_compile"] is (mode is CompileMode.OFF)
    chunked = call_arguments(candidate(prefill_chunk=64, weights_limit_mib=900))
    assert chunked.generate_options["prefill_chunk_size"] == 64
    assert chunked.weights_limit_mib == 900


def test_hqq_quantises_along_its_fast_axis_unless_told_otherwise() -> None:
    def options(**params: object) -> dict[str, object]:
        choice = {"backend": "hqq", "nbits": 4, **params}
        return dict(call_arguments(candidate(cache="quantized", cache_params=tuple(choice.items()))).cache_options)

    assert options() == {"backend": "hqq", "nbits": 4, "axis_key": 1, "axis_value": 1}
    assert options(axis_key=0)["axis_key"] == 0


@pytest.mark.parametrize(
    ("cache", "objection"),
    [
        ("dynamic", None),
        ("static(max_cache_len=64)", None),
        ("sliding_window(window=64,sinks=4)", None),
        ("quantized(backend=quanto,nbits=4)", None),
        ("quantized(backend=hqq,nbits=8,axis_key=0)", None),
        ("quantized(backend=fp8)", None),
        ("dynamic(nbits=4)", "dynamic does not take nbits: it takes no settings"),
        ("static(window=3)", "static does not take window: it takes max_cache_len"),
        ("static(max_cache_len=long)", "max_cache_len of static must be a whole number"),
        ("sliding_window(window=64)", "sliding_window needs both window and sinks, in tokens"),
        ("sliding_window(window=4,sinks=4)", "sinks=4 must be less than window=4"),
        ("quantized", "quantized needs a backend, one of quanto, hqq, fp8, not None"),
        ("quantized(backend=HQQ,nbits=4)", "quantized needs a backend, one of quanto, hqq, fp8, not 'HQQ'"),
        ("quantized(backend=quanto,nbits=8)", "quanto needs nbits, one of 2, 4, not 8"),
        ("quantized(backend=hqq)", "hqq needs nbits, one of 1, 2, 3, 4, 8, not None"),
        ("quantized(backend=fp8,nbits=8)", "the fp8 backend does not take nbits"),
    ],
)
def test_settings_that_a_cache_does_not_take_are_told(cache: str, objection: str | None) -> None:
    choice = CacheChoice.parse(cache)
    assert settings_objection(candidate(cache=choice.strategy, cache_params=choice.params)) == objection


def test_a_setting_of_another_engine_is_told() -> None:
    assert settings_objection(candidate(settings=(("tile", 16),))) == "Transformers has no axis tile"


def test_a_checkpoint_cannot_take_the_cache_away() -> None:
    options = call_arguments(candidate()).generate_options
    assert options["use_cache"] is True


def test_a_static_cache_holds_prompt_and_output_or_its_own_number() -> None:
    assert call_arguments(candidate(cache="static")).cache_length(Cell(512, 64, 4)) == 576
    fixed = candidate(cache="static", cache_params=(("max_cache_len", 4096),))
    assert call_arguments(fixed).cache_length(Cell(512, 64, 4)) == 4096
    assert call_arguments(fixed).cache_options == ()
