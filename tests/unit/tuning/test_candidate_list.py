"""Candidates that are listed in a file, in place of a space."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvray.candidate import Candidate, DeviceType
from kvray.config import TuneConfig
from kvray.errors import InvalidValueError, NoCandidatesError, PlanError
from kvray.tuning.engines import SweepEngines, preview_engines
from kvray.tuning.preview import Preview

OLD = Path(__file__).parents[2] / "assets" / "results_v3"
PLAN = OLD / "reports" / "20261127-023553-8bef" / "best_plan.json"
STATIC = {"engine": "fake", "cache": "static", "attention": "eager", "dtype": "float32"}
COMPILED = {**STATIC, "compile": "default"}


def preview_of(path: Path, content: object, **changes: Any) -> Preview:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    values = {"model_id": "fake:ok", "profile": "ci-micro", "device": DeviceType.CPU, "engine": "fake", **changes}
    config = TuneConfig(candidates=str(path), **values)
    engines = SweepEngines.named(config.engines)
    return preview_engines(engines, engines.resolve(engines.check(config)))


def test_what_is_listed_is_measured_beside_the_baseline_and_nothing_else(tmp_path: Path) -> None:
    space = preview_of(tmp_path / "list.json", [STATIC, COMPILED, STATIC]).space
    assert [one.label for one in space.candidates] == [
        "dynamic/sdpa/float32",
        "static/eager/float32",
        "static/eager/float32+compile:default",
    ]
    assert space.candidates[1].candidate_id == Candidate.from_dict(STATIC).candidate_id


def test_what_cannot_be_had_here_is_rejected_with_its_reason(tmp_path: Path) -> None:
    space = preview_of(tmp_path / "list.json", [STATIC, {**STATIC, "parallelism": 2}]).space
    assert len(space.candidates) == 2
    assert [one.candidate.label for one in space.rejected] == ["static/eager/float32+gpus:2"]


def test_a_plan_lists_its_candidates(tmp_path: Path) -> None:
    plan = json.loads(PLAN.read_text())
    ids = {one.candidate_id for one in preview_of(tmp_path / "plan.json", PLAN.read_text()).space.candidates}
    assert ids >= set(plan["candidates"])
    with pytest.raises(PlanError):
        preview_of(tmp_path / "plan.json", {"plan_version": 1})


def test_ids_are_looked_up_in_the_results_folder(tmp_path: Path) -> None:
    wanted = sorted(json.loads(PLAN.read_text())["candidates"])
    space = preview_of(tmp_path / "ids.json", [*wanted, STATIC], output_dir=OLD).space
    assert {one.candidate_id for one in space.candidates} >= {*wanted, Candidate.from_dict(STATIC).candidate_id}
    with pytest.raises(InvalidValueError, match=r"Item 1 of .* has no record of candidate 'abcdefabcdef'"):
        preview_of(tmp_path / "ids.json", ["abcdefabcdef"], output_dir=OLD)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("nonsense", "is not JSON"),
        ([], "is no list of 1 to"),
        ({"model_type": "llama"}, "lists no candidates"),
        ([1], "Item 1 of .* is neither a candidate nor the id of one"),
        ([STATIC, {"engine": "fake"}], "Item 2 of .*: Not a candidate"),
        ([{**STATIC, "cache": "statick"}], "Item 1 of .*statick"),
    ],
)
def test_a_file_that_lists_none_is_refused(tmp_path: Path, content: object, told: str) -> None:
    with pytest.raises(InvalidValueError, match=told):
        preview_of(tmp_path / "list.json", content)


def test_a_list_without_the_engines_own_names_the_engines_that_it_has(tmp_path: Path) -> None:
    with pytest.raises(NoCandidatesError, match="lists no candidate of engine 'fake'") as error:
        preview_of(tmp_path / "list.json", [{**STATIC, "engine": "vllm"}])
    assert error.value.hint == "It lists candidates of vllm; name the engine with --engine."


def test_a_list_excludes_other_ways_to_say_what_is_measured(tmp_path: Path) -> None:
    for other in ({"space": "full"}, {"caches": ("static",)}):
        with pytest.raises(InvalidValueError, match="--candidates lists what is measured"):
            preview_of(tmp_path / "list.json", [STATIC], **other)
