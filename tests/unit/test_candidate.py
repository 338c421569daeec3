from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvray.candidate import AttentionBackend, CacheChoice, CacheStrategy, Candidate, CompileMode, DType
from kvray.errors import InvalidValueError

BASE = Candidate(
    engine="transformers", cache=CacheStrategy.DYNAMIC, attention=AttentionBackend.SDPA, dtype=DType.FLOAT32
)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,4}", fullmatch=True)
candidates = st.builds(
    Candidate,
    engine=st.sampled_from(["transformers", "llama_cpp"]),
    cache=st.sampled_from(CacheStrategy),
    attention=st.sampled_from([one for one in AttentionBackend if one is not AttentionBackend.HUB_KERNEL]),
    prefill_chunk=st.one_of(st.none(), st.integers(1, 4096)),
    weights_limit_mib=st.one_of(st.none(), st.integers(1, 4096)),
    dtype=st.sampled_from(DType),
    compile=st.sampled_from(CompileMode),
    batch_size=st.integers(1, 64),
    parallelism=st.integers(1, 8),
    cache_params=st.dictionaries(NAMES, st.one_of(st.booleans(), st.integers(), st.text(max_size=5))).map(
        lambda params: tuple(params.items())
    ),
    settings=st.dictionaries(
        NAMES,
        st.one_of(
            st.integers(),
            st.sampled_from(["q8_0", "rows"]),
            st.floats(allow_nan=False, width=16).filter(lambda value: not value.is_integer() and abs(value) < 1e9),
        ),
    ).map(lambda settings: tuple(settings.items())),
)


@given(candidates)
def test_a_candidate_survives_its_dictionary(candidate: Candidate) -> None:
    again = Candidate.from_dict(candidate.to_dict())
    assert again == candidate
    assert again.candidate_id == candidate.candidate_id


@given(candidates, candidates)
def test_ids_differ_exactly_when_candidates_differ(one: Candidate, other: Candidate) -> None:
    assert (one.candidate_id == other.candidate_id) == (one.to_dict() == other.to_dict())


def test_the_id_is_the_same_on_every_machine() -> None:
    assert BASE.candidate_id == "c402dc00dc99"


def test_every_field_changes_the_id() -> None:
    others = [
        replace(BASE, engine="vllm"),
        replace(BASE, cache=CacheStrategy.STATIC),
        replace(BASE, attention=AttentionBackend.EAGER),
        replace(BASE, dtype=DType.BFLOAT16),
        replace(BASE, compile=CompileMode.DEFAULT),
        replace(BASE, batch_size=2),
        replace(BASE, parallelism=2),
        replace(BASE, cache_params=(("nbits", 4),)),
        replace(BASE, settings=(("nbits", 4),)),
        replace(BASE, settings=(("nbits", 8),)),
    ]
    assert len({candidate.candidate_id for candidate in (BASE, *others)}) == len(others) + 1


def test_the_order_of_cache_parameters_does_not_matter() -> None:
    assert replace(BASE, cache_params=(("b", 1), ("a", 2))) == replace(BASE, cache_params=(("a", 2), ("b", 1)))


def test_the_order_of_settings_does_not_matter_and_each_is_named_once() -> None:
    assert replace(BASE, settings=(("b", 1), ("a", 2))) == replace(BASE, settings=(("a", 2), ("b", 1)))
    with pytest.raises(InvalidValueError, match="name one twice"):
        replace(BASE, settings=(("a", 1), ("a", 2)))


def test_labels_name_what_differs_from_the_plain_case() -> None:
    assert BASE.label == "dynamic/sdpa/float32"
    full = replace(BASE, compile=CompileMode.DEFAULT, batch_size=4, cache_params=(("nbits", 4),))
    assert full.label == "dynamic(nbits=4)/sdpa/float32+compile:default×4"
    set_ = replace(BASE, settings=(("tile", 16), ("fused", True), ("layout", "rows")), batch_size=4)
    assert set_.label == "dynamic/sdpa/float32+fused:true+layout:rows+tile:16×4"
    assert replace(full, parallelism=2).label == "dynamic(nbits=4)/sdpa/float32+compile:default+gpus:2×4"
    spread = replace(BASE, settings=(("split", "tp"), ("tile", 16)), parallelism=2)
    assert spread.label == "dynamic/sdpa/float32+tile:16+tp=2", "as --parallelism has it"


def test_an_unknown_value_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(InvalidValueError, match=r"Unknown dtype 'int8'\. Allowed: float32, float16, bfloat16\."):
        DType.parse("int8")
    assert DType.parse(" BFloat16 ") is DType.BFLOAT16


@pytest.mark.parametrize(
    "change",
    [
        {"cache": "paged-out"},
        {"dtype": None},
        {"surprise": 1},
        {"batch_size": 0},
        {"cache_params": [1]},
        {"cache_params": {"x": []}},
        {"parallelism": -1},
        {"settings": [1]},
        {"settings": {"tile": []}},
        {"settings": {"tile": None}},
        {"settings": {"tile": ""}},
        {"settings": {"tile": "a\nb"}},
        {"settings": {"tile": "a,b"}},
        {"settings": {"tile": float("nan")}},
        {"settings": {"a tile": 1}},
        {"settings": {"dtype": "float32"}},
    ],
)
def test_a_dictionary_that_is_no_candidate_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidValueError):
        Candidate.from_dict({**BASE.to_dict(), **change})


def test_a_dictionary_that_lacks_a_field_is_refused() -> None:
    data = BASE.to_dict()
    del data["cache"]
    with pytest.raises(InvalidValueError, match="cache"):
        Candidate.from_dict(data)


@pytest.mark.parametrize("field", ["batch_size", "parallelism"])
@pytest.mark.parametrize("value", ["4", 2.5, True, None])
def test_a_count_that_is_no_whole_number_is_refused(field: str, value: object) -> None:
    with pytest.raises(InvalidValueError, match="is not a positive whole number"):
        Candidate.from_dict({**BASE.to_dict(), field: value})


def test_an_id_from_before_a_field_existed_stays_the_same() -> None:
    plain = Candidate(
        engine="transformers", cache=CacheStrategy.DYNAMIC, attention=AttentionBackend.SDPA, dtype=DType.FLOAT32
    )
    assert not {"hub_kernel", "prefill_chunk", "weights_limit_mib", "settings"} & set(plain.to_dict())
    assert plain.candidate_id == "c402dc00dc99"


@pytest.mark.parametrize(
    "text", ["dynamic", "static(max_cache_len=64)", "quantized(backend=hqq,nbits=4)", "paged(a=True)"]
)
def test_a_cache_is_read_back_from_its_name(text: str) -> None:
    assert str(CacheChoice.parse(text)) == text


def test_a_hub_kernel_goes_with_its_name_and_nothing_else_does() -> None:
    values = {"engine": "transformers", "cache": "dynamic", "dtype": "float32"}
    kernel = Candidate.from_dict({**values, "attention": "hub_kernel", "hub_kernel": "kernels-community/flash-attn2"})
    assert kernel.label == "dynamic/kernels-community/flash-attn2/float32"
    for attention, name in (("hub_kernel", None), ("sdpa", "a/b"), ("hub_kernel", "a/b c"), ("hub_kernel", "../b")):
        with pytest.raises(InvalidValueError, match=r"hub_kernel|owner/kernel"):
            Candidate.from_dict({**values, "attention": attention, "hub_kernel": name})


def test_a_label_tells_engines_apart() -> None:
    """A sweep may take several, and two sweeps may be compared."""
    assert replace(BASE, engine="vllm").label == f"vllm:{BASE.label}"
    assert replace(BASE, engine="fake").label == BASE.label
