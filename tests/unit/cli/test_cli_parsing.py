"""Comma-separated option values."""

from __future__ import annotations

import pytest

from kvray.candidate import AttentionBackend, CacheStrategy, DType
from kvray.cli.parsing import (
    parse_attentions,
    parse_caches,
    parse_choices,
    parse_integers,
    parse_limit,
    parse_optional_integers,
)
from kvray.errors import InvalidValueError


def test_an_option_that_is_not_given_narrows_nothing() -> None:
    assert parse_choices(None, DType) == ()
    assert parse_integers(None, option="--context") == ()


def test_choices_keep_their_order_and_come_once() -> None:
    assert parse_choices("static,dynamic,static", CacheStrategy) == (CacheStrategy.STATIC, CacheStrategy.DYNAMIC)


def test_choices_may_be_spaced_and_in_capitals() -> None:
    assert parse_choices(" SDPA , eager,", AttentionBackend) == (AttentionBackend.SDPA, AttentionBackend.EAGER)


def test_an_unknown_choice_is_named_with_what_is_allowed() -> None:
    with pytest.raises(InvalidValueError, match=r"^Unknown dtype 'int4'\. Allowed: float32, float16, bfloat16\.$"):
        parse_choices("float32,int4", DType)


@pytest.mark.parametrize("text", ["", ",", " , "])
def test_an_option_without_a_value_is_refused(text: str) -> None:
    with pytest.raises(InvalidValueError, match=r"Unknown cache strategy .* Allowed: dynamic, static, "):
        parse_choices(text, CacheStrategy)
    with pytest.raises(InvalidValueError, match=r"Unknown cache strategy"):
        parse_caches(text)
    with pytest.raises(InvalidValueError, match=r"Unknown attention backend"):
        parse_attentions(text)
    with pytest.raises(InvalidValueError, match=r"--prefill-chunk .* names no value"):
        parse_optional_integers(text, option="--prefill-chunk")
    with pytest.raises(InvalidValueError, match=r"--context .* is not a list of positive integers"):
        parse_integers(text, option="--context")


def test_commas_in_parentheses_belong_to_a_caches_settings() -> None:
    given = parse_caches("static, quantized( backend=hqq, nbits=4 ),sliding_window(window=64,sinks=4),static")
    assert [str(choice) for choice in given] == [
        "static",
        "quantized(backend=hqq,nbits=4)",
        "sliding_window(sinks=4,window=64)",
    ]


@pytest.mark.parametrize("text", ["static(", "static)", "quantized(nbits)", "quantized(=4)", "a(b(c=1))", "()"])
def test_what_is_no_cache_is_refused(text: str) -> None:
    with pytest.raises(InvalidValueError):
        parse_caches(text)


def test_a_kernel_of_a_hub_is_given_by_its_name() -> None:
    given = parse_attentions("SDPA,kernels-community/flash-attn2,sdpa")
    assert [(choice.backend.value, choice.hub_kernel) for choice in given] == [
        ("sdpa", None),
        ("hub_kernel", "kernels-community/flash-attn2"),
    ]
    for text in ("hub_kernel", "a/b/c", "a/b;c", "/b"):
        with pytest.raises(InvalidValueError):
            parse_attentions(text)


def test_none_is_a_value_where_nothing_can_be_asked_for() -> None:
    assert parse_optional_integers("none,512,none", option="--prefill-chunk") == (None, 512)
    assert parse_optional_integers(None, option="--prefill-chunk") == ()
    with pytest.raises(InvalidValueError, match=r"--prefill-chunk '0' is not a list of positive integers"):
        parse_optional_integers("none,0", option="--prefill-chunk")


def test_integers_keep_their_order() -> None:
    assert parse_integers("1024, 512,", option="--context") == (1024, 512)


@pytest.mark.parametrize("text", ["abc", "0", "-5", "16.5", "1e3", "512;1024", "512,x", "²", "٣"])
def test_what_is_no_positive_integer_is_named_with_the_form_that_is_wanted(text: str) -> None:
    with pytest.raises(InvalidValueError, match=r"is not a list of positive integers\. Write it like 512 or 512,1024"):
        parse_integers(text, option="--context")


def test_a_limit_is_a_positive_number_or_off() -> None:
    assert parse_limit("0.05", option="--max-quality-loss") == 0.05
    assert parse_limit(" OFF ", option="--max-quality-loss") is None


@pytest.mark.parametrize("text", ["", "0", "-1", "inf", "nan", "none", "5%"])
def test_what_is_no_limit_is_named_with_the_form_that_is_wanted(text: str) -> None:
    with pytest.raises(InvalidValueError, match=r"--max-quality-loss .* is neither a positive number nor off\."):
        parse_limit(text, option="--max-quality-loss")
