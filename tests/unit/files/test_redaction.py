from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvray.files.redaction import HIDDEN, SHORTEST_SECRET, redact

TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("--output s3://AKIDKEY:se/cr@et@bucket/prefix", "--output s3://bucket/prefix"),
        ("s3://key@bucket/x", "s3://bucket/x"),
        ("s3://bucket/x?access_key=a&secret_key=b", "s3://bucket/x"),
        ("'https://u:p@hub.example/api/models?token=abc' failed", "'https://hub.example/api/models' failed"),
        ("http://127.0.0.1:8080/a and gs://b/c", "http://127.0.0.1:8080/a and gs://b/c"),
        ("https://example.com/org/name@v1", "https://example.com/org/name@v1"),
        ("user@example.com asks: is x?y=1", "user@example.com asks: is x?y=1"),
    ],
)
def test_urls_lose_user_password_and_query(text: str, clean: str) -> None:
    assert redact(text, {}) == clean


@pytest.mark.parametrize(
    "secret",
    [
        TOKEN,
        "ghp_0123456789abcdefghijABCDEFGHIJ012345",
        "github_pat_11AAAAAAA0123456789_abcdefghij",
        "AKIAIOSFODNN7EXAMPLE",
        "sk-proj-0123456789abcdefghij",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    ],
)
def test_tokens_of_known_form_are_hidden(secret: str) -> None:
    assert redact(f"got '{secret}', sorry", {}) == f"got '{HIDDEN}', sorry"


def test_a_bearer_header_is_hidden() -> None:
    assert redact("Authorization: Bearer abcdefghijklmnop.qrst", {}) == f"Authorization: Bearer {HIDDEN}"


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "PGPASSWORD", "my_secret", "AZURE_STORAGE_KEY"]
)
def test_values_of_variables_that_say_secret_are_hidden(name: str) -> None:
    environment = {name: "correct horse"}
    assert redact("is correct horse, or correct%20horse", environment) == f"is {HIDDEN}, or {HIDDEN}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKENIZERS_PARALLELISM", "sometimes"),
        ("HF_TOKEN_PATH", "/somewhere/token"),
        ("PWD", "/home/someone"),
        ("HF_TOKEN", "short"),
        ("MODEL", "org/model-of-mine"),
    ],
)
def test_other_variables_and_short_values_stay(name: str, value: str) -> None:
    assert redact(f"value {value}", {name: value}) == f"value {value}"


def test_of_a_key_with_several_lines_every_line_is_hidden() -> None:
    environment = {"SIGNING_PRIVATE_KEY": "first-line-of-it\nsecond-line-of-it\n"}
    assert "line-of-it" not in redact("… second-line-of-it …", environment)


def test_the_longer_of_two_secrets_leaves_no_rest() -> None:
    environment = {"A_TOKEN": "abcdefgh", "B_TOKEN": "abcdefgh-and-more"}
    assert redact("abcdefgh-and-more", environment) == HIDDEN


ORDINARY = (
    "static/sdpa_math/bfloat16+compile:default×4",
    "TypeError: hf_quantizer and eos_token='<|endoftext|>' at transformers/modeling_utils.py:364",
    "CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 79.10 GiB total capacity)",
    "random:/data/models/tiny_llama --context 512,2048 --cache 'sliding_window(window=1024,sinks=4)'",
    "0123456789abcdef0123456789abcdef01234567 sha256:0123456789abcdef",
)


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert redact(text, {}) == text


@given(st.text(), st.text(min_size=SHORTEST_SECRET), st.text())
def test_no_value_of_a_secret_variable_survives_anywhere(before: str, secret: str, after: str) -> None:
    if secret in HIDDEN * 10:
        return
    hidden = redact(f"{before}{secret}{after}", {"SOME_TOKEN": secret})
    assert secret not in hidden or secret in f"{before}{HIDDEN}{after}"


@given(st.text())
def test_what_is_redacted_once_stays_as_it_is(text: str) -> None:
    once = redact(text, {})
    assert redact(once, {}) == once


@pytest.mark.timeout(30)  # a look ahead without a bound takes minutes for each
@pytest.mark.parametrize(
    "text",
    [
        "a" * 400_000,
        "eyJ-" * 50_000,
        "://a:" * 20_000,
        "://" * 40_000,
        "bearer " * 40_000,
        "eyJ12345678-" * 20_000 + ".eyJ",
    ],
)
def test_long_words_are_read_in_no_time(text: str) -> None:
    assert len(redact(text, {})) == len(text)


def test_a_secret_may_be_of_any_length() -> None:
    long = "x" * 10_000
    assert redact(f"s3://key:{long}@bucket/{long}?signature={long} read", {}) == f"s3://bucket/{long} read"
    assert redact(f"got eyJ{long}.eyJ{long}.{long}", {}) == f"got {HIDDEN}"
