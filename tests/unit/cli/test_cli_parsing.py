"""Comma-separated option values."""

from __future__ import annotations

import pytest

from kvray.candidate import AttentionBackend, CacheStrategy, DType
from kvray.cli.parsing import (
    parse_attentions,
    parse_caches,
    parse_choices,
    parse_duration,
    parse_failures,
    parse_integers,
    parse_limit,
    parse_memory_limit,
    parse_optional_integers,
)
from kvray.errors import InvalidValueError
from kvray.record import TrialStatus


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
    assert parse_limit("0.05", option="--max-quality-loss", example="0.1") == 0.05
    assert parse_limit(" OFF ", option="--max-quality-loss", example="0.1") is None


@pytest.mark.parametrize("text", ["", "0", "-1", "inf", "nan", "none", "5%"])
def test_what_is_no_limit_is_named_with_the_form_that_is_wanted(text: str) -> None:
    wanted = r"--max-ttft .* is neither a positive number nor off\. Write it like 400\."
    with pytest.raises(InvalidValueError, match=wanted):
        parse_limit(text, option="--max-ttft", example="400")


@pytest.mark.parametrize(
    ("text", "mib"),
    [("8000", 8000.0), ("8000 MiB", 8000.0), ("7.5gib", 7680.0), ("8GB", 7629.39453125), ("1048.576MB", 1000.0)],
)
def test_a_limit_of_memory_is_in_mib_unless_it_says_otherwise(text: str, mib: float) -> None:
    assert parse_memory_limit(text, option="--max-vram") == pytest.approx(mib)


def test_a_limit_of_memory_can_be_lifted() -> None:
    assert parse_memory_limit("off", option="--max-vram") is None


@pytest.mark.parametrize("text", ["", "0", "0GiB", "-1", "GiB", "8 TiB", "8G", "1.2.3", "inf", "9" * 400, "offGiB"])
def test_what_is_no_size_is_named_with_the_form_that_is_wanted(text: str) -> None:
    wanted = r"--max-vram .* is neither a size nor off\. Write it like 8000 \(which are MiB\) or 8GiB\."
    with pytest.raises(InvalidValueError, match=wanted):
        parse_memory_limit(text, option="--max-vram")


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("20m", 1200.0), ("1.5h", 5400.0), (" 5 M ", 300.0)])
def test_a_duration_is_a_number_with_its_unit(text: str, seconds: float) -> None:
    assert parse_duration(text, option="--budget") == seconds


@pytest.mark.parametrize("text", ["", "soon", "4", "0s", "-5m", "5d", "1e3s", "9" * 400 + "h"])
def test_what_is_no_duration_above_zero_is_refused_with_examples(text: str) -> None:
    with pytest.raises(InvalidValueError, match=r"--budget .* is not a time above 0 with its unit\. Write it like 90s"):
        parse_duration(text, option="--budget")


def test_failures_to_retry_are_statuses_each_once() -> None:
    assert parse_failures("oom, crashed,oom", option="--retry") == (TrialStatus.OOM, TrialStatus.CRASHED)
    assert parse_failures(None, option="--retry") == ()


@pytest.mark.parametrize("text", ["ok", "oom,skipped", "", "OOM"])
def test_what_is_no_failure_is_refused_with_those_that_are(text: str) -> None:
    with pytest.raises(InvalidValueError, match=r"Unknown status of --retry .* Allowed: oom, timeout, crashed, unsup"):
        parse_failures(text, option="--retry")
