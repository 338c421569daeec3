"""Where files lie, and which ids may name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvray.errors import InvalidValueError
from kvray.store.paths import ResultsPaths, check_id


def test_every_path_lies_where_the_design_says() -> None:
    paths = ResultsPaths(Path("out"), "r-1")
    assert [
        path.as_posix()
        for path in (
            paths.trial_file("t-1"),
            paths.runs_file("t-1"),
            paths.manifest,
            paths.best_plan,
            paths.optimized_config,
            paths.report_markdown,
            paths.report_html,
            paths.sweep_log,
        )
    ] == [
        "out/trials/run_id=r-1/t-1.parquet",
        "out/runs/run_id=r-1/t-1.parquet",
        "out/sweeps/r-1.json",
        "out/reports/r-1/best_plan.json",
        "out/reports/r-1/optimized_config.py",
        "out/reports/r-1/report.md",
        "out/reports/r-1/report.html",
        "out/reports/r-1/sweep.log",
    ]


@pytest.mark.parametrize("value", ["20260101-120000-abcd", "a", "A.b_c-9", "0x", "9" * 79 + "a"])
def test_ids_of_letters_digits_and_some_signs_are_taken(value: str) -> None:
    assert check_id(value) == value


@pytest.mark.parametrize(
    "value", ["", ".", "..", ".hidden", "-x", "a/b", "a\\b", "a b", "a\n", "é", "a" * 81, "20260101", "part-0"]
)
def test_ids_that_cannot_name_a_file_or_would_read_as_numbers_are_refused(value: str) -> None:
    with pytest.raises(InvalidValueError, match="Invalid run id"):
        ResultsPaths(Path("out"), value)
    with pytest.raises(InvalidValueError, match="Invalid trial id"):
        ResultsPaths(Path("out"), "r-1").trial_file(value)
