"""From operator names to kernels, and what counts as a substitution: no library needed."""

from __future__ import annotations

import contextlib

import pytest

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, CompileMode, DType
from kvray.engines.transformers.arguments import cache_length, call_arguments
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
        ("sdpa_math", (), None),
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
    return Candidate(engine="transformers", **{**values, **changes})  # type: ignore[arg-type]


def test_every_value_of_every_axis_has_arguments() -> None:
    for attention in AttentionBackend:
        arguments = call_arguments(candidate(attention=attention))
        assert arguments.attn_implementation == ("eager" if attention is AttentionBackend.EAGER else "sdpa")
        assert (arguments.sdpa_kernel is not None) == attention.forces_a_kernel
    for cache in CacheStrategy:
        arguments = call_arguments(candidate(cache=cache))
        assert arguments.static_cache == (arguments.cache_class == "StaticCache")
    for dtype in DType:
        assert call_arguments(candidate(dtype=dtype)).dtype == dtype.value
    for mode in CompileMode:
        arguments = call_arguments(candidate(compile=mode))
        assert arguments.compile_mode == (None if mode is CompileMode.OFF else mode.value)
        assert arguments.generate_options["disable_compile"] is (mode is CompileMode.OFF)


def test_a_checkpoint_cannot_take_the_cache_away() -> None:
    options = call_arguments(candidate()).generate_options
    assert options["use_cache"] is True
    assert options["cache_implementation"] is None


def test_a_static_cache_holds_prompt_and_output() -> None:
    assert cache_length(Cell(512, 64, 4)) == 576
