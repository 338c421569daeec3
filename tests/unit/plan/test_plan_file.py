"""The plan as a file: what is refused, and that nothing is lost on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plan_samples import make_candidate, make_plan

from kvray.errors import InvalidValueError, OutputError, PlanError
from kvray.plan.plan import PLAN_VERSION, Plan, load_plan_file, save_plan

BASELINE, WINNER, LEANER, LEANEST = (make_candidate(name) for name in range(4))


def edited(tmp_path: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """A saved plan with its JSON changed by `edit`."""
    path = tmp_path / "edited.json"
    data = json.loads(make_plan().model_dump_json())
    edit(data)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_a_saved_plan_reads_back_equal(tmp_path: Path) -> None:
    plan = make_plan()
    save_plan(plan, tmp_path / "plan.json")

    assert load_plan_file(tmp_path / "plan.json") == plan


def test_saving_replaces_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old", encoding="utf-8")

    save_plan(make_plan(), path)

    assert load_plan_file(path).run_id == "r1"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_save_keeps_the_old_file_and_leaves_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    path = tmp_path / "plan.json"
    path.write_text("old", encoding="utf-8")
    plan = make_plan()
    monkeypatch.setattr(Path, "replace", full)

    with pytest.raises(OutputError, match="No space left"):
        save_plan(plan, path)
    assert [(one.name, one.read_text(encoding="utf-8")) for one in tmp_path.iterdir()] == [("plan.json", "old")]


def test_saving_into_a_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"Cannot write plan .*plan\.json.*No such file"):
        save_plan(make_plan(), tmp_path / "missing" / "plan.json")


def test_the_candidate_is_readable_json(tmp_path: Path) -> None:
    save_plan(make_plan(), tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))

    assert data["plan_version"] == PLAN_VERSION
    assert data["winner"]["candidate"] == WINNER.to_dict()


def test_a_missing_plan_says_where_one_comes_from(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"Cannot read plan .*No such file.*kvray tune"):
        load_plan_file(tmp_path / "none.json")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""])
def test_what_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)

    with pytest.raises(PlanError, match="is not a plan: it is not JSON"):
        load_plan_file(path)


def test_json_that_is_no_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("[]", encoding="utf-8")

    with pytest.raises(PlanError, match="holds a list, not an object"):
        load_plan_file(path)


def test_a_newer_version_is_refused_before_its_fields_are_judged(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"plan_version": 7, "tomorrow": True}), encoding="utf-8")

    with pytest.raises(PlanError, match=r"plan_version 7; this kvray reads version 1\. Upgrade kvray"):
        load_plan_file(path)


@pytest.mark.parametrize("version", [None, 0, "1", True])
def test_a_version_that_never_was_is_refused(tmp_path: Path, version: object) -> None:
    path = edited(tmp_path, lambda data: data.update(plan_version=version))

    with pytest.raises(PlanError, match=r"this kvray reads version 1\. Tune again"):
        load_plan_file(path)


def _empty_conditions_everywhere(data: dict[str, Any]) -> None:
    data["rules"][-1]["when"] = {"batch_size": {"min": 1}}


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda data: data.update(colour="blue"), "colour: there is no such key"),
        (lambda data: data.pop("winner"), "winner: Field required"),
        (lambda data: data["winner"]["candidate"].update(attention="flash9"), "Unknown attention backend 'flash9'"),
        (lambda data: data["winner"].update(candidate=3), "3 is not a candidate"),
        (lambda data: data["winner"]["candidate"].update(colour="blue"), "unexpected keyword argument 'colour'"),
        (lambda data: data["winner"]["metrics"].update(ttft_ms=-1), "winner.metrics.ttft_ms"),
        (lambda data: data["winner"]["metrics"].update(ttft_ms=float("nan")), "winner.metrics.ttft_ms"),
        (lambda data: data["winner"]["confidence"].update(winner_share=1.5), "winner.confidence.winner_share"),
        (lambda data: data.update(rules=[]), "rules"),
        (_empty_conditions_everywhere, "the last rule must hold always"),
        (lambda data: data["rules"][0].update(use="nobody"), "candidates lacks nobody"),
        (lambda data: data["winner"].update(ties=["nobody"]), "candidates lacks nobody"),
        (lambda data: data["candidates"].pop(WINNER.candidate_id), f"candidates lacks {WINNER.candidate_id}"),
        (
            lambda data: data["candidates"][WINNER.candidate_id]["candidate"].update(dtype="float16"),
            f"candidate '{WINNER.candidate_id}' does not match its fields",
        ),
        (lambda data: data["rules"][0]["when"].update(free_vram_mib={}), "a range needs a min or a max"),
        (lambda data: data["rules"][0]["when"].update(batch_size={"min": 3, "max": 2}), "min 3 is above max 2"),
        (lambda data: data["rules"][0]["when"].update(on="fire"), "rules.0.when.on"),
    ],
)
def test_a_damaged_plan_is_refused_with_the_place(
    tmp_path: Path, edit: Callable[[dict[str, Any]], None], problem: str
) -> None:
    with pytest.raises(PlanError) as caught:
        load_plan_file(edited(tmp_path, edit))

    assert problem in str(caught.value)


def with_rules(*rules: dict[str, Any]) -> Plan:
    """The sample plan with these rules before the default one."""
    data = make_plan().model_dump(mode="json")
    data["rules"] = [*({"evidence": "", **rule} for rule in rules), data["rules"][-1]]
    return Plan.model_validate(data)


def test_the_first_rule_that_holds_decides() -> None:
    plan = with_rules(
        {"when": {"context_tokens": {"min": 100, "max": 200}}, "use": LEANER.candidate_id},
        {"when": {"context_tokens": {"min": 200, "max": 300}}, "use": LEANEST.candidate_id},
    )

    chosen = [plan.choose(context, 1, None) for context in (99, 100, 200, 201, 300, 301)]

    assert chosen == [WINNER, LEANER, LEANER, LEANEST, LEANEST, WINNER]


def test_all_conditions_of_a_rule_must_hold() -> None:
    plan = with_rules({"when": {"context_tokens": {"min": 100}, "batch_size": {"max": 2}}, "use": LEANER.candidate_id})

    assert plan.choose(100, 2) == LEANER
    assert plan.choose(99, 2) == WINNER
    assert plan.choose(100, 3) == WINNER


def test_no_rule_about_free_memory_holds_when_it_is_unknown() -> None:
    plan = with_rules({"when": {"free_vram_mib": {"max": 900.0}}, "use": LEANER.candidate_id})

    assert plan.choose(100, 1, 900.0) == LEANER
    assert plan.choose(100, 1, 900.1) == WINNER
    assert plan.choose(100, 1, None) == WINNER


def test_no_request_meets_a_rule_that_waits_for_oom() -> None:
    plan = with_rules({"when": {"on": "oom"}, "use": LEANER.candidate_id})

    assert plan.choose(100, 1, 1.0) == WINNER


def test_oom_rules_are_followed_in_turn_to_their_end() -> None:
    plan = make_plan()

    assert plan.fallback_after(WINNER.candidate_id) == LEANER
    assert plan.fallback_after(LEANER.candidate_id) == LEANEST
    assert plan.fallback_after(LEANEST.candidate_id) is None


def test_without_oom_rules_there_is_no_fallback() -> None:
    assert with_rules().fallback_after(WINNER.candidate_id) is None


def test_the_fallback_of_a_stranger_is_an_error() -> None:
    with pytest.raises(InvalidValueError, match=r"Unknown candidate of the plan 'stranger'\. Allowed: "):
        make_plan().fallback_after("stranger")
