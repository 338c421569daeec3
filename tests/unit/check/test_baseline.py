"""What can be a baseline, and what one line says of everything else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from checked import AT, PROFILE, RUN, candidate, checked, trial

from kvray.candidate import CacheStrategy
from kvray.check.baseline import Baseline, read_baseline
from kvray.check.check_file import write_check
from kvray.check.measured import measured_side, samples_of
from kvray.check.result import CheckMode
from kvray.errors import InvalidValueError, KvrayError, PlanError, ResultsError
from kvray.record import TrialStatus
from kvray.store.fingerprint import SweepFingerprint
from kvray.store.manifest import SweepAttempt, SweepManifest
from kvray.store.parquet import ResultsStore
from kvray.store.speed_variables import names_in
from kvray.tuning.result import read_measured, write_artefacts


def a_sweep(folder: Path) -> ResultsStore:
    """Two ranked candidates, the first of them measured three times, with plan and reports."""
    store = ResultsStore(folder)
    trials = [
        *(trial(number, ttft_ms=5.0 + number / 10) for number in range(3)),
        trial(0, ttft_ms=9.0, cache=CacheStrategy.STATIC),
    ]
    for one in trials:
        store.append(one)
    attempt = SweepAttempt(
        started_at=AT,
        ended_at=AT,
        kvray_version="0.1.0",
        fingerprint_id="aaaaaaaa",
        fingerprint=SweepFingerprint(cpus=2, memory_gib=24, variables={"OMP_NUM_THREADS": "2"}),
    )
    manifest = SweepManifest(
        kvray_version="0.1.0",
        run_id=RUN,
        created_at=AT,
        model_id="fake:ok",
        model_revision="1",
        architecture="Fake",
        engine="fake",
        device=checked().device,
        device_name="a CPU",
        profile=PROFILE,
        baseline_id=candidate(CacheStrategy.STATIC).candidate_id,
        memory_note="",
        engine_pythons={"fake": "/other/python"},
        attempts=(attempt,),
    )
    store.write_manifest(manifest)
    write_artefacts(store, read_measured(store, RUN))
    return store


def check_is_of_the_sweep(baseline: Baseline) -> None:
    assert [one.cache for one in baseline.ranked] == ["dynamic", "static"]
    first = baseline.recorded[baseline.ranked[0].candidate_id]
    assert [one.round for one in first.processes] == [0, 1, 2]
    assert {one.session for one in first.processes} == {RUN}
    assert first.ran is not None
    assert first.ran.kernel_decode == "sdpa"
    assert baseline.reference == candidate(CacheStrategy.STATIC)
    assert baseline.profile == PROFILE
    assert (baseline.side.cpus, baseline.side.memory_gib, baseline.side.run_id) == (2, 24, RUN)
    assert baseline.variables == {"OMP_NUM_THREADS": "2"}
    assert baseline.known_variables == names_in(None)
    assert baseline.models["fake"].python == "/other/python"
    assert baseline.why_unrecorded is None


@pytest.mark.parametrize("place", ["{}", "{}#" + RUN, "{}/reports/" + RUN + "/best_plan.json"])
def test_a_folder_a_run_of_it_and_the_plan_inside_are_the_same_baseline(place: str, tmp_path: Path) -> None:
    a_sweep(tmp_path / "results")
    check_is_of_the_sweep(read_baseline(place.format(tmp_path / "results")))


def test_a_plan_that_has_left_its_folder_has_no_record(tmp_path: Path) -> None:
    store = a_sweep(tmp_path / "results")
    plan = tmp_path / "plan.json"
    plan.write_bytes(store.paths(RUN).best_plan.read_bytes())
    baseline = read_baseline(str(plan))
    assert [one.cache for one in baseline.ranked] == ["dynamic"]
    assert baseline.recorded == {}
    assert baseline.why_unrecorded is not None
    assert "holds no single measurements" in baseline.why_unrecorded
    assert baseline.reference == candidate(CacheStrategy.STATIC)


def test_a_check_of_before_is_a_baseline_of_what_it_measured_last(tmp_path: Path) -> None:
    write_check(checked(), tmp_path / "check.json")
    for place in (tmp_path / "check.json", tmp_path):
        baseline = read_baseline(str(place))
        assert baseline.ranked == (candidate(),)
        assert baseline.recorded[candidate().candidate_id] == checked().candidates[0].now
        assert baseline.side == checked().now.model_copy(update={"name": "baseline"})


@pytest.mark.parametrize(
    ("make", "place", "error", "told"),
    [
        (lambda _: None, "#x", InvalidValueError, "names no baseline"),
        (lambda _: None, "x#", InvalidValueError, "names no baseline"),
        (lambda _: None, "{}/none", ResultsError, "There is no results folder"),
        (lambda _: None, "{}/none.json", ResultsError, "Cannot read baseline .*No such file"),
        (lambda _: None, "{}", ResultsError, "holds no sweep"),
        (a_sweep, "{}#other", ResultsError, "holds no sweep 'other'.*It holds: " + RUN),
        (lambda at: (at / "a.json").write_text("[]"), "{}/a.json", ResultsError, "holds a list, not an object"),
        (lambda at: (at / "a.json").write_text("{"), "{}/a.json", ResultsError, "is not JSON"),
        (lambda at: (at / "a.json").write_text("{}"), "{}/a.json", ResultsError, "check.json. A baseline is a plan"),
        (lambda at: (at / "a.json").write_text('{"plan_version": 9}'), "{}/a.json", PlanError, "plan_version 9"),
        (lambda at: (at / "a.json").write_text('{"check_version": 9}'), "{}/a.json", ResultsError, "Upgrade kvray"),
        (
            lambda at: write_check(checked(mode=CheckMode.SUITE), at / "a.json"),
            "{}/a.json", ResultsError, "micro-suite.*kvray suite check",
        ),
        (
            lambda at: write_check(checked(candidates=()), at / "a.json"),
            "{}/a.json", ResultsError, "names no candidate",
        ),
    ],
)  # fmt: skip
def test_what_can_be_no_baseline_is_answered_with_one_line(
    make: object, place: str, error: type[KvrayError], told: str, tmp_path: Path
) -> None:
    assert callable(make)
    make(tmp_path)
    with pytest.raises(error, match=told) as raised:
        read_baseline(place.format(tmp_path))
    assert "\n" not in str(raised.value)


def test_a_check_that_measured_nothing_has_no_record(tmp_path: Path) -> None:
    data = checked().to_dict()
    data["candidates"][0]["now"] = {}
    (tmp_path / "check.json").write_text(json.dumps(data), encoding="utf-8")
    assert "no measurement that came to its end" in str(read_baseline(str(tmp_path)).why_unrecorded)


def test_samples_survive_their_way_through_the_file() -> None:
    failed = trial(9, ttft_ms=1.0)
    failed = dataclasses.replace(
        failed, record=failed.record.with_(status=TrialStatus.CRASHED, message="exit code 7\nmore", phase=None)
    )
    side = measured_side([trial(1, ttft_ms=5.0), trial(2, ttft_ms=6.0, peak_mib=None), failed], PROFILE)
    assert side.failures == ("it crashed: exit code 7",)
    samples = samples_of(side)
    assert samples.logs.shape == (2, 1, 3)
    assert samples.rounds.tolist() == [1, 2]
    assert measured_side([], PROFILE).processes == ()
    assert samples_of(measured_side([], PROFILE)).logs.shape[0] == 0
