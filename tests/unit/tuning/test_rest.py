"""A dry run of a resumed sweep shows what is left of it; nothing is measured or written."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from kvray.candidate import Candidate, DeviceType
from kvray.cli.preview import print_preview
from kvray.config import TuneConfig
from kvray.errors import ResultsError
from kvray.jobs.doorman import JOB, SENT_MODELS
from kvray.record import Role, Run, TrialRecord, TrialResult, TrialStatus
from kvray.store.parquet import ResultsStore
from kvray.testing.fake import FakeAdapter
from kvray.tuning.attempt import Conditions, prepare_attempt
from kvray.tuning.preview import Preview
from kvray.tuning.search import TuningSearch
from kvray.tuning.standing import SweepState

RUN_ID = "20260101-120000-abcd"


def config(folder: Path, **values: Any) -> TuneConfig:
    given = {"model_id": "fake:ok", "profile": "ci-micro", "device": DeviceType.CPU, "engine": "fake", **values}
    return TuneConfig(output_dir=str(folder), caches=("dynamic", "static"), dtypes=("float32",), **given)


def begun(folder: Path, *statuses: TrialStatus, ended: bool = False) -> Preview:
    """Leave a sweep whose first candidates have ended so; returns what it chose from."""
    store, given = ResultsStore(folder), config(folder)
    preview = TuningSearch(config=given).preview()
    attempt = prepare_attempt(
        store,
        given,
        [Conditions(preview=preview, adapters=[FakeAdapter()], threads=None, slots=1)],
        run_id=RUN_ID,
    )
    manifest = attempt.manifest
    store.write_manifest(manifest.ended(manifest.created_at) if ended else manifest)
    for number, (candidate, status) in enumerate(zip(preview.space.candidates, statuses, strict=False)):
        store.append(result(candidate, status, number, fingerprint=manifest.fingerprint_id))
    return preview


def result(candidate: Candidate, status: TrialStatus, number: int, *, fingerprint: str | None) -> TrialResult:
    trial_id, started = f"{number:04d}-{candidate.candidate_id}", dt.datetime.now(dt.UTC)
    record = TrialRecord.of(
        candidate,
        run_id=RUN_ID,
        trial_id=trial_id,
        role=Role.SEARCH if number else Role.BASELINE,
        model_id="fake:ok",
        profile="ci-micro",
        status=status,
        rung=1 if status is TrialStatus.OK else None,
        ttft_ms=10.0 if status is TrialStatus.OK else None,
        started_at=started,
        fingerprint=fingerprint,
    )
    run = Run(
        run_id=RUN_ID,
        trial_id=trial_id,
        candidate_id=candidate.candidate_id,
        context_tokens=512,
        output_tokens=32,
        batch_size=1,
        rung=1,
        repeat=0,
        ttft_ms=10.0,
        itl_ms=(1.0,) * 31,
        decode_tok_s=90.0,
        started_at=started,
    )
    return TrialResult(record=record, runs=(run,) if status is TrialStatus.OK else ())


def test_what_was_measured_is_not_shown_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = begun(tmp_path, TrialStatus.OK, TrialStatus.OK)
    files = sorted(tmp_path.rglob("*"))
    given = config(tmp_path, resume=RUN_ID)
    preview = TuningSearch(config=given).preview()
    left = before.space.candidates[2:]
    assert preview.rest is not None
    assert preview.rest.left == left
    print_preview(preview, given, as_json=False)
    text = " ".join(capsys.readouterr().out.split())
    count = len(before.space.candidates)
    assert f"going on with sweep {RUN_ID}: 2 of {count} candidates measured before; the search may launch" in text
    assert f"Not measured yet ({len(left)})" in text
    assert [one.candidate_id in text for one in before.space.candidates] == [False, False, *(True for _ in left)]
    print_preview(preview, given, as_json=True)
    assert json.loads(capsys.readouterr().out)["resumes"]["left"] == [one.candidate_id for one in left]
    assert sorted(tmp_path.rglob("*")) == files


def test_where_no_further_launch_is_allowed_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun(tmp_path, TrialStatus.OK, TrialStatus.OK)
    given = config(tmp_path, resume=RUN_ID, max_trials=2)
    print_preview(TuningSearch(config=given).preview(), given, as_json=False)
    text = " ".join(capsys.readouterr().out.split())
    assert "2 of 6 candidates measured before; --max-trials 2 is reached, so what is left is confirming" in text


def test_a_rest_that_a_bound_cuts_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun(tmp_path, TrialStatus.OK)
    given = config(tmp_path, resume=RUN_ID, max_trials=3)
    print_preview(TuningSearch(config=given).preview(), given, as_json=False)
    text = " ".join(capsys.readouterr().out.split())
    assert "1 of 6 candidates measured before; --max-trials 3 lets the search launch 2 of the other 5" in text


def test_what_failed_is_left_where_it_is_to_be_retried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = begun(tmp_path, TrialStatus.OK, TrialStatus.CRASHED)
    failed = before.space.candidates[1]
    plain = TuningSearch(config=config(tmp_path, resume=RUN_ID)).preview()
    assert plain.rest is not None
    assert failed not in plain.rest.left
    given = config(tmp_path, resume=RUN_ID, retry=(TrialStatus.CRASHED,))
    preview = TuningSearch(config=given).preview()
    assert preview.rest is not None
    assert preview.rest.again == (failed.candidate_id,)
    print_preview(preview, given, as_json=False)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if failed.candidate_id in line]
    assert line.endswith("again")


def test_a_sweep_that_ended_has_nothing_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = len(TuningSearch(config=config(tmp_path)).preview().space.candidates)
    begun(tmp_path, *[TrialStatus.OK] * count, ended=True)
    given = config(tmp_path, resume=RUN_ID)
    print_preview(TuningSearch(config=given).preview(), given, as_json=False)
    text = " ".join(capsys.readouterr().out.split())
    assert "nothing new is asked, so nothing is left to measure" in text
    assert "Not measured yet" not in text


def test_a_sweep_that_cannot_be_resumed_is_refused_before_anything_starts(tmp_path: Path) -> None:
    begun(tmp_path, TrialStatus.OK)
    with pytest.raises(ResultsError, match="cannot be resumed, because new measurements could not be compared"):
        TuningSearch(config=config(tmp_path, resume=RUN_ID, profile="chat-agent")).preview()


def test_a_model_that_came_with_a_job_is_named_as_its_user_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SENT_MODELS, '{"fake:ok": "./my-model"}')
    monkeypatch.setenv(JOB, "1")
    given = config(tmp_path)
    conditions = Conditions(
        preview=TuningSearch(config=given).preview(), adapters=[FakeAdapter()], threads=None, slots=1
    )
    arguments = ("--address=10.0.0.1:6379", "fake:ok", "--engine=fake")
    about = prepare_attempt(ResultsStore(tmp_path), given, [conditions], run_id=RUN_ID, arguments=arguments).manifest
    assert (about.model_id, about.shown_model()) == ("fake:ok", "./my-model")
    assert (about.command, about.arguments) == ("kvray submit --upload-model tune", ("./my-model", "--engine=fake"))
    state = SweepState()
    state.start(conditions.preview, about, ())
    assert state.title.startswith("./my-model · ci-micro")
