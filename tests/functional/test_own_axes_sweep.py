"""An engine's own axes from the command line to the plan, and back from the results folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from kvray_logger import logger_as_before
from own_ray import own_ray

from kvray.cli.app import run
from kvray.plan.plan import load_plan_file
from kvray.store.parquet import ResultsStore

SPACE = ("--cache", "static", "--attention", "sdpa", "--dtype", "float32", "--set", "fused=true,false")
TILES = {"static/sdpa/float32" + fused + tile for fused in ("+fused:true", "") for tile in ("+tile:16", "+tile:64")}


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    with logger_as_before():
        yield


@pytest.fixture(autouse=True)
def one_ray() -> Iterator[None]:
    """Not one for each of the two sweeps."""
    with own_ray():
        yield


@pytest.mark.slow
def test_a_sweep_over_own_axes_goes_through_records_ranking_plan_and_report_and_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # a narrower table breaks long labels where its figures are long, too
    folder = tmp_path / "results"

    def kvray(*arguments: object) -> str:
        capsys.readouterr()
        assert run([str(one) for one in arguments], verbose=True) == 0
        return capsys.readouterr().out

    def tune(*arguments: object) -> dict[str, Any]:
        fixed = ("fake:ok", "--engine", "fake", "--device", "cpu", "--output", folder, "--json", "--search", "grid")
        workload = ("--context", 200, "--output-len", 4, "--repeats", 1, "--confirm", 0)
        printed: dict[str, Any] = json.loads(kvray("tune", *fixed, *workload, *SPACE, *arguments))
        return printed

    first = tune("--set", "tile=16,64")
    run_id, store = first["run_id"], ResultsStore(folder)
    measured = {one.record.candidate.label: one.record for one in store.read(run_id)}
    assert set(measured) == {"dynamic/sdpa/float32", *TILES}
    record = measured["static/sdpa/float32+fused:true+tile:64"]
    assert (record.settings, record.status) == ((("fused", True), ("tile", 64)), "ok")

    plan = load_plan_file(first["files"]["plan"])
    assert plan.winner.candidate == measured[first["winner"]["label"]].candidate
    assert first["winner"]["label"] in Path(first["files"]["snippet"]).read_text()
    assert first["winner"]["label"] in (folder / "reports" / run_id / "report.md").read_text()
    asked = f"SELECT label, settings->>'tile', settings->>'fused' FROM '{folder}/reports/{run_id}/ranking.parquet'"
    assert ("static/sdpa/float32+fused:true+tile:16", "16", "true") in duckdb.sql(asked).fetchall()
    assert "static/sdpa/float32+fused:true+tile:64" in kvray("rank", folder)

    again = tune("--set", "tile=16,64,256", "--resume", run_id)
    assert again["run_id"] == run_id
    records = [one.record for one in store.read(run_id)]
    assert {one.candidate.label for one in records} - set(measured) == {
        "static/sdpa/float32+fused:true+tile:204",
        "static/sdpa/float32+tile:204",
    }, "as long as the cell"
    assert {one.trial_id for one in measured.values()} <= {one.trial_id for one in records}
    assert len(records) == 7, "nothing is measured twice"
