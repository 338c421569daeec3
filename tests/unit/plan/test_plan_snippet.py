"""The snippet's header, and that nothing from outside can break out of it."""

from __future__ import annotations

import ast
import tokenize
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import pytest
from plan_samples import make_candidate, make_plan, make_profile, make_result, make_sweep

from kvray.analysis.intervals import Interval
from kvray.analysis.ranking import Gain
from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import DeviceFacts, EngineAdapter, LoadedModel, ModelInfo, ModelRequest
from kvray.errors import EngineError
from kvray.jobs.doorman import SENT_MODELS
from kvray.jobs.sent_model import sent_model_note
from kvray.plan import snippet
from kvray.plan.builder import PlanBuilder
from kvray.plan.plan import GainInterval, PlannedGain
from kvray.plan.snippet import render_snippet
from kvray.record import Role
from kvray.report.stats import gain_phrases
from kvray.space.axis import Axis
from kvray.space.search_space import SpaceBlock
from kvray.workload import Cell, WorkloadProfile


class StubEngine(EngineAdapter):
    """Renders the arguments that it is asked to render."""

    name = "stub"

    def render_snippet(
        self,
        request: ModelRequest,
        *,
        loader: str | None,
        candidate: Candidate,
        device: DeviceType,
        cells: Sequence[Cell],
    ) -> str:
        consent = (request.trust_remote_code, request.allow_pickle)
        asked = (request.model_id, loader, candidate.candidate_id, tuple(max(cells)), consent)
        return f"\nasked = {asked!r}\n\n"

    def describe_model(self, request: ModelRequest) -> ModelInfo:
        raise NotImplementedError

    def fetch_weights(self, request: ModelRequest) -> None:
        raise NotImplementedError

    def baseline(self, model: ModelInfo, device: DeviceFacts, *, batch_size: int) -> Candidate:
        raise NotImplementedError

    def axes(self, device: DeviceFacts) -> tuple[Axis, ...]:
        raise NotImplementedError

    def default_space(self, model: ModelInfo, device: DeviceFacts, profile: WorkloadProfile) -> tuple[SpaceBlock, ...]:
        raise NotImplementedError

    def full_space(self, model: ModelInfo, device: DeviceFacts, profile: WorkloadProfile) -> tuple[SpaceBlock, ...]:
        raise NotImplementedError

    def load(
        self, request: ModelRequest, candidate: Candidate, device: DeviceType, profile: WorkloadProfile
    ) -> LoadedModel:
        raise NotImplementedError

    def memory_note(self, device: DeviceType) -> str:
        raise NotImplementedError


def find_engine(name: str) -> EngineAdapter:
    if name != "fake":
        raise EngineError(f"Unknown engine {name!r}.")
    return StubEngine()


@pytest.fixture(autouse=True)
def _only_the_stub_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snippet, "get_engine", find_engine)


def run(source: str) -> Any:
    scope: dict[str, Any] = {}
    exec(compile(source, "snippet", "exec"), scope)
    return scope["asked"]


def test_the_engine_renders_the_winner_for_the_largest_cell() -> None:
    source = render_snippet(make_plan(trust_remote_code=True, loader="AutoModelForCausalLM"))
    allowed = render_snippet(make_plan(allow_pickle=True, loader="AutoModelForCausalLM"))

    what = ("org/model", "AutoModelForCausalLM", make_candidate(1).candidate_id, (2048, 32, 1))
    assert run(source) == (*what, (True, False))
    assert run(allowed) == (*what, (False, True))


def test_the_header_has_the_evidence() -> None:
    header = render_snippet(make_plan()).split("\n\n")[0]

    for part in (
        "Model: org/model (LlamaForCausalLM)",
        f"Winner: {make_candidate(1).label}",
        "Measured: TTFT 50.0 ms, 50.0 tok/s, peak 1,000 MiB",
        f"Gain over {make_candidate(0).label}: first token 2.00× as fast (95 %: 1.",
        "Confidence: it won in 100 % of the resampled measurements (some ran in one process only, so their spread is ",
        "Where: A GPU, 2026-01-02, run r1",
    ):
        assert part in header
    assert all(line.startswith("#") for line in header.splitlines())


def test_a_gain_within_noise_is_told_as_in_the_headline() -> None:
    told = Gain(
        ttft=0.1,
        throughput=0.5,
        memory=1.0,
        ttft_interval=Interval(value=0.1, low=-0.16, high=0.45),
        throughput_interval=Interval(value=0.5, low=0.41, high=0.49),
    )
    planned = PlannedGain(
        ttft=0.1,
        throughput=0.5,
        memory=1.0,
        ttft_interval=GainInterval(low=-0.16, high=0.45),
        throughput_interval=GainInterval(low=0.41, high=0.49),
    )
    assert snippet.gain_text(planned) == (
        "first token as fast within noise (−16 % to +45 %), 1.50× the tok/s (95 %: +41 % to +49 %), 0.50× the memory"
    )
    assert ", ".join(gain_phrases(told, with_intervals=True)) == snippet.gain_text(planned)
    assert gain_phrases(told)[0] == "first token as fast within noise (−16 % to +45 %)"


def test_the_header_does_not_claim_a_gain_that_is_unknown() -> None:
    profile = make_profile()
    source = PlanBuilder(make_sweep(make_result(1, profile, peak_mib=None), profile=profile)).generate_code_snippet()

    assert "Gain: unknown, the baseline was not measured completely" in source
    assert "peak" not in source


def test_the_header_claims_no_confidence_for_a_disturbed_sweep() -> None:
    plan = make_plan()
    assert plan.winner.confidence is not None
    disturbed = plan.winner.confidence.model_copy(update={"is_disturbed": True})
    winner = plan.winner.model_copy(update={"confidence": disturbed})

    header = render_snippet(plan.model_copy(update={"winner": winner})).split("\n\n")[0]

    assert "Confidence: none is claimed, because too many runs were disturbed" in header


def test_the_header_says_when_the_baseline_won() -> None:
    profile = make_profile()
    sweep = make_sweep(make_result(0, profile, role=Role.BASELINE), make_result(1, profile), profile=profile)
    source = PlanBuilder(sweep).generate_code_snippet()

    assert "Gain: none, this is the baseline; nothing measured here is clearly better" in source
    assert "Confidence" not in source


def test_the_header_counts_ties() -> None:
    profile = make_profile()
    sweep = make_sweep(make_result(1, profile), make_result(2, profile), profile=profile)

    assert ", 1 cannot be told apart from it" in PlanBuilder(sweep).generate_code_snippet()


@pytest.mark.parametrize("line_end", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x85", "\u2028", "\x00", "\ud800"])
def test_no_outside_string_breaks_out_of_the_comment(line_end: str) -> None:
    evil = f"model{line_end}asked = 'broken out'{line_end}#"
    plan = make_plan()
    fingerprint = plan.fingerprint.model_copy(update={"device_name": evil})
    profile = plan.profile.model_copy(update={"name": evil})
    update = {"architecture": evil, "run_id": evil, "profile": profile, "fingerprint": fingerprint}

    source = render_snippet(plan.model_copy(update=update))

    assert isinstance(run(source), tuple)
    assert len(ast.parse(source).body) == 1
    assert source.encode("utf-8")


def test_a_name_cannot_change_the_encoding_of_the_file() -> None:
    source = render_snippet(make_plan(model_id="coding: utf-16", architecture="coding: utf-16"))

    assert tokenize.detect_encoding(BytesIO(source.encode()).readline)[0] == "utf-8"


def test_an_unknown_engine_is_an_engine_error() -> None:
    with pytest.raises(EngineError, match="Unknown engine 'abacus'"):
        render_snippet(make_plan().model_copy(update={"engine": "abacus"}))


def test_the_header_says_what_is_to_be_known_of_the_model() -> None:
    source = render_snippet(make_plan(model_notes=("Its weights are packed.",)))
    assert "\n# Note: Its weights are packed.\n" in source


def test_the_code_of_an_older_plan_says_that_the_path_of_a_sent_model_is_the_clusters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class WithModel(StubEngine):
        def render_snippet(self, request: ModelRequest, **options: Any) -> str:
            return f"import sys\nMODEL = {request.model_id!r}\n"

    monkeypatch.setattr(snippet, "get_engine", lambda name: WithModel())
    plan = make_plan(model_id="/there/files/1/tiny")
    assert "cluster" not in render_snippet(plan)

    note = (
        "The model was sent with kvray submit --upload-model: /there/files/1/tiny is the cluster's temporary copy. Use "
        "your own path in its place: ./tiny"
    )
    lines = render_snippet(plan.model_copy(update={"notes": (note,)})).splitlines()
    assert f"# Note: {note}" in lines
    place = lines.index("MODEL = '/there/files/1/tiny'")
    assert lines[place - 1].startswith("# This path is the cluster's temporary copy.")


def test_the_code_of_a_sent_model_names_it_as_the_user_did(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithModel(StubEngine):
        def render_snippet(self, request: ModelRequest, **options: Any) -> str:
            return f"import sys\nMODEL = {request.model_id!r}\n"

    monkeypatch.setattr(snippet, "get_engine", lambda name: WithModel())
    monkeypatch.setenv(SENT_MODELS, '{"/there/files/1/tiny": "./tiny"}')
    note = sent_model_note("/there/files/1/tiny")
    plan = make_plan(model_id="/there/files/1/tiny").model_copy(
        update={"notes": (note,), "sent_models": {"/there/files/1/tiny": "./tiny"}}
    )
    source = render_snippet(plan)
    assert "/there" not in source
    lines = source.splitlines()
    place = lines.index("MODEL = './tiny'")
    assert lines[place - 1].endswith("the path from which the model was sent to the cluster with --upload-model.")
