"""A plan at work, with the engine that needs no model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from plan_samples import make_candidate, make_plan, make_profile, make_result, make_sweep

import kvray.plan.session
from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import LoadedModel, ModelRequest, OutOfMemoryError
from kvray.errors import EngineError, ModelError, PlanError
from kvray.plan.builder import PlanBuilder
from kvray.plan.plan import Plan, PlanFingerprint, save_plan
from kvray.plan.session import FingerprintWarning, FoundEngine, PlanLoader, Session, load_plan
from kvray.probes.environment import capture_environment, library_versions
from kvray.probes.gpu import GpuInfo, select_visible
from kvray.record import Role, version_fields
from kvray.testing.fake import FakeAdapter, FakeModel
from kvray.workload import WorkloadProfile

WINNER, LEANER, LEANEST = (make_candidate(name) for name in (1, 2, 3))
"""Candidates of `make_plan`; their labels contain `window=101`, `window=102` and `window=103`."""


class WatchedAdapter(FakeAdapter):
    """Keeps what was loaded, and how often a model was closed."""

    def __init__(self) -> None:
        self.loaded: list[Candidate] = []
        self.open_models = 0

    def load(
        self, request: ModelRequest, candidate: Candidate, device: DeviceType, profile: WorkloadProfile
    ) -> LoadedModel:
        assert self.open_models == 0, "two models do not fit beside each other"
        self.loaded.append(candidate)
        model = FakeModel(request, candidate)
        model.misbehave("load")
        self.open_models += 1
        adapter = self

        def close() -> None:
            adapter.open_models -= 1

        model.close = close  # type: ignore[method-assign]
        return model


def session_of(plan: Plan) -> tuple[Session, WatchedAdapter]:
    adapter = WatchedAdapter()
    found = FoundEngine(adapter=adapter, request=ModelRequest(model_id=plan.model_id))
    return Session(plan, {plan.engine: found}, plan.device), adapter


def plan_of(commands: str = "ok") -> Plan:
    return make_plan(model_id=f"fake:{commands}", device="cpu", model_revision="1")


OLD: dict[str, Any] = {"torch_version": None, "transformers_version": None}
"""What a plan of an engine says that computes in neither."""


def here() -> PlanFingerprint:
    environment = capture_environment(DeviceType.CPU, libraries=FakeAdapter.libraries)
    return PlanFingerprint(
        device_name=environment.device_name,
        driver_version=environment.driver_version,
        engine_versions=dict(environment.engine_versions),
        kvray_version=environment.kvray_version,
        **version_fields(environment.engine_versions),
    )


# Loading


def test_a_plan_file_becomes_a_session_that_answers(tmp_path: Path) -> None:
    save_plan(plan_of().model_copy(update={"fingerprint": here()}), tmp_path / "plan.json")
    session = load_plan(tmp_path / "plan.json").load()
    assert session.generate("a b c", max_new_tokens=3) == "fake fake fake"
    assert session.candidate == WINNER


def test_other_files_than_those_that_were_measured_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []
    monkeypatch.setattr(FakeAdapter, "fetch_weights", lambda self, request: asked.append(request.revision))
    plan = make_plan(model_id="fake:ok", device="cpu", model_revision="0123abcd")
    with pytest.warns(FingerprintWarning, match="the plan was measured with model revision 0123abcd, here it is 1$"):
        PlanLoader(plan.model_copy(update={"fingerprint": here()})).load()
    assert asked == ["1"], "what was warned of is loaded"


def test_a_missing_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"Cannot read plan '.*nope\.json': No such file"):
        load_plan(tmp_path / "nope.json")


def test_a_plan_of_an_engine_that_is_not_there_cannot_be_loaded() -> None:
    plan = plan_of().model_copy(update={"engine": "gone", "fingerprint": here()})
    with pytest.raises(EngineError, match="Unknown engine 'gone'"):
        PlanLoader(plan).load()


def test_nothing_is_loaded_before_the_first_request() -> None:
    session, adapter = session_of(plan_of())
    assert adapter.loaded == []
    session.close()


# The fingerprint


def test_where_the_plan_was_measured_nothing_is_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PlanLoader(plan_of().model_copy(update={"fingerprint": here()})).load()


def test_each_difference_to_the_machine_that_was_measured_is_warned_of() -> None:
    then = here().model_copy(update={"device_name": "A GPU", "driver_version": "555.1"})
    with pytest.warns(FingerprintWarning) as caught:
        PlanLoader(plan_of().model_copy(update={"fingerprint": then})).load()
    assert [str(one.message) for one in caught] == [
        f"the plan was measured with device name A GPU, here it is {here().device_name}",
        "the plan was measured with driver version 555.1, here it is None",
    ]
    assert {one.filename for one in caught} == {__file__}, "the warning points at who loads the plan"


@pytest.mark.parametrize(
    "then",
    [
        {"engine_versions": {"numpy": "1.0", "an-engine": "2.0"}},
        {"engine_versions": {}, "torch_version": "1.0", "transformers_version": None},
    ],
)
def test_each_library_of_the_engine_that_differs_is_warned_of(then: dict[str, Any]) -> None:
    plan = plan_of().model_copy(update={"fingerprint": here().model_copy(update={**OLD, **then})})
    with pytest.warns(FingerprintWarning) as caught:
        PlanLoader(plan).load()
    versions = then["engine_versions"] or {"torch": "1.0"}
    now = library_versions(versions)
    assert [str(one.message) for one in caught] == [
        f"the plan was measured with {name} version {version}, here it is {now.get(name)}"
        for name, version in versions.items()
    ]


def test_what_was_not_known_when_measuring_is_no_difference() -> None:
    then = here().model_copy(update={"torch_version": None})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PlanLoader(plan_of().model_copy(update={"fingerprint": then})).load()


# Rules


def plan_by_context() -> Plan:
    """Candidate 1 wins, but from 2048 tokens on candidate 2 is better."""
    profile = make_profile()
    results = (
        make_result(0, profile, role=Role.BASELINE),
        make_result(1, profile, ttft_ms={128: 10.0, 512: 10.0, 2048: 200.0}),
        make_result(2, profile, ttft_ms={128: 60.0, 512: 60.0, 2048: 60.0}),
    )
    return PlanBuilder(make_sweep(*results, profile=profile, model_id="fake:ok", device="cpu")).build()


def test_the_candidate_is_picked_by_the_length_of_the_prompt() -> None:
    session, adapter = session_of(plan_by_context())
    session.generate("word " * 100, max_new_tokens=2)
    assert session.candidate == make_candidate(1)
    session.generate("word " * 2048, max_new_tokens=2)
    assert session.candidate == make_candidate(2)
    session.generate("word " * 100, max_new_tokens=2)
    assert adapter.loaded == [make_candidate(1), make_candidate(2), make_candidate(1)]


def test_the_model_stays_while_the_same_rule_holds() -> None:
    session, adapter = session_of(plan_by_context())
    for _ in range(3):
        session.generate("a few words", max_new_tokens=2)
    assert adapter.loaded == [make_candidate(1)]


# Memory


@pytest.mark.parametrize("when", ["measure", "load"])
def test_what_runs_out_of_memory_is_answered_by_the_next_leaner_candidate(when: str) -> None:
    session, adapter = session_of(plan_of(f"101)=oom@{when}"))
    assert session.generate("a b", max_new_tokens=1) == "fake"
    assert session.candidate == LEANER
    assert adapter.loaded == [WINNER, LEANER]


def test_the_chain_is_followed_to_its_end() -> None:
    session, adapter = session_of(plan_of("101)=oom,102)=oom"))
    assert session.generate("a b", max_new_tokens=1) == "fake"
    assert adapter.loaded == [WINNER, LEANER, LEANEST]


def test_what_was_too_big_once_is_not_tried_again() -> None:
    session, adapter = session_of(plan_of("101)=oom"))
    for _ in range(3):
        session.generate("a b", max_new_tokens=1)
    session.close()
    session.generate("a b", max_new_tokens=1)
    assert adapter.loaded == [WINNER, LEANER, LEANER]


def test_when_nothing_fits_the_error_names_the_leanest() -> None:
    session, adapter = session_of(plan_of("/=oom"))
    with pytest.raises(OutOfMemoryError, match=r"window=103.* runs out of memory and the plan has no leaner candidate"):
        session.generate("a b", max_new_tokens=1)
    assert adapter.loaded == [WINNER, LEANER, LEANEST]
    with pytest.raises(OutOfMemoryError, match="no leaner candidate"):
        session.generate("a b", max_new_tokens=1)
    assert len(adapter.loaded) == 3


def test_an_error_of_another_kind_is_not_taken_for_too_little_memory() -> None:
    session, adapter = session_of(plan_of("101)=raise"))
    with pytest.raises(RuntimeError, match="told to raise"):
        session.generate("a b", max_new_tokens=1)
    assert adapter.loaded == [WINNER]


def test_a_closed_session_frees_the_model_and_loads_it_again_when_asked() -> None:
    session, adapter = session_of(plan_of())
    session.generate("a b", max_new_tokens=1)
    assert adapter.open_models == 1
    session.close()
    session.close()
    assert adapter.open_models == 0
    assert session.generate("a b", max_new_tokens=2) == "fake fake"
    assert adapter.loaded == [WINNER, WINNER]


def with_gpus(monkeypatch: pytest.MonkeyPatch, used_mib: dict[int, float], visible: str) -> None:
    values: dict[str, Any] = {"memory_total_mib": 2000.0, "compute_capability": (9, 0), "driver_version": "1"}
    gpus = [GpuInfo(index=index, uuid=f"GPU-{index}", name="A GPU", **values) for index in used_mib]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(kvray.plan.session, "visible_gpus", lambda value: select_visible(gpus, value))
    monkeypatch.setattr(kvray.plan.session, "used_memory_mib", lambda gpu: used_mib[gpu.index])


def test_the_leaner_candidate_goes_first_where_the_winner_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(model_id="fake:ok", device="cuda")
    with_gpus(monkeypatch, {0: 0.0, 1: 1050.0}, visible="1")
    session, adapter = session_of(plan)
    session.generate("a b", max_new_tokens=1)
    assert adapter.loaded == [LEANER], "950 MiB are free on the visible GPU; the winner peaked at 1000, this one at 800"


def test_with_room_enough_the_winner_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(model_id="fake:ok", device="cuda")
    with_gpus(monkeypatch, {0: 0.0, 1: 1050.0}, visible="0")
    session, adapter = session_of(plan)
    session.generate("a b", max_new_tokens=1)
    assert adapter.loaded == [WINNER]


def with_foreign_kernel(plan: Plan) -> Plan:
    """`plan` with one more candidate in its table, whose attention is a kernel by anybody."""
    data = plan.model_dump(mode="json")
    kernel = Candidate.from_dict({**WINNER.to_dict(), "attention": "hub_kernel", "hub_kernel": "someone/attention"})
    metrics = data["candidates"][WINNER.candidate_id]["metrics"]
    data["candidates"][kernel.candidate_id] = {"candidate": kernel.to_dict(), "metrics": metrics}
    return Plan.model_validate(data)


def test_code_by_others_needs_the_consent_of_whoever_loads_the_plan() -> None:
    own = plan_of().model_copy(update={"trust_remote_code": True})
    with pytest.raises(PlanError, match=r"runs Python code that the model brings\. .*load\(trust_remote_code=True\)"):
        PlanLoader(own).load()
    with pytest.raises(PlanError, match="runs kernel someone/attention from the hub"):
        PlanLoader(with_foreign_kernel(plan_of())).load()


@pytest.mark.filterwarnings("ignore::kvray.plan.session.FingerprintWarning")
def test_where_weights_might_be_pickled_their_refusal_names_the_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: FakeAdapter, request: ModelRequest) -> None:
        raise ModelError("Model 'm' has no model.safetensors.", hint="Pass --allow-pickle.")

    monkeypatch.setattr(FakeAdapter, "fetch_weights", refuse)
    pickled = plan_of().model_copy(update={"allow_pickle": True})
    with pytest.raises(PlanError, match=r"might be pickled\. Model 'm' has no .*load\(allow_pickle=True\)"):
        PlanLoader(pickled).load()
    with pytest.raises(ModelError, match="Pass --allow-pickle"):
        PlanLoader(plan_of()).load()


def test_with_consent_a_plan_loads_and_without_need_nothing_is_trusted() -> None:
    own = plan_of().model_copy(update={"trust_remote_code": True})
    assert PlanLoader(own).load(trust_remote_code=True)._engines["fake"].request.trust_remote_code
    plain = PlanLoader(plan_of()).load()._engines["fake"].request
    assert (plain.trust_remote_code, plain.allow_pickle) == (False, False)


@pytest.mark.filterwarnings("ignore::kvray.plan.session.FingerprintWarning")
@pytest.mark.parametrize("engine", ["os:system", "subprocess", "../evil", "kvray.testing.fake:FakeAdapter", "Fake"])
def test_a_plan_names_no_engine_but_a_registered_one(engine: str) -> None:
    with pytest.raises(EngineError, match="Unknown engine"):
        PlanLoader(plan_of().model_copy(update={"engine": engine})).load()
