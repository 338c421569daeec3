from __future__ import annotations

import logging
from pathlib import Path

import pytest

from kvray.analysis.comparison import Verdict
from kvray.candidate import DeviceType
from kvray.check.result import CheckMode, CheckResult, OnInconclusive, SideInfo
from kvray.cli.app import run
from kvray.cli.check_files import CheckFiles
from kvray.errors import InvalidValueError, OutputError
from kvray.workload import get_profile

RESULT = CheckResult.from_dict(
    {
        "kvray_version": "0.1.0",
        "started_at": "2026-11-27T18:00:00Z",
        "ended_at": "2026-11-27T18:01:00Z",
        "seconds": 60.0,
        "mode": CheckMode.RECORD,
        "model_id": "demo",
        "device": DeviceType.CPU,
        "device_name": "laptop",
        "profile": get_profile("ci-micro").model_dump(),
        "sides": [SideInfo(name="baseline").model_dump(), SideInfo(name="now").model_dump()],
        "candidates": [{"label": "static", "verdict": Verdict.INCONCLUSIVE, "reasons": ["too few rounds"]}],
        "verdict": Verdict.INCONCLUSIVE,
    }
)


def files_in(folder: Path) -> CheckFiles:
    return CheckFiles(
        markdown=str(folder / "check.md"),
        comment=str(folder / "comment.md"),
        junit=str(folder / "deep" / "junit.xml"),
        github_action_benchmark=str(folder / "action.json"),
        bencher=str(folder / "bencher.json"),
    )


@pytest.fixture(autouse=True)
def _no_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


def test_every_file_that_was_asked_for_is_written_and_no_other(tmp_path: Path) -> None:
    assert files_in(tmp_path).write(RESULT, on_inconclusive=OnInconclusive.FAIL) is None
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"check.md", "comment.md", "deep/junit.xml", "action.json", "bencher.json"}
    assert (tmp_path / "comment.md").read_text().startswith("<!-- kvray-check ")
    assert 'type="inconclusive"' in (tmp_path / "deep" / "junit.xml").read_text(), "the mapping reaches the file"
    assert CheckFiles().write(RESULT) is None


def test_a_place_for_a_file_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    files_in(tmp_path / "new" / "folder").check_places()
    with pytest.raises(OutputError, match=r"--junit: .* cannot be written, because it is a folder"):
        CheckFiles(junit=str(tmp_path)).check_places()
    with pytest.raises(OutputError, match=r"--github-action-benchmark: .*file' is no folder"):
        CheckFiles(github_action_benchmark=str(tmp_path / "file" / "x.json")).check_places()
    with pytest.raises(InvalidValueError, match="--comment and --bencher both name"):
        CheckFiles(comment="same", bencher="same").check_places()


@pytest.mark.parametrize(
    "command",
    [
        ["check", "no-baseline.json", "--junit", "/proc/a.xml"],
        ["check", "no-baseline.json", "--bencher", "/proc/new/a.json"],
        ["check", "no-baseline.json", "--json", "/proc/a.json"],
        ["suite", "check", "no-record.json", "--json", "/proc/a.json"],
        ["suite", "check", "no-record.json", "--markdown", "/proc/a.md"],
        ["suite", "run", "--engine", "none", "--output", "/proc/a.json"],
    ],
    ids=" ".join,
)
def test_a_place_that_only_trying_shows_is_refused_first(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, verbose=False) == OutputError.exit_code
    assert f"{command[-2]}: {command[-1]!r} cannot be written, because the folder '/proc' is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("file://{folder}/missing/a.json", "there is no such folder"),
        ("file://{folder}", "it is a folder"),
        ("file://{folder}/a/", "it names no file"),
        ("nonsense://bucket/a.json", "Unrecognized filesystem type in URI"),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        ["check", "no-baseline.json", "--junit"],
        ["check", "no-baseline.json", "--json"],
        ["suite", "check", "no-record.json", "--markdown"],
        ["suite", "check", "no-record.json", "--json"],
        ["suite", "run", "--engine", "none", "--output"],
    ],
    ids=" ".join,
)
def test_a_uri_is_tried_before_anything_else(
    command: list[str], uri: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = uri.format(folder=tmp_path)
    assert run([*command, place], verbose=False) == OutputError.exit_code
    assert f"{command[-1]}: {place!r} cannot be written, because {problem}" in capsys.readouterr().err


def test_nothing_is_left_where_a_uri_was_tried(tmp_path: Path) -> None:
    (tmp_path / "check.json").write_text("older")
    CheckFiles(junit=f"file://{tmp_path}/junit.xml").check_places(json_file=f"file://{tmp_path}/check.json")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["older"]


def test_nothing_is_left_where_a_place_was_tried(tmp_path: Path) -> None:
    CheckFiles(junit=str(tmp_path / "junit.xml")).check_places(json_file=str(tmp_path / "check.json"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InvalidValueError, match="--json and --junit both name"):
        CheckFiles(junit="same").check_places(json_file="same")


def test_the_summary_of_a_step_is_found_by_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    assert CheckFiles().write(RESULT) is None
    assert "kvray check: INCONCLUSIVE" in (tmp_path / "summary.md").read_text()


def test_a_file_that_cannot_be_written_is_named_and_costs_none_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "comment.md").mkdir()
    error = files_in(tmp_path).write(RESULT)
    assert error is not None
    assert "comment.md" in str(error)
    assert (tmp_path / "bencher.json").exists()


def test_a_summary_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "missing" / "summary.md"))
    with caplog.at_level(logging.WARNING, logger="kvray"):
        assert CheckFiles().write(RESULT) is None
    assert "Cannot append to the step's summary" in caplog.text


@pytest.mark.parametrize("command", [("check", "missing.json"), ("suite", "check", "missing.json")])
def test_the_commands_look_at_the_places_before_anything_else(command: tuple[str, ...], tmp_path: Path) -> None:
    assert run([*command, "--junit", str(tmp_path)], verbose=False) == OutputError.exit_code
