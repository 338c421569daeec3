"""Options that narrow an axis filter the space; whatever they ask for is measured, and nothing else is lost with it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvray.candidate import AttentionBackend, AttentionChoice, CacheChoice, CacheStrategy, CompileMode, DType
from kvray.space.narrowing import narrowed
from kvray.space.search_space import SpaceBlock

DYNAMIC, STATIC, WINDOW, QUANTIZED = (
    CacheChoice(one)
    for one in (CacheStrategy.DYNAMIC, CacheStrategy.STATIC, CacheStrategy.SLIDING_WINDOW, CacheStrategy.QUANTIZED)
)
EAGER, SDPA, MATH = (
    AttentionChoice(one) for one in (AttentionBackend.EAGER, AttentionBackend.SDPA, AttentionBackend.SDPA_MATH)
)
MAIN = SpaceBlock(caches=(DYNAMIC, STATIC), attentions=(EAGER, SDPA), dtypes=(DType.FLOAT32, DType.BFLOAT16))
RARE = SpaceBlock(caches=(DYNAMIC,), attentions=(MATH,), dtypes=(DType.BFLOAT16,))
SAVERS = SpaceBlock(caches=(WINDOW, QUANTIZED), attentions=(SDPA,), dtypes=(DType.BFLOAT16,))
SPACE = (MAIN, RARE, SAVERS)


def points(**asked: tuple[Any, ...]) -> set[tuple[str, str, str]]:
    return {
        (str(cache), str(attention), str(dtype))
        for axes in narrowed(SPACE, {name.removesuffix("s"): values for name, values in asked.items()})
        for cache, attention, dtype in itertools.product(axes.caches, axes.attentions, axes.dtypes)
    }


def test_a_dtype_keeps_the_caches_and_kernels_that_the_space_has() -> None:
    caches_and_kernels = {
        ("dynamic", "eager"),
        ("dynamic", "sdpa"),
        ("static", "eager"),
        ("static", "sdpa"),
        ("dynamic", "sdpa_math"),
        ("sliding_window", "sdpa"),
        ("quantized", "sdpa"),
    }
    assert points(dtypes=(DType.BFLOAT16,)) == {(*one, "bfloat16") for one in caches_and_kernels}
    assert points(dtypes=(DType.FLOAT32,)) == {(*one, "float32") for one in caches_and_kernels}, "in that dtype"


def test_a_cache_is_measured_as_the_space_has_it() -> None:
    assert points(caches=(WINDOW,)) == {("sliding_window", "sdpa", "bfloat16")}
    assert points(caches=(STATIC,)) == {
        ("static", attention, dtype) for attention in ("eager", "sdpa") for dtype in ("float32", "bfloat16")
    }


def test_a_value_that_the_space_does_not_have_is_measured_with_its_first_block() -> None:
    (compiled,) = narrowed(SPACE, {"compile": (CompileMode.DEFAULT,)})
    assert (compiled.caches, compiled.attentions) == (MAIN.caches, MAIN.attentions)
    assert compiled.compiles == (CompileMode.DEFAULT,)
    both = narrowed(SPACE, {"compile": (CompileMode.OFF, CompileMode.DEFAULT)})
    assert both[: len(SPACE)] == SPACE
    assert both[len(SPACE) :] == (compiled,)


def test_a_combination_that_the_space_does_not_have_is_measured_all_the_same() -> None:
    assert points(caches=(STATIC,), attentions=(MATH,)) == {
        ("static", "sdpa_math", "float32"),
        ("static", "sdpa_math", "bfloat16"),
    }
    assert ("static", "sdpa_math", "float32") in points(
        caches=(DYNAMIC, STATIC), attentions=(SDPA, MATH), dtypes=(DType.FLOAT32,)
    )


def test_values_keep_the_order_in_which_they_are_asked_for() -> None:
    (main,) = narrowed(SPACE, {"cache": (STATIC, DYNAMIC), "attention": (SDPA, EAGER)})
    assert (main.caches, main.attentions) == ((STATIC, DYNAMIC), (SDPA, EAGER))


@pytest.mark.parametrize("value", [None, 512])
def test_none_is_a_value_of_a_numeric_axis(value: int | None) -> None:
    assert all(axes.values_of("prefill_chunk") == (value,) for axes in narrowed(SPACE, {"prefill_chunk": (value,)}))


@given(
    caches=st.sets(st.sampled_from([DYNAMIC, STATIC, WINDOW, QUANTIZED]), min_size=1),
    attentions=st.sets(st.sampled_from([EAGER, SDPA, MATH]), min_size=1),
    dtypes=st.sets(st.sampled_from(DType), min_size=1),
)
def test_every_combination_asked_for_is_there_and_no_other(
    caches: set[CacheChoice], attentions: set[AttentionChoice], dtypes: set[DType]
) -> None:
    asked = itertools.product(map(str, caches), map(str, attentions), map(str, dtypes))
    assert points(caches=tuple(caches), attentions=tuple(attentions), dtypes=tuple(dtypes)) == set(asked)
