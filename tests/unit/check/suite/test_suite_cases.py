from __future__ import annotations

import pytest

from kvray.candidate import CacheStrategy, DeviceType
from kvray.check.suite.cases import SUITE_PROFILE, TOLERANCES, Arithmetic, Case, suite_cases
from kvray.check.suite.choosing import Asked, choose_cases
from kvray.check.suite.models import MODELS
from kvray.engines.base import DeviceFacts
from kvray.engines.registry import get_engine
from kvray.errors import InvalidValueError, NoCandidatesError
from kvray.space.axis import canonical_form

CPU = DeviceFacts(device=DeviceType.CPU, device_name="a CPU")
CASES = suite_cases()
LEFT_OUT = {
    ("attention", "flash"): "Transformers has none",
    ("attention", "hub_kernel"): "a family of foreign kernels, which are downloaded",
    ("attention", "flex_attention"): "compiles for half a minute",
}


def test_names_are_unique_and_begin_with_engine_and_model() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        assert case.name.split("/")[:2] == [case.engine, case.model.name]


@pytest.mark.parametrize("engine", ["transformers", "llama_cpp", "vllm"])
def test_every_cache_of_an_engine_s_menu_is_in_the_set(engine: str) -> None:
    menu = {line.value for line in get_engine(engine).menu(CPU) if line.axis == "cache"}
    own = [case.candidate for case in CASES if case.engine == engine]
    assert menu <= {str(one.cache_choice) for one in own} | {one.cache.value for one in own}


def test_every_attention_of_transformers_is_in_the_set_or_left_out_for_a_reason() -> None:
    menu = {line.value for line in get_engine("transformers").menu(CPU) if line.axis == "attention"}
    own = {case.candidate.attention.value for case in CASES if case.engine == "transformers"}
    assert menu - own == {value for axis, value in LEFT_OUT}


def test_every_type_of_keys_of_llama_cpp_is_in_the_set() -> None:
    menu = {line.value for line in get_engine("llama_cpp").menu(CPU) if line.axis == "type_k"}
    own = {str(case.candidate.setting("type_k") or "f16") for case in CASES if case.engine == "llama_cpp"}
    assert menu == own


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_is_written_as_the_engine_has_it(case: Case) -> None:
    axes = get_engine(case.engine).axes(CPU)
    assert canonical_form(case.candidate, axes, SUITE_PROFILE) == case.candidate


def test_a_model_holds_the_longest_case_and_a_window_that_it_passes() -> None:
    longest = max(case.context_tokens + case.output_tokens for case in SUITE_PROFILE.cells(1, rung=1))
    for model in MODELS.values():
        assert longest <= model.config["max_position_embeddings"]
        assert model.window is None or model.window < longest


def test_what_rounds_may_stray_further_than_what_does_not() -> None:
    assert set(TOLERANCES) == set(Arithmetic)
    assert TOLERANCES[Arithmetic.FLOAT32] < min(
        limit for kind, limit in TOLERANCES.items() if kind != Arithmetic.FLOAT32
    )
    for case in CASES:
        assert (case.arithmetic is Arithmetic.QUANTIZED) == (case.candidate.cache is CacheStrategy.QUANTIZED)


def test_what_cannot_run_here_is_skipped_in_the_words_of_the_menu() -> None:
    chosen = choose_cases(Asked(engines=("transformers",)), CPU)
    skipped = {one.name: one.reason for one in chosen.skipped}
    assert "needs a CUDA GPU" in skipped["transformers/gqa/offloaded"]
    assert "CUDA only" in skipped["transformers/gqa/sdpa_cudnn"]
    assert chosen.engines == ("transformers",)
    assert not {case.name for case in chosen.cases} & set(skipped)


def test_an_engine_that_is_not_installed_is_skipped_with_its_own_words() -> None:
    chosen = choose_cases(Asked(only=("vllm/*", "transformers/gqa/dynamic")), CPU)
    assert [case.name for case in chosen.cases] == ["transformers/gqa/dynamic"]
    assert {one.reason for one in chosen.skipped} == {"The engine vllm needs vllm, which is not installed."}
    with pytest.raises(NoCandidatesError, match=r"No case .* can run here: The engine vllm needs vllm"):
        choose_cases(Asked(engines=("vllm",)), CPU)


def test_the_reduced_set_has_each_engine_and_each_model() -> None:
    quick = [case for case in CASES if case.is_quick]
    assert {case.engine for case in quick} == {case.engine for case in CASES}
    assert {case.model.name for case in quick} == set(MODELS)
    assert len(quick) <= len(CASES) / 4


def test_a_record_of_a_part_limits_what_is_measured_again() -> None:
    chosen = choose_cases(Asked(known=frozenset({"transformers/gqa/dynamic", "transformers/gqa/offloaded"})), CPU)
    assert [case.name for case in chosen.cases] == ["transformers/gqa/dynamic"]
    assert [one.name for one in chosen.skipped] == ["transformers/gqa/offloaded"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked(engines=("transformer",)), r"Unknown engine of the suite 'transformer'\. Did you mean 'transformers'\?"),
        (Asked(only=("transformers/gqa/dynamik",)), "No case of the suite is called .* Did you mean"),
    ],
)
def test_what_is_not_in_the_suite_is_refused(asked: Asked, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        choose_cases(asked, CPU)
