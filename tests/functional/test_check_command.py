"""`kvray check` on a real command line: each verdict, each way to fail, and what it leaves."""

from __future__ import annotations

import datetime as dt
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kvray_logger import logger_as_before
from measured_here import PROFILE, kept, measured_here

from kvray.analysis.comparison import Verdict
from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.check.check_file import read_check, write_check
from kvray.check.result import CheckedCandidate, CheckedModel, CheckMode, CheckResult, SideInfo
from kvray.cli.app import run
from kvray.engines.base import ModelRequest
from kvray.store.parquet import ResultsStore
from kvray.testing.fake import KERNEL_VARIABLE, SLOWER_VARIABLE, FakeAdapter

Check = Callable[..., tuple[int, str, str]]
CHECK = ("--budget", "20s", "--margin", "ttft=60%,decode=60%,memory=60%")
"""Margins that a busy machine does not reach."""
NARROW = ("--margin", "ttft=20%,decode=20%,memory=5%")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with one measured candidate of the fake engine."""
    folder, request = tmp_path_factory.mktemp("swept"), ModelRequest(model_id="fake:ok")
    one = Candidate(engine="fake", cache=CacheStrategy.DYNAMIC, attention=AttentionBackend.SDPA, dtype=DType.FLOAT32)
    kept(folder, FakeAdapter(), request, measured_here(FakeAdapter(), request, one))
    return folder


@pytest.fixture
def check(
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    cache_folder: Path,
) -> Iterator[Check]:
    """Run `kvray check BASELINE …` in this process; returns exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("KVRAY_CACHE", str(cache_folder))
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)

    def end(*arguments: str | Path, baseline: str | Path = results) -> tuple[int, str, str]:
        line = ["check", str(baseline), "--output", str(tmp_path / "out"), *CHECK, *map(str, arguments)]
        code = run(line, verbose=False)
        return (code, *capfd.readouterr())

    with logger_as_before():
        yield end


def variables(tmp_path: Path, **values: str) -> str:
    (tmp_path / "variables").write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    return f"env={tmp_path / 'variables'}"


def result_of(tmp_path: Path) -> CheckResult:
    return read_check(tmp_path / "out" / "check.json")


def test_the_same_passes_and_leaves_every_file(check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    names = {name: tmp_path / name for name in ("markdown", "junit", "github-action-benchmark", "bencher")}
    files = [part for name, path in names.items() for part in (f"--{name}", path)]
    code, out, err = check("--against", variables(tmp_path, HARMLESS="secret"), *files)
    assert code == 0, out + err
    assert out.startswith("PASS")
    assert "kvray: 1 round," in err
    assert all(path.stat().st_size for path in (*names.values(), summary))
    found = result_of(tmp_path)
    assert found.differences == ("HARMLESS: not set → set",)
    assert "secret" not in (tmp_path / "out" / "check.json").read_text()
    (one,) = found.candidates
    rounds = len(one.now.processes)
    assert 0 < one.rounds <= rounds == len(one.before.processes)
    assert {p.session for p in one.now.processes} == {found.now.run_id}
    records = ResultsStore(tmp_path / "out").read(str(found.now.run_id))
    assert [trial.record.role for trial in records] == ["check"] * 2 * rounds
    again, out, err = check("--json", tmp_path / "second.json", baseline=tmp_path / "out" / "check.json")
    assert again in (0, 14), out + err
    assert read_check(tmp_path / "second.json").mode == "record"


@pytest.mark.slow
def test_a_slower_side_fails_with_exit_code_1(check: Check, tmp_path: Path) -> None:
    code, out, err = check("--against", variables(tmp_path, **{SLOWER_VARIABLE: "2.5"}), *NARROW)
    assert code == 1, out + err
    assert out.startswith("FAIL")
    assert err.splitlines()[-1].startswith("kvray: FAIL")


def test_another_kernel_fails_however_fast_it_is(check: Check, tmp_path: Path) -> None:
    code, out, _ = check("--against", variables(tmp_path, **{KERNEL_VARIABLE: "math", SLOWER_VARIABLE: "0.5"}))
    assert code == 1
    assert "nother kernel ran in decode: sdpa → math" in out


@pytest.mark.slow
def test_a_real_engine_says_what_ran_on_both_sides(tiny_model: str, check: Check, tmp_path: Path) -> None:
    one = Candidate(
        engine="transformers", cache=CacheStrategy.DYNAMIC, attention=AttentionBackend.SDPA_MATH, dtype=DType.FLOAT32
    )
    at, side = dt.datetime(2026, 1, 1, tzinfo=dt.UTC), SideInfo(name="now")
    before = CheckResult(
        kvray_version="0.1.0",
        started_at=at,
        ended_at=at,
        seconds=1.0,
        mode=CheckMode.RECORD,
        model_id=tiny_model,
        models={"transformers": CheckedModel(model_id=tiny_model)},
        device=DeviceType.CPU,
        device_name="a CPU of before",
        profile=PROFILE,
        sides=(side, side),
        candidates=(CheckedCandidate(label=one.label, candidate=one, verdict=Verdict.INCONCLUSIVE),),
        verdict=Verdict.INCONCLUSIVE,
    )
    write_check(before, tmp_path / "before.json")
    threads = variables(tmp_path, OMP_NUM_THREADS="1")
    code, out, err = check("--against", threads, "--budget", "0.01s", baseline=tmp_path / "before.json")
    assert code == 14, out + err
    (found,) = result_of(tmp_path).candidates
    assert found.reasons == ()
    assert found.before.ran is not None
    assert found.now.ran is not None
    assert found.before.ran.kernel_decode == found.now.ran.kernel_decode
    assert found.now.ran.kernel_decode is not None
    assert found.now.ran.threads == 1
    assert len(found.now.cells) == len(PROFILE.cells(1, rung=2))


@pytest.mark.slow
def test_too_small_a_budget_ends_inconclusive(check: Check, tmp_path: Path) -> None:
    line = ("--against", variables(tmp_path, HARMLESS="1"), "--budget", "0.01s")
    code, out, err = check(*line)
    assert code == 14, out + err
    assert out.startswith("INCONCLUSIVE")
    assert len(result_of(tmp_path).candidates[0].now.processes) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--margin", "ttft=0%"), 2, "no margin between"),
        (("--budget", "soon"), 2, "--budget 'soon'"),
        (("--on-inconclusive", "maybe"), 2, "Allowed: pass, fail"),
        (("--against", "colour=red"), 2, "--against 'colour=red'"),
        (("--against", "python=/none/python"), 5, "/none/python"),
        (("--candidates", "none.json"), 2, "Cannot read candidates 'none.json'"),
        (("--candidates", "x.json", "--all-ranked"), 2, "exclude each other"),
        (("--output", "/proc/none"), 7, "/proc/none"),
        (("--json", "/proc/none.json"), 7, "/proc/none.json"),
        (("--margin", "ttft=off,decode=off,memory=off"), 2, "nothing to judge"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_measured(
    arguments: tuple[str, ...], code: int, told: str, check: Check
) -> None:
    ended, out, err = check(*arguments)
    assert (ended, out) == (code, ""), err
    assert told in err
    assert err.count("\n") == 1


def test_a_baseline_that_does_not_fit_is_refused_with_one_line(check: Check, results: Path, tmp_path: Path) -> None:
    manifest = next((results / "sweeps").iterdir())
    text = manifest.read_text()
    changes = {
        '"model_revision": "1"': ('"model_revision": "2"', 10, "is not the one that the baseline measured: revision 2"),
        '"trust_remote_code": false': ('"trust_remote_code": true', 6, "add --trust-remote-code"),
        '"manifest_version": 2': ('"manifest_version": 9', 10, "Use a newer kvray"),
    }
    try:
        for old, (new, code, told) in changes.items():
            assert old in text
            manifest.write_text(text.replace(old, new))
            ended, out, err = check(baseline=f"{results}#{manifest.stem}")
            assert (ended, out) == (code, ""), err
            assert told in err
    finally:
        manifest.write_text(text)


def test_the_baseline_is_never_replaced(check: Check, results: Path, tmp_path: Path) -> None:
    old = tmp_path / "out" / "check.json"
    old.parent.mkdir()
    old.write_text("{}")
    code, _, err = check(baseline=old)
    assert code == 2
    assert "would replace its own baseline" in err
    assert old.read_text() == "{}"


@pytest.mark.slow
def test_a_check_that_is_interrupted_or_killed_leaves_whole_files(
    results: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    ends = {signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}
    line = ("--budget", "100s", "--margin", "decode=0.1%", "--against", variables(tmp_path, HARMLESS="1"))
    running = {
        number: subprocess.Popen(
            [sys.executable, "-m", "kvray", "check", str(results), "--output", str(tmp_path / number.name), *line],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in ends
    }
    for number, process in running.items():
        with process:
            assert process.stderr is not None
            assert any("1 round," in told for told in process.stderr)
            time.sleep(0.1)  # in the middle of a trial
            process.send_signal(number)
            rest = process.stderr.read()
        assert process.returncode == ends[number], rest
        found = read_check(tmp_path / number.name / "check.json")
        assert found.is_interrupted
        assert found.verdict == "inconclusive"
        assert found.candidates[0].now.processes
