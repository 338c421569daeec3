"""Comma-separated option values."""

from __future__ import annotations

import re

import pytest

from kvray.candidate import AttentionBackend, CacheStrategy, DType
from kvray.cli.parsing import (
    parse_assignments,
    parse_attentions,
    parse_caches,
    parse_choices,
    parse_duration,
    parse_integers,
    parse_memory_limit,
    parse_number_limit,
    parse_optional_integers,
    parse_rate_limit,
    parse_retry,
    parse_settings,
    parse_time_limit,
    parse_weights,
)
from kvray.errors import InvalidValueError
from kvray.judgement import Weights
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
    assert parse_number_limit("0.05", option="--max-quality-loss") == 0.05
    assert parse_number_limit(" OFF ", option="--max-quality-loss") is None


@pytest.mark.parametrize("text", ["", "0", "-1", "inf", "nan", "none", "5%", "0.05ms", "1.2.3"])
def test_what_is_no_limit_is_named_with_the_form_that_is_wanted(text: str) -> None:
    wanted = r"--max-quality-loss .* is neither a positive number nor off\. Write it like 0\.05\."
    with pytest.raises(InvalidValueError, match=wanted):
        parse_number_limit(text, option="--max-quality-loss")


@pytest.mark.parametrize(("text", "ms"), [("400", 400.0), ("400ms", 400.0), ("0.4s", 400.0), (" 0.4 S ", 400.0)])
def test_a_limit_of_time_is_in_milliseconds_unless_it_says_otherwise(text: str, ms: float) -> None:
    assert parse_time_limit(text, option="--max-ttft") == pytest.approx(ms)
    with pytest.raises(
        InvalidValueError, match=r"--max-ttft '4m' is neither a time nor off\. Write it like 400 \(which"
    ):
        parse_time_limit("4m", option="--max-ttft")


@pytest.mark.parametrize("text", ["0.4", ".4", " 0.25 "])
def test_a_fraction_without_a_unit_is_no_limit_of_time_because_seconds_may_be_meant(text: str) -> None:
    with pytest.raises(
        InvalidValueError, match=rf"a number alone means milliseconds. Write {text.strip()}s for seconds"
    ):
        parse_time_limit(text, option="--max-ttft")


@pytest.mark.parametrize("text", ["30", "30tok/s", "30 tokens/s", "30 t/s", "3e1"])
def test_a_limit_of_throughput_may_say_its_unit(text: str) -> None:
    assert parse_rate_limit(text, option="--min-throughput") == 30.0
    with pytest.raises(InvalidValueError, match="neither a rate nor off"):
        parse_rate_limit("30ms", option="--min-throughput")


def test_weights_are_three_shares_of_which_one_that_is_not_named_is_nothing() -> None:
    assert parse_weights("ttft=0.5, throughput=0.3,memory=0.2") == Weights(0.5, 0.3, 0.2)
    assert parse_weights("ttft=1") == Weights(1.0, 0.0, 0.0)
    assert parse_weights(None) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ttft=0.5", "must be between 0 and 1 and sum to 1"),
        ("ttft=2,memory=-1", "must be between 0 and 1 and sum to 1"),
        ("ttft=half", "'half' is not a number"),
        (
            "speed=1",
            "Unknown weight of --weights 'speed'. Did you mean 'throughput'? Allowed: ttft, throughput, memory",
        ),
        ("", "sum to 1"),
        ("ttft=nan", "must be between 0 and 1"),
    ],
)
def test_what_are_no_weights_is_refused_with_the_form_that_is_wanted(text: str, told: str) -> None:
    with pytest.raises(InvalidValueError, match=re.escape(told)):
        parse_weights(text)


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
    wanted = r"--max-vram .* is neither a size nor off\. Write it like 8000 \(which are MiB\), 8GiB or 8GB\."
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
    assert parse_retry("oom, crashed,oom", option="--retry") == ((TrialStatus.OOM, TrialStatus.CRASHED), False)
    assert parse_retry("disturbed", option="--retry") == ((), True)
    assert parse_retry("oom,disturbed", option="--retry") == ((TrialStatus.OOM,), True)
    assert parse_retry(None, option="--retry") == ((), False)


@pytest.mark.parametrize("text", ["ok", "oom,skipped", "", "OOM"])
def test_what_is_no_failure_is_refused_with_those_that_are(text: str) -> None:
    with pytest.raises(InvalidValueError, match=r"Unknown status of --retry .* Allowed: oom, timeout, crashed, unsup"):
        parse_retry(text, option="--retry")


def test_settings_are_values_by_axis_beside_those_of_options_of_their_own() -> None:
    assert parse_settings(["tile=16, 64", " fused = true"], option="--set", prefill_chunk=(None, 512), other=()) == {
        "prefill_chunk": (None, 512),
        "tile": ("16", "64"),
        "fused": ("true",),
    }


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        (["tile"], r"--set 'tile' names no value\. Write it like --set NAME=V1,V2\."),
        (["=16"], "names no value"),
        (["tile=,"], "names no value"),
        (["tile=16", "tile=64"], r"Axis 'tile' is given twice\. Write it once: --set tile=V1,V2\."),
        (["prefill_chunk=512"], "Axis 'prefill_chunk' is given twice"),
    ],
)
def test_a_setting_of_another_form_is_refused(texts: list[str], complaint: str) -> None:
    with pytest.raises(InvalidValueError, match=complaint):
        parse_settings(texts, option="--set", prefill_chunk=(512,))


def test_two_files_of_one_model_for_one_engine_are_refused() -> None:
    told = r"--model-for names llama_cpp twice: '/a\.gguf' and '/b\.gguf'\. Give one of them\."
    with pytest.raises(InvalidValueError, match=told):
        parse_assignments(["llama_cpp=/a.gguf", "llama_cpp=/b.gguf"], option="--model-for", only_once=True)
    texts = ["llama_cpp=/a.gguf", "vllm=/b", "llama_cpp=/a.gguf"]
    assert len(parse_assignments(texts, option="--model-for", only_once=True)) == 2


def test_names_and_values_are_read_from_options_that_come_several_times() -> None:
    texts = ["vllm=/a/python", " fake = /b=c/python ", "vllm=/d/python"]
    assert parse_assignments(texts, option="--engine-python") == {"vllm": "/d/python", "fake": "/b=c/python"}
    for text in ("vllm", "=/a/python", "vllm=", ""):
        told = (
            rf"--engine-python '{text}' is not of the form NAME=VALUE\. Write it like --engine-python llama_cpp=PATH\."
        )
        with pytest.raises(InvalidValueError, match=told):
            parse_assignments([text], option="--engine-python")
