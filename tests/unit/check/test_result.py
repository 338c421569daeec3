"""`check.json`: what is written is read back equal; whatever is wrong with a file is said in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checked import checked

from kvray.analysis.comparison import Verdict
from kvray.check.check_file import read_check, write_check
from kvray.check.ending import error_of
from kvray.check.result import CheckResult, OnInconclusive
from kvray.errors import OutputError, ResultsError


def test_a_result_is_read_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "new" / "check.json"
    write_check(checked(), path)
    assert read_check(path) == checked()
    assert CheckResult.from_dict(checked().to_dict()) == checked()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"check_version": 2}, "has check_version 2; this kvray reads version 1. Upgrade kvray"),
        ({"check_version": True}, "has check_version True"),
        ({"verdict": "perhaps"}, "verdict: Input should be"),
        ({"colour": 1}, "colour: there is no such key"),
        ({"device": "abacus"}, "device: Input should be"),
        ({"margins": {"speed": 1}}, "margins.speed"),
        ({"candidates": [{"label": "x", "verdict": "pass", "candidate": {"engine": "x"}}]}, "candidates.0.candidate"),
        ({"candidates": [{"label": "x", "verdict": "pass", "now": {"processes": [
            {"round": 1, "session": "s", "logs": [[0, 0, 0]]}]}}]}, "not one row of logs for each cell"),
    ],
)  # fmt: skip
def test_a_result_that_is_not_valid_is_refused_with_what_is_wrong(
    change: dict[str, object], told: str, tmp_path: Path
) -> None:
    path = tmp_path / "check.json"
    path.write_text(json.dumps({**checked().to_dict(), **change}), encoding="utf-8")
    with pytest.raises(ResultsError) as raised:
        read_check(path)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "it has no check_version"),
        ('{"plan_version": 1}', "it is a plan"),
        ('{"manifest_version": 1}', "it is the manifest of a sweep"),
        ('{"check_version": 1}', "is not a valid result of a check: kvray_version: Field required"),
    ],
)
def test_another_file_is_named_for_what_it_is(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "check.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ResultsError) as raised:
        read_check(path)
    assert told in str(raised.value)


def test_a_file_that_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"Cannot read .*No such file"):
        read_check(tmp_path / "none.json")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"Cannot write .*check.json': (Not a directory|File exists)"):
        write_check(checked(), tmp_path / "file" / "check.json")


def test_the_schema_is_that_of_the_code() -> None:
    schema = Path(__file__).parents[3] / "docs" / "schema" / "check.schema.json"
    assert json.loads(schema.read_text(encoding="utf-8")) == CheckResult.model_json_schema()


def test_what_is_written_follows_the_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(checked().to_dict(), CheckResult.model_json_schema())


@pytest.mark.parametrize(
    ("verdict", "counts_as", "code"),
    [
        (Verdict.PASS, None, 0),
        (Verdict.FAIL, None, 1),
        (Verdict.FAIL, OnInconclusive.PASS, 1),
        (Verdict.INCONCLUSIVE, None, 14),
        (Verdict.INCONCLUSIVE, OnInconclusive.PASS, 0),
        (Verdict.INCONCLUSIVE, OnInconclusive.FAIL, 1),
    ],
)
def test_each_verdict_has_its_exit_code(verdict: Verdict, counts_as: OnInconclusive | None, code: int) -> None:
    error = error_of(verdict, "why", on_inconclusive=counts_as)
    assert (0 if error is None else error.exit_code) == code
