from __future__ import annotations

import datetime as dt
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from suite_samples import CASE, recorded

from kvray.candidate import DeviceType
from kvray.check.result import RanFacts, SideInfo
from kvray.check.suite.cases import SUITE_VERSION
from kvray.check.suite.measuring import recorded_case
from kvray.check.suite.record import (
    SkippedCase,
    SuiteRecord,
    read_record,
    record_text,
    unfinished_place,
    write_record,
)
from kvray.check.suite.running import SuiteAsk, check_suite
from kvray.check.suite.tables import record_table
from kvray.errors import ResultsError
from kvray.record import Role, TrialRecord, TrialResult, TrialStatus
from kvray.trial.forced_logs import ForcedLogs

RECORD = SuiteRecord(
    suite_version=SUITE_VERSION,
    kvray_version="1.2.3",
    measured_at=dt.datetime(2026, 11, 27, tzinfo=dt.UTC),
    seconds=12.5,
    device=DeviceType.CPU,
    side=SideInfo(name="now", device_name="a CPU", cpus=2),
    rounds=3,
    cases=(recorded(),),
    skipped=(SkippedCase(name="transformers/gqa/offloaded", reason="needs a CUDA GPU"),),
)


def trial(**changes: Any) -> TrialResult:
    record = TrialRecord.of(
        CASE.candidate,
        run_id="r",
        trial_id="t",
        role=Role.CHECK,
        model_id="m",
        profile="ci-micro",
        status=TrialStatus.OK,
    )
    return TrialResult(record=record.with_(**changes), runs=())


def test_what_is_written_is_read_back_equal(tmp_path: Path) -> None:
    write_record(RECORD, tmp_path / "suite.json")
    assert read_record(tmp_path / "suite.json") == RECORD


def test_an_interrupted_record_says_so_and_is_no_baseline(tmp_path: Path) -> None:
    interrupted = RECORD.model_copy(update={"is_interrupted": True})
    write_record(interrupted, tmp_path / "suite.json")
    assert read_record(tmp_path / "suite.json") == interrupted
    assert "is_interrupted" not in record_text(RECORD)
    with pytest.raises(ResultsError, match=r"'mine' is no baseline: it was interrupted when 1 case had been measured"):
        check_suite(SuiteAsk(), interrupted, shown="mine")


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        ("out/suite.json", "out/suite.unfinished.json"),
        ("a.b/suite", "a.b/suite.unfinished"),
        ("s3://bucket/suite.json?region=eu-west-1", "s3://bucket/suite.unfinished.json?region=eu-west-1"),
    ],
)
def test_an_interrupted_record_replaces_no_whole_one(asked: str, place: str) -> None:
    assert unfinished_place(asked) == place


def test_each_case_is_a_line_so_that_a_change_of_one_is_a_change_of_one_line() -> None:
    lines = record_text(RECORD).splitlines()
    assert len([line for line in lines if line.startswith('{"name": "transformers/gqa/static"')]) == 1
    assert json.loads(record_text(RECORD))["suite_version"] == SUITE_VERSION


def test_log_probabilities_are_kept_as_the_very_float32() -> None:
    logs = np.log(np.linspace(0.1, 0.9, 7, dtype=np.float32))
    forced = ForcedLogs(text="abc", rows=(tuple(map(float, logs)),))
    case = recorded_case(CASE, [trial(forced_logs=forced.to_json(), sample_tokens="[[1, 2]]")])
    assert np.array_equal(np.array(case.outputs.logs[0], dtype=np.float32), logs)
    assert (case.outputs.tokens, case.outputs.text, case.outputs.repeats) == (((1, 2),), "abc", None)


def test_a_case_knows_whether_its_processes_answer_alike() -> None:
    one, other = (ForcedLogs(text="abc", rows=((value,),)).to_json() for value in (-1.0, -1.5))
    same = recorded_case(CASE, [trial(forced_logs=one), trial(forced_logs=one)])
    unlike = recorded_case(CASE, [trial(forced_logs=one), trial(forced_logs=other)])
    assert (same.outputs.repeats, unlike.outputs.repeats) == (True, False)


def test_a_value_that_is_not_finite_is_kept_as_none() -> None:
    case = recorded_case(CASE, [trial(forced_logs=ForcedLogs(text="abc", rows=((-1.0, float("nan")),)).to_json())])
    assert case.outputs.logs == ((-1.0, None),)


def test_one_failed_process_of_several_counts() -> None:
    broken = trial(status=TrialStatus.CRASHED, message="exit code 7")
    case = recorded_case(CASE, [trial(), broken])
    assert (case.status, case.message, case.works) == (TrialStatus.CRASHED, "exit code 7", False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a record of the suite: it is not JSON"),
        ("[]", "is not a record of the suite: it has no suite_version"),
        ('{"check_version": 1}', "is not a record of the suite: it has no suite_version"),
        ('{"suite_record_version": 1, "suite_version": 99}', "has suite_version 99, and this kvray has 1"),
        ('{"suite_record_version": 2, "suite_version": 1}', "has suite_record_version 2, and this kvray has 1"),
        ('{"suite_record_version": 1, "suite_version": 1}', "is not a valid record of the suite: "),
    ],
)
def test_what_is_no_record_is_refused_with_what_it_is(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "suite.json"
    path.write_text(text)
    with pytest.raises(ResultsError, match=message):
        read_record(path)


def test_a_missing_record_and_a_case_that_is_there_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"Cannot read .* kvray suite run --output FILE writes one"):
        read_record(tmp_path / "none.json")
    data = json.loads(record_text(RECORD))
    data["cases"] *= 2
    (tmp_path / "twice.json").write_text(json.dumps(data))
    with pytest.raises(ResultsError, match="a case is there twice"):
        read_record(tmp_path / "twice.json")


def test_no_name_of_a_cache_is_cut_on_a_terminal_of_80_columns() -> None:
    name = "llama_kv_cache_of_a_name_that_fits_in_no_column"
    case = recorded(ran=RanFacts(cache_class=name, kernel_decode="flash"))
    console = Console(file=io.StringIO(), width=80)
    console.print(record_table(RECORD.model_copy(update={"cases": (case,)})))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "…" not in shown
    assert all(part in shown for part in ("llama_kv_cache", "in_no_column"))
