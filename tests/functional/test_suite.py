"""kvray's own micro-suite on this machine: outputs must be those that were recorded when it was made."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kvray_logger import logger_as_before

from kvray.analysis.comparison import Verdict
from kvray.check.check_file import read_check
from kvray.check.result import CheckMode, CheckResult
from kvray.check.suite.record import RecordedCase, SkippedCase, SuiteRecord, read_record, write_record
from kvray.cli.app import run

RECORD = Path(__file__).parents[1] / "assets" / "suite_quick.json"
"""Made by `kvray suite run --quick --output tests/assets/suite_quick.json`."""
HELD, CHANGED, LOST = "transformers/sliding/dynamic", "llama_cpp/gqa/q8_0", "vllm/gqa/paged"
OTHER = "llama_cpp/gqa/q4_0"
Suite = Callable[..., tuple[int, str, str]]


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], cache_folder: Path) -> Iterator[Suite]:
    """Run `kvray suite …` in this process; returns exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("KVRAY_CACHE", str(cache_folder))
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)

    def end(*arguments: str | Path) -> tuple[int, str, str]:
        code = run(["suite", *map(str, arguments)], verbose=False)
        return (code, *capfd.readouterr())

    with logger_as_before():
        yield end


def tampered(record: SuiteRecord) -> SuiteRecord:
    """As if another token had been generated in one case, and another engine had been installed."""
    cases = tuple(_with_other_token(one) if one.name == CHANGED else one for one in record.cases)
    paged = cases[0].model_copy(update={"name": LOST})
    skipped = tuple(one for one in record.skipped if one.name != LOST)
    return record.model_copy(update={"cases": (*cases, paged), "skipped": skipped})


def _with_other_token(case: RecordedCase) -> RecordedCase:
    (first, *rest), *rows = case.outputs.tokens
    tokens = ((first + 1, *rest), *rows)
    return case.model_copy(update={"outputs": case.outputs.model_copy(update={"tokens": tokens})})


def test_the_recorded_outputs_hold_and_what_differs_is_named(suite: Suite, tmp_path: Path) -> None:
    write_record(tampered(read_record(RECORD)), tmp_path / "suite.json")
    only = f"{HELD},{CHANGED},{LOST}"
    code, out, err = suite(
        *("check", tmp_path / "suite.json", "--only", only, "--outputs-only", "--device", "cpu"),
        *("--json", tmp_path / "found.json", "--junit", tmp_path / "found.xml"),
    )
    found = read_check(tmp_path / "found.json")
    assert found.mode is CheckMode.SUITE
    verdicts = {one.label: one.verdict for one in found.candidates}
    assert verdicts == {HELD: Verdict.PASS, CHANGED: Verdict.FAIL, LOST: Verdict.FAIL}, reasons(found)
    assert (code, found.verdict) == (1, Verdict.FAIL)
    assert "another token: number 1" in reasons(found)[CHANGED][0]
    assert reasons(found)[LOST] == ("it no longer runs: The engine vllm needs vllm, which is not installed.",)
    assert "another token" in out.lower()
    assert err.startswith("kvray: FAIL")
    assert LOST in (tmp_path / "found.xml").read_text()


@pytest.mark.slow
def test_the_last_bit_counts_only_where_variables_are_those_of_the_record(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("--only", CHANGED, "--device", "cpu")
    monkeypatch.setenv("MKL_DYNAMIC", "FALSE")
    assert suite("run", *line, "--rounds", "1", "--output", tmp_path / "suite.json")[0] == 0
    record = read_record(tmp_path / "suite.json")
    write_record(
        record.model_copy(update={"cases": tuple(map(_moved_a_little, record.cases))}), tmp_path / "moved.json"
    )
    check = ("check", tmp_path / "moved.json", *line, "--outputs-only", "--json", tmp_path / "found.json")
    code, out, err = suite(*check)
    assert code == 1, out + err
    assert "with the same machine and versions" in reasons(read_check(tmp_path / "found.json"))[CHANGED][0]
    monkeypatch.delenv("MKL_DYNAMIC")
    code, out, err = suite(*check)
    assert code == 0, out + err
    assert "MKL_DYNAMIC: FALSE → not set" in read_check(tmp_path / "found.json").differences


def _moved_a_little(case: RecordedCase) -> RecordedCase:
    (first, *rest), *rows = case.outputs.logs
    assert first is not None
    logs = ((first + 1e-5, *rest), *rows)
    return case.model_copy(update={"outputs": case.outputs.model_copy(update={"logs": logs})})


def test_an_interrupted_suite_keeps_what_it_measured_and_that_is_no_baseline(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, unfinished = tmp_path / "suite.json", tmp_path / "suite.unfinished.json"
    record.write_text("whole")
    line = ("--only", f"{CHANGED},{OTHER}", "--device", "cpu")
    signalled_before(OTHER, monkeypatch)
    code, out, err = suite("run", *line, "--output", record)
    assert (code, record.read_text()) == (130, "whole"), err
    assert f"record: {unfinished}" in out
    assert err.splitlines()[-1] == "kvray: The suite was interrupted; what it measured is kept, and is no baseline."
    kept = read_record(unfinished)
    assert ([one.name for one in kept.cases], kept.is_interrupted) == ([CHANGED], True)
    code, _, err = suite("check", unfinished)
    assert (code, "is no baseline: it was interrupted when 1 case had been measured" in err) == (10, True)
    write_record(kept.model_copy(update={"is_interrupted": False}), record)
    signalled_before(CHANGED, monkeypatch)
    code, _, err = suite("check", record, "--device", "cpu", "--json", tmp_path / "found.json")
    found = read_check(tmp_path / "found.json")
    assert (code, found.is_interrupted, found.verdict) == (130, True, Verdict.INCONCLUSIVE), err
    assert reasons(found)[CHANGED] == ("it was not measured, because the check was interrupted before",)


def signalled_before(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM comes when it is the turn of `case`."""

    def tell(text: str) -> None:
        if text.endswith(f": {case}"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)

    monkeypatch.setattr("kvray.cli.suite._progress", lambda: contextlib.nullcontext(tell))


def reasons(result: CheckResult) -> dict[str, tuple[str, ...]]:
    return {one.label: one.reasons for one in result.candidates}


@pytest.mark.slow
def test_the_reduced_suite_runs_and_its_outputs_are_those_of_the_repository(suite: Suite, tmp_path: Path) -> None:
    code, out, _ = suite("run", "--quick", "--rounds", "2", "--device", "cpu", "--output", tmp_path / "suite.json")
    assert code == 0, out
    record, committed = read_record(tmp_path / "suite.json"), read_record(RECORD)
    assert [one.name for one in record.cases] == [one.name for one in committed.cases]
    assert all(one.works and one.outputs.repeats for one in record.cases)
    assert all(len(one.measured.processes) == 2 for one in record.cases)
    code, out, _ = suite("check", RECORD, "--quick", "--outputs-only", "--device", "cpu")
    assert code == 0, out


@pytest.mark.slow
def test_another_environment_is_measured_in_turn(suite: Suite, tmp_path: Path) -> None:
    (tmp_path / "variables").write_text("OMP_NUM_THREADS=1\n")
    code, out, err = suite(
        *("check", "--against", f"env={tmp_path / 'variables'}", "--only", HELD, "--outputs-only", "--device", "cpu"),
        *("--json", tmp_path / "found.json"),
    )
    assert code == 0, out + err
    found = read_check(tmp_path / "found.json")
    (case,) = found.candidates
    assert case.verdict is Verdict.PASS
    assert (found.now.speed_variables or {})["OMP_NUM_THREADS"] == "1"
    assert len(case.before.processes) == len(case.now.processes) == 1


def test_a_line_that_compares_nothing_is_refused(suite: Suite, tmp_path: Path) -> None:
    code, _, err = suite("check")
    assert (code, "Name a record, or another side" in err) == (2, True)
    other = read_record(RECORD).model_copy(update={"skipped": (SkippedCase(name="x", reason="y"),), "suite_version": 9})
    write_record(other, tmp_path / "other.json")
    code, _, err = suite("check", tmp_path / "other.json")
    assert (code, "has suite_version 9" in err) == (10, True)


def test_the_list_says_what_stands_in_the_way_of_each_case(suite: Suite) -> None:
    code, out, _ = suite("list", "--device", "cpu", "--engine", "transformers,vllm")
    assert code == 0
    assert "transformers/gqa/dynamic" in out
    assert "The engine vllm needs vllm" in out
