"""What a plan and its code say of each engine of a sweep of several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from plan_samples import make_candidate, make_plan, make_profile, make_result, make_sweep

from kvray.cli.apply import apply
from kvray.engines.registry import get_engine
from kvray.plan import serving, snippet
from kvray.plan.builder import PlanBuilder
from kvray.plan.plan import Plan
from kvray.plan.snippet import render_snippet
from kvray.record import Role
from kvray.store.manifest import EngineModel

SECOND = EngineModel(model_id="/m.gguf", model_revision="5a", architecture="llama", weights="Q4_1")


def plan_of_two(**manifest: Any) -> Plan:
    """The baseline and something worse of the first engine; of the second its default, and the winner."""
    profile = make_profile()
    results = (
        make_result(0, profile, role=Role.BASELINE),
        make_result(1, profile, ttft_ms=200.0),
        make_result(2, profile, ttft_ms=80.0, peak_mib=500.0, engine="second"),
        make_result(3, profile, ttft_ms=20.0, peak_mib=250.0, engine="second", kl_mean=0.02),
    )
    values: dict[str, Any] = {
        "weights": "bfloat16",
        "other_engines": {"second": SECOND},
        "defaults": {
            "fake": make_candidate(0).candidate_id,
            "second": make_candidate(2, engine="second").candidate_id,
        },
        **manifest,
    }
    return PlanBuilder(make_sweep(*results, profile=profile, **values)).build()


def test_each_engine_has_its_best_against_its_own_default() -> None:
    plan = plan_of_two()
    first, second = plan.engines["fake"], plan.engines["second"]
    assert (plan.engine, plan.model_id) == ("second", "/m.gguf")
    assert first.candidate == make_candidate(0)
    assert first.default is not None
    assert first.default.candidate == first.candidate, "it is best with nothing set"
    assert second.candidate == plan.winner.candidate == make_candidate(3, engine="second")
    assert second.gain is not None
    assert second.gain.ttft == pytest.approx(3.0)
    assert second.gain.memory == pytest.approx(1.0)
    assert second.gain.ttft_interval is not None
    assert plan.winner.gain is not None
    assert plan.winner.gain.ttft == pytest.approx(4.0), "against the baseline, as with one engine"
    assert Plan.model_validate_json(plan.to_json()) == plan


def test_unlike_weights_are_among_the_notes() -> None:
    told = "The engines ran unlike weights: fake bfloat16, second Q4_1; their quality (KL) counts what that costs."
    assert told in plan_of_two().notes
    same = SECOND.model_copy(update={"model_id": "org/model"})
    assert plan_of_two(other_engines={"second": same}).notes == ()


def test_the_code_says_what_the_winner_gains_over_its_engines_own_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snippet, "get_engine", lambda _: get_engine("fake"))
    code = render_snippet(plan_of_two())
    default = make_candidate(2, engine="second").label
    assert f"# Gain over {make_candidate(0).label}: first token 5.00× as fast" in code
    assert f"# Gain over its engine's own default {default}: first token 4.00× as fast" in code
    assert "own default" not in render_snippet(make_plan())


def test_the_code_tells_no_note_of_an_engine_that_it_does_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snippet, "get_engine", lambda _: get_engine("fake"))
    code = render_snippet(plan_of_two(model_notes=("fake: It is unpacked.", "second: It is packed.", "It is a model.")))
    assert "# Note: second: It is packed." in code
    assert "# Note: It is a model." in code
    assert "It is unpacked" not in code


def test_kvray_apply_tells_what_each_engine_can_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (snippet, serving):
        monkeypatch.setattr(module, "get_engine", lambda _: get_engine("fake"))
    (path := tmp_path / "plan.json").write_text(plan_of_two().to_json(), encoding="utf-8")
    apply(str(path))
    shown = capsys.readouterr().out
    best, default = (make_candidate(number, engine="second").label.removeprefix("second:") for number in (3, 2))
    assert f"engine   fake: {make_candidate(0).label}, its own default" in shown
    assert f"engine   second: {best}. Over its own default {default}: first token 4.00× as fast" in shown


def test_a_plan_of_one_engine_and_an_older_one_tell_nothing_of_engines() -> None:
    plan = make_plan()
    assert plan.engines == {}
    older = plan.model_dump(mode="json")
    del older["engines"]
    assert Plan.model_validate(older) == plan
