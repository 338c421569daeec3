"""What a check refuses before anything is measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from checked import candidate, checked

from kvray.candidate import DeviceType
from kvray.check.against import Against
from kvray.check.baseline import Baseline, of_check
from kvray.check.check_file import write_check
from kvray.check.config import CheckConfig, Consent
from kvray.check.preparing import prepared, side_specs
from kvray.check.result import CheckedModel, CheckMode, SideInfo
from kvray.check.subject import check_candidates, check_consent, check_workload, device_of, found_engine
from kvray.errors import InvalidValueError, KvrayError, NoCandidatesError, PlanError, ResultsError
from kvray.probes.cpu import available_cpus, total_memory_mib
from kvray.tuning.local_device import detect_device

HERE = SideInfo(
    name="now",
    device_name=detect_device(DeviceType.CPU).device_name,
    cpus=available_cpus(),
    memory_gib=round(total_memory_mib() / 1024),
)


def baseline(**changes: object) -> Baseline:
    return dataclasses.replace(of_check(checked(sides=(HERE, HERE)), shown="check.json"), **changes)  # type: ignore[arg-type]


def config(tmp_path: Path, *, against: Against | None = None, **changes: object) -> CheckConfig:
    write_check(checked(**{"sides": (HERE, HERE), **changes}), tmp_path / "base.json")
    return CheckConfig(baseline=str(tmp_path / "base.json"), output_dir=str(tmp_path / "out"), against=against)


def test_what_fits_is_measured_now_or_on_both_sides(tmp_path: Path) -> None:
    subject = prepared(config(tmp_path))
    assert (subject.mode, subject.names) == (CheckMode.RECORD, ("baseline", "now"))
    assert subject.candidates == (candidate(),)
    asked = config(tmp_path, against=Against(python="/other/python", variables={"X": "1"}))
    subject = prepared(asked)
    here, there = side_specs(asked, subject)
    assert (here.name, here.python, dict(here.variables)) == ("A", None, {})
    assert (there.name, there.python, dict(there.variables)) == ("B", "/other/python", {"X": "1"})
    assert here.engines == there.engines == ("fake",)


@pytest.mark.parametrize(
    ("side", "told"),
    [
        ({"device_name": "Another CPU"}, "device: Another CPU → "),
        ({"cpus": 1000}, "usable CPUs: 1000 → "),
        ({"memory_gib": 1}, "memory, GiB: 1 → "),
    ],
)
def test_the_record_of_another_machine_is_refused_and_a_b_is_not(
    side: dict[str, object], told: str, tmp_path: Path
) -> None:
    other = HERE.model_copy(update=side)
    with pytest.raises(ResultsError, match="not the machine") as raised:
        prepared(config(tmp_path, sides=(other, other)))
    assert told in str(raised.value)
    assert "--against" in str(raised.value)
    assert prepared(config(tmp_path, sides=(other, other), against=Against())).mode is CheckMode.A_B


def test_what_was_not_recorded_can_only_be_measured_on_both_sides(tmp_path: Path) -> None:
    (nothing,) = checked().candidates
    empty = nothing.model_copy(update={"now": nothing.now.model_copy(update={"processes": ()})})
    with pytest.raises(ResultsError, match=r"no measurement that came to its end.*--against"):
        prepared(config(tmp_path, candidates=(empty,)))
    assert prepared(config(tmp_path, candidates=(empty,), against=Against())).candidates == (candidate(),)
    (tmp_path / "more.json").write_text(
        json.dumps([dataclasses.replace(candidate(), batch_size=4).to_dict()]), encoding="utf-8"
    )
    asked = dataclasses.replace(config(tmp_path), candidates=str(tmp_path / "more.json"))
    with pytest.raises(ResultsError, match="has no whole measurement of"):
        prepared(asked)


def test_another_version_of_the_model_is_refused_or_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = {"fake": CheckedModel(model_id="fake:ok", model_revision="7")}
    with pytest.raises(ResultsError, match="revision 7 then, 1 now"):
        prepared(config(tmp_path, models=other))
    prepared(config(tmp_path, models=other, against=Against()))
    assert "Both sides measure the present one" in caplog.text


def test_a_candidate_that_is_no_more_is_named_with_the_reason(tmp_path: Path) -> None:
    device = device_of(baseline())
    engines = {"fake": found_engine(baseline(), "fake", Consent(), device)}
    gone = dataclasses.replace(candidate(), settings=(("colour", "red"),))
    with pytest.raises(NoCandidatesError, match="engine fake has no axis colour in this version"):
        check_candidates(engines, [candidate(), gone], device, baseline().profile)
    spread = dataclasses.replace(candidate(), parallelism=2)
    with pytest.raises(NoCandidatesError, match=r"Not every candidate can be measured here: .*needs 2 GPUs"):
        check_candidates(engines, [spread], device, baseline().profile)
    check_candidates(engines, [candidate()], device, baseline().profile)


def test_a_workload_that_the_model_no_longer_holds_is_refused() -> None:
    engine = found_engine(baseline(), "fake", Consent(), device_of(baseline()))
    longer = baseline().profile.model_copy(update={"context_lengths": (8, 5000)})
    with pytest.raises(InvalidValueError, match="holds 4096 tokens now, and the baseline measured prompts of 5000"):
        check_workload(engine, longer)


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"models": {}}, ResultsError, "does not say which model engine 'fake' has"),
        ({"models": {"fake": CheckedModel(model_id="other")}}, KvrayError, "knows no model 'other'"),
    ],
)
def test_an_engine_or_model_that_is_not_here_is_named(
    change: dict[str, object], error: type[KvrayError], told: str
) -> None:
    with pytest.raises(error, match=told):
        found_engine(baseline(**change), "fake", Consent(), device_of(baseline()))


def test_code_by_others_needs_consent_here_and_now() -> None:
    asked = baseline(trust_remote_code=True)
    with pytest.raises(PlanError, match=r"Python code that the model brings.*--trust-remote-code"):
        check_consent(asked, [candidate()], Consent())
    check_consent(asked, [candidate()], Consent(trust_remote_code=True))


def test_a_baseline_of_a_gpu_is_refused_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvray.tuning.local_device.visible_gpus", lambda _: ())
    with pytest.raises(ResultsError, match="measured on a GPU"):
        device_of(baseline(device=DeviceType.CUDA))


@pytest.mark.parametrize("name", ["base.json", "out/../base.json"])
def test_the_baseline_is_never_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InvalidValueError, match="would replace its own baseline"):
        prepared(dataclasses.replace(config(tmp_path), json_file=str(tmp_path / name)))
