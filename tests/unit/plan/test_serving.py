"""The command line of the winner's own server, and how `kvray apply` shows it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
from plan_samples import make_plan, make_profile, make_result, make_sweep
from typer.testing import CliRunner

from kvray.candidate import Candidate, DeviceType
from kvray.cli.apply import app
from kvray.engines.base import ModelRequest
from kvray.engines.llama_cpp.threads import default_threads
from kvray.errors import PlanError
from kvray.plan import serving
from kvray.plan.builder import PlanBuilder
from kvray.plan.plan import save_plan
from kvray.plan.serving import serving_command
from kvray.plan.snippet import render_snippet
from kvray.testing.fake import FakeAdapter
from kvray.workload import Cell


class ServedEngine(FakeAdapter):
    """Names in its command what it was asked."""

    def serving_command(
        self, request: ModelRequest, *, candidate: Candidate, device: DeviceType, cells: Sequence[Cell]
    ) -> Sequence[str]:
        longest = max(cell.context_tokens + cell.output_tokens for cell in cells)
        return ["serve", request.model_id, str(request.revision), candidate.candidate_id, device, str(longest)]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "get_engine", lambda name: ServedEngine())


@pytest.mark.usefixtures("served")
def test_the_command_names_the_weights_the_winner_and_room_for_every_cell() -> None:
    plan = make_plan(model_id="a model's folder")
    command = serving_command(plan)
    assert command is not None
    cells = plan.profile.cells(plan.winner.candidate.batch_size, rung=2)
    longest = max(cell.context_tokens + cell.output_tokens for cell in cells)
    revision, winner = str(plan.model_revision), plan.winner.candidate.candidate_id
    assert shlex.split(command) == ["serve", "a model's folder", revision, winner, plan.device, str(longest)]


def test_threads_that_a_winner_left_open_are_those_of_its_trials_wherever_the_plan_is_read() -> None:
    profile = make_profile()
    sweep = make_sweep(make_result(1, profile, engine="llama_cpp", threads=7), profile=profile, engine="llama_cpp")
    plan = PlanBuilder(sweep).build()
    assert plan.winner.threads == 7
    assert "--threads 7 --threads-batch 7" in str(serving_command(plan))
    assert "params.n_threads = 7" in render_snippet(plan)
    older = plan.model_copy(update={"winner": plan.winner.model_copy(update={"threads": None})})
    assert f"--threads {default_threads()} " in str(serving_command(older))


@pytest.mark.usefixtures("served")
def test_apply_prints_the_command_beside_the_decision_or_by_itself(tmp_path: Path) -> None:
    plan = make_plan()
    save_plan(plan, tmp_path / "plan.json")
    command = serving_command(plan)
    shown = CliRunner().invoke(app, [str(tmp_path / "plan.json")]).stdout
    assert f"serve    {command}" in shown.splitlines()
    (note,) = (line for line in shown.splitlines() if "the server is sized for" in line)
    assert f"at most {int(shlex.split(str(command))[-1]):,} tokens of prompt and answer together" in note
    alone = CliRunner().invoke(app, [str(tmp_path / "plan.json"), "--print-command"]).stdout
    assert alone == f"{command}\n"


def test_an_engine_without_a_server_has_no_command(tmp_path: Path) -> None:
    plan = make_plan()
    save_plan(plan, tmp_path / "plan.json")
    assert serving_command(plan) is None
    assert "serve " not in CliRunner().invoke(app, [str(tmp_path / "plan.json")]).stdout
    asked = CliRunner().invoke(app, [str(tmp_path / "plan.json"), "--print-command"])
    assert isinstance(asked.exception, PlanError)
    assert "has no server of its own" in asked.exception.message
