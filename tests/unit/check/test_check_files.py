"""Files that programs of a CI read: JUnit XML, github-action-benchmark's JSON, Bencher's JSON, the step's summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checks import ALL, BETTER, HOSTILE, NOT_MEASURED, OTHER_KERNEL, PASSED, SEVERAL, SLOWER, UNDECIDED, metric
from junitparser import Failure, JUnitXml, Skipped, TestCase, TestSuite

from kvray.analysis.comparison import ComparedMetric, Verdict
from kvray.check.outputs.action_benchmark import render_action_benchmark
from kvray.check.outputs.bencher import render_bencher
from kvray.check.outputs.junit import render_junit
from kvray.check.outputs.markdown import MOST_BYTES, render_markdown
from kvray.check.outputs.step_summary import append_step_summary
from kvray.check.result import CheckResult, OnInconclusive
from kvray.errors import OutputError


def suite_of(text: str) -> TestSuite:
    (suite,) = JUnitXml.fromstring(text.encode())
    assert isinstance(suite, TestSuite)
    return suite


def ends(suite: TestSuite) -> dict[str, str]:
    return {case.name: ",".join(type(end).__name__ for end in case.result) or "passed" for case in suite}


@pytest.mark.parametrize("mapping", [None, *OnInconclusive])
@pytest.mark.parametrize("name", ALL)
def test_a_junit_reader_counts_what_the_file_says(name: str, mapping: OnInconclusive | None) -> None:
    text = render_junit(ALL[name], on_inconclusive=mapping)
    whole, suite = JUnitXml.fromstring(text.encode()), suite_of(text)
    cases = list(suite)
    kinds = [type(end) for case in cases for end in case.result]
    assert (suite.tests, suite.failures, suite.errors) == (len(cases), kinds.count(Failure), 0)
    assert suite.skipped == kinds.count(Skipped)
    assert (whole.tests, whole.failures, whole.errors) == (suite.tests, suite.failures, 0)
    assert len({(case.classname, case.name) for case in cases}) == len(cases), "GitLab ignores a second of one name"
    assert all(isinstance(case, TestCase) and len(case.result) <= 1 for case in cases)
    assert (suite.failures > 0) == (ALL[name].verdict is Verdict.FAIL or (name == "undecided" and mapping == "fail"))


def test_each_metric_is_a_test_case_and_one_more_is_for_what_ran() -> None:
    assert ends(suite_of(render_junit(SLOWER))) == {
        "what ran": "passed",
        "ttft": "Failure",
        "decode": "Failure",
        "memory": "passed",
    }
    other = suite_of(render_junit(OTHER_KERNEL))
    assert ends(other) == {"what ran": "Failure", "ttft": "passed", "decode": "passed", "memory": "passed"}
    (failure,) = next(iter(other)).result
    assert failure.message == failure.text == "Another kernel ran in decode: sdpa_math, before sdpa_flash."


def test_an_undecided_metric_is_skipped_or_fails_as_it_is_mapped() -> None:
    assert ends(suite_of(render_junit(UNDECIDED)))["ttft"] == "Skipped"
    assert ends(suite_of(render_junit(UNDECIDED, on_inconclusive=OnInconclusive.PASS)))["ttft"] == "Skipped"
    assert ends(suite_of(render_junit(UNDECIDED, on_inconclusive=OnInconclusive.FAIL)))["ttft"] == "Failure"


def test_a_metric_without_a_margin_is_shown_and_skipped() -> None:
    shown = metric(ComparedMetric.TTFT, 0.3, None)
    one = PASSED.candidates[0].model_copy(update={"metrics": (shown,)})
    suite = suite_of(render_junit(PASSED.model_copy(update={"candidates": (one,)})))
    assert ends(suite) == {"what ran": "passed", "ttft": "Skipped"}


def test_xml_has_no_character_that_xml_forbids() -> None:
    text = render_junit(HOSTILE)
    assert not set(text) & {chr(code) for code in (0, 0x1B, 0xFFFE)}
    assert "]]>" not in text
    assert "<img src=x onerror=alert(1)>" in next(iter(suite_of(text))).classname


def entries(result: CheckResult) -> list[dict[str, Any]]:
    found = json.loads(render_action_benchmark(result))
    assert isinstance(found, list)
    return found


def test_github_action_benchmark_gets_values_that_are_better_when_smaller() -> None:
    ttft, decode, memory = entries(SLOWER)
    assert ttft["name"].endswith("dynamic/sdpa_flash/bfloat16: time to first token")
    assert (ttft["unit"], ttft["value"], ttft["range"]) == ("ms", 132.514, "130.2 to 134.9")
    assert (decode["unit"], decode["value"], decode["range"]) == ("ms/token", 50.2008, "48.19 to 52.38")
    assert (memory["unit"], memory["value"]) == ("MiB", 641.0)
    better = entries(BETTER)[1]
    assert better["value"] < 1000 / 41.5 < decode["value"]
    assert decode["extra"].splitlines()[0] == "verdict: FAIL"


@pytest.mark.parametrize("name", ALL)
def test_github_action_benchmark_gets_the_fields_that_it_reads(name: str) -> None:
    names = [entry["name"] for entry in entries(ALL[name])]
    assert len(set(names)) == len(names), "its history goes by name"
    for entry in entries(ALL[name]):
        assert {"name", "unit", "value", "extra"} <= set(entry) <= {"name", "unit", "value", "range", "extra"}
        assert all(isinstance(entry[key], str) for key in entry if key != "value")


def test_bencher_gets_each_metric_with_its_bounds() -> None:
    ((name, measures),) = json.loads(render_bencher(SLOWER)).items()
    assert name == "HuggingFaceTB/SmolLM2-135M / ci-micro / dynamic/sdpa_flash/bfloat16"
    assert measures == {
        "ttft-ms": {"value": 132.514, "lower_value": 130.154, "upper_value": 134.874},
        "decode-tok-s": {"value": 19.92, "lower_value": 19.09, "upper_value": 20.75},
        "peak-mib": {"value": 641.0, "lower_value": 640.359, "upper_value": 641.641},
    }


BENCHER_SCHEMA = {
    "$schema": "http://json-schema.org/draft-07/schema",
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "additionalProperties": {
            "type": "object",
            "properties": {name: {"type": "number"} for name in ("value", "lower_value", "upper_value")},
            "required": ["value"],
            "additionalProperties": False,
        },
    },
}
"""Bencher's own, stricter: it takes unknown fields and ignores them."""


@pytest.mark.parametrize("name", ALL)
def test_bencher_gets_its_format(name: str) -> None:
    from jsonschema import Draft7Validator

    document = json.loads(render_bencher(ALL[name]))
    Draft7Validator(BENCHER_SCHEMA).validate(document)
    assert all(len(benchmark) <= 1024 for benchmark in document)
    for measures in document.values():
        assert all(one.get("lower_value", one["value"]) <= one["value"] for one in measures.values())
        assert all(one.get("upper_value", one["value"]) >= one["value"] for one in measures.values())


def test_what_was_not_measured_is_left_out_of_histories() -> None:
    assert json.loads(render_bencher(NOT_MEASURED)) == {}
    assert entries(NOT_MEASURED) == []
    assert len(json.loads(render_bencher(SEVERAL))) == 4


def test_the_summary_is_appended_to_where_the_variable_names_a_file(tmp_path: Path) -> None:
    file = tmp_path / "summary.md"
    environment = {"GITHUB_STEP_SUMMARY": str(file)}
    assert append_step_summary(PASSED, environment)
    assert append_step_summary(SLOWER, environment)
    assert file.read_text() == f"{render_markdown(PASSED)}\n{render_markdown(SLOWER)}"
    assert not append_step_summary(PASSED, {})
    assert not append_step_summary(PASSED, {"GITHUB_STEP_SUMMARY": ""})


def test_the_summary_keeps_within_what_others_left_of_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "summary.md"
    file.write_text("x" * (MOST_BYTES - 5000))
    assert append_step_summary(SEVERAL, {"GITHUB_STEP_SUMMARY": str(file)})
    assert file.stat().st_size <= MOST_BYTES
    file.write_text("x" * MOST_BYTES)
    with pytest.raises(OutputError, match="has no room left"):
        append_step_summary(SEVERAL, {"GITHUB_STEP_SUMMARY": str(file)})


def test_a_summary_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"Cannot append to the step's summary .*GITHUB_STEP_SUMMARY"):
        append_step_summary(PASSED, {"GITHUB_STEP_SUMMARY": str(tmp_path / "missing" / "summary.md")})
