from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvray.errors import InvalidValueError, OutputError, ProfileError
from kvray.judgement import Judging, Weights
from kvray.workload import (
    MAX_QUALITY_LOSS,
    Cell,
    Limits,
    Objective,
    WorkloadProfile,
    create_custom_profile,
    get_profile,
    list_profiles,
    load_profile,
    override_profile,
    save_profile,
)


def custom(**changes: object) -> WorkloadProfile:
    values: dict[str, object] = {
        "name": "mine",
        "context_lengths": (256, 1024),
        "output_lengths": (8, 64),
        "weight_ttft": 0.5,
        "weight_throughput": 0.3,
        "weight_memory": 0.2,
    }
    return create_custom_profile(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "contexts", "outputs", "weights"),
    [
        ("chat-agent", (2048, 4096, 8192), (64, 128, 256), (0.50, 0.35, 0.15)),
        ("rag", (8192, 16384, 32768), (256, 512), (0.35, 0.35, 0.30)),
        ("longform", (4096, 8192), (1024, 2048), (0.25, 0.50, 0.25)),
        ("ci-micro", (512,), (32,), (0.40, 0.40, 0.20)),
    ],
)
def test_built_in_profiles_ask_what_they_promise(
    name: str, contexts: tuple[int, ...], outputs: tuple[int, ...], weights: tuple[float, ...]
) -> None:
    profile = get_profile(name)
    assert (profile.context_lengths, profile.output_lengths) == (contexts, outputs)
    assert (profile.weight_ttft, profile.weight_throughput, profile.weight_memory) == weights


def test_an_unknown_profile_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(ProfileError, match=r"Unknown profile 'chat'.*chat-agent, rag, longform, ci-micro"):
        get_profile("chat")


def test_every_built_in_profile_survives_a_file(tmp_path: Path) -> None:
    for name in list_profiles():
        save_profile(get_profile(name), tmp_path / "profile.json")
        assert load_profile(tmp_path / "profile.json") == get_profile(name)
        assert get_profile(str(tmp_path / "profile.json")) == get_profile(name)


def test_all_problems_of_a_profile_are_named_at_once() -> None:
    with pytest.raises(ProfileError) as caught:
        custom(context_lengths=(-5,), output_lengths=(1,), repeats=0)
    for field in ("context_lengths", "output_lengths", "repeats"):
        assert field in str(caught.value)
    assert "-5" in str(caught.value)


def test_weights_must_sum_to_one() -> None:
    with pytest.raises(ProfileError, match=r"weight_ttft \+ weight_throughput \+ weight_memory is 1.1, it must be 1"):
        custom(weight_memory=0.3)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not valid JSON"),
        ("[1]", "Input should be a valid dictionary"),
        ('{"name": "x"}', "context_lengths: Field required"),
        ('{"name": "x", "surprise": 1}', "surprise: there is no such key"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ProfileError, match=re.escape(problem)) as caught:
        load_profile(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(ProfileError, match=r"Cannot read profile .*nowhere.json.*No such file"):
        load_profile("nowhere.json")


def test_a_profile_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="Cannot write profile"):
        save_profile(get_profile("rag"), tmp_path / "missing" / "profile.json")


def test_rung_0_measures_each_context_once_with_few_tokens() -> None:
    assert custom().cells(2, rung=0) == (Cell(256, 16, 2), Cell(1024, 16, 2))


def test_rung_0_never_generates_more_than_the_profile_asks_for() -> None:
    assert custom(output_lengths=(4,)).cells(1, rung=0) == (Cell(256, 4, 1), Cell(1024, 4, 1))


def test_later_rungs_measure_every_cell() -> None:
    expected = (Cell(256, 8, 1), Cell(256, 64, 1), Cell(1024, 8, 1), Cell(1024, 64, 1))
    assert custom().cells(1, rung=1) == custom().cells(1, rung=2) == expected


def test_contexts_that_leave_no_room_for_the_longest_output_are_dropped() -> None:
    fitted, dropped = custom().fit_to_context_limit(1024)
    assert fitted.context_lengths == (256,)
    assert dropped == (1024,)
    assert custom().fit_to_context_limit(1088) == (custom(), ())
    assert custom().fit_to_context_limit(None) == (custom(), ())


def test_a_profile_that_keeps_no_context_is_an_error_that_names_all_of_them() -> None:
    with pytest.raises(ProfileError, match=r"holds 128 tokens.*256, 1024.*64 new tokens.*--context"):
        custom().fit_to_context_limit(128)


def test_overrides_replace_only_what_is_given() -> None:
    changed = override_profile(custom(), context_lengths=(32,), repeats=7)
    assert (changed.context_lengths, changed.output_lengths, changed.repeats) == ((32,), (8, 64), 7)
    assert override_profile(custom()) == custom()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"context_lengths": (32,)}, "mine, changed"),
        ({"output_lengths": (8,)}, "mine, changed"),
        ({"batch_sizes": (2,)}, "mine, changed"),
        ({"context_lengths": (1024, 256)}, "mine"),
        ({"repeats": 7}, "mine"),
        ({"judging": Judging(weights=Weights(1, 0, 0), limits={"max_ttft_ms": 5.0})}, "mine"),
    ],
)
def test_a_profile_with_other_cells_is_called_changed(changes: dict[str, Any], name: str) -> None:
    changed = override_profile(custom(), **changes)
    assert changed.name == name
    assert override_profile(changed, context_lengths=(64,)).name == "mine, changed"


def test_a_profile_that_a_model_cannot_hold_as_a_whole_is_called_changed() -> None:
    assert custom().fit_to_context_limit(512)[0].name == "mine, changed"
    assert custom().fit_to_context_limit(4096)[0].name == "mine"


def test_a_long_name_of_a_changed_profile_is_cut_and_stays_valid() -> None:
    changed = override_profile(custom(name="x" * 80), context_lengths=(32,))
    assert changed.name == "x" * 71 + ", changed"
    assert WorkloadProfile.model_validate(changed.model_dump()) == changed


def test_overrides_are_validated() -> None:
    with pytest.raises(ProfileError, match="repeats"):
        override_profile(custom(), repeats=0)


def test_a_limit_is_replaced_or_lifted_and_the_others_stay() -> None:
    profile = custom(limits=Limits(max_ttft_ms=500.0))
    assert override_profile(profile, judging=Judging(limits={"max_quality_loss": 0.5})).limits == Limits(
        max_ttft_ms=500.0, max_quality_loss=0.5
    )
    assert override_profile(profile, judging=Judging(limits={"max_quality_loss": None})).limits.max_quality_loss is None


@pytest.mark.parametrize("objective", list(Objective))
def test_an_objective_stands_for_weights_that_a_profile_can_have(objective: Objective) -> None:
    profile = override_profile(custom(), judging=Judging(weights=objective.weights))
    assert profile.weights == objective.weights
    assert profile.objective is objective
    assert profile == custom().with_objective(objective.value.upper())
    assert override_profile(profile, repeats=7).objective is objective


def test_an_objective_counts_its_own_metric_most_and_none_for_nothing() -> None:
    most = {one: max(one.weights._asdict().items(), key=lambda pair: pair[1])[0] for one in list(Objective)[:3]}
    assert most == {Objective.LATENCY: "ttft", Objective.THROUGHPUT: "throughput", Objective.MEMORY: "memory"}
    assert len(set(Objective.BALANCED.weights)) == 1
    assert all(min(one.weights) > 0 for one in Objective)


def test_weights_of_ones_own_are_no_objective() -> None:
    assert custom().objective is None


def test_an_unknown_objective_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(InvalidValueError, match=r"Unknown objective 'speed'.*latency, throughput, memory, balanced"):
        custom().with_objective("speed")


def test_a_profile_written_before_there_were_these_limits_takes_their_defaults(tmp_path: Path) -> None:
    data = custom().model_dump(mode="json")
    del data["limits"]["max_quality_loss"], data["limits"]["max_itl_ms"]
    (tmp_path / "p.json").write_text(json.dumps(data))
    assert load_profile(tmp_path / "p.json").limits == Limits(max_quality_loss=MAX_QUALITY_LOSS, max_itl_ms=None)


def test_limits_are_part_of_the_file(tmp_path: Path) -> None:
    profile = custom(limits=Limits(max_ttft_ms=500.0))
    save_profile(profile, tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text())["limits"]["max_ttft_ms"] == 500.0
    assert load_profile(tmp_path / "p.json").limits.max_ttft_ms == 500.0


@given(st.lists(st.integers(1, 10**6), min_size=1), st.lists(st.integers(2, 10**5), min_size=1), st.integers(1, 64))
def test_lengths_are_sorted_and_unique_and_every_cell_fits_what_was_asked(
    contexts: list[int], outputs: list[int], batch: int
) -> None:
    profile = custom(context_lengths=contexts, output_lengths=outputs)
    cells = profile.cells(batch, rung=2)
    assert len(set(cells)) == len(cells) == len(set(contexts)) * len(set(outputs))
    assert list(cells) == sorted(cells)


def test_an_unknown_key_of_a_profile_file_is_answered_with_those_there_are(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    data = json.loads(custom().model_dump_json())
    data["context_length"], data["limits"] = data.pop("context_lengths"), {"max_ttft": 5}
    file.write_text(json.dumps(data))
    with pytest.raises(ProfileError) as error:
        load_profile(file)
    assert "context_length: there is no such key" in str(error.value)
    assert "Did you mean 'context_lengths'? Allowed keys: name, description, context_lengths, " in str(error.value)
    assert "Did you mean 'max_ttft_ms'? Allowed keys under limits: max_ttft_ms, max_itl_ms, " in str(error.value)
