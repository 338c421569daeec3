"""A whole sweep with candidates of tensor parallelism on a CPU: records, ranking, report, and code that runs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kvray.plan.plan import load_plan_file
from kvray.store.parquet import ResultsStore

ALONE, SPREAD = "dynamic/sdpa/float32", "dynamic/sdpa/float32+tp=2"


@pytest.mark.slow  # test_transformers_ranks.py and faults/test_ranks.py show the same part by part
def test_a_sweep_measures_a_model_alone_and_over_two_processes(
    kvray: Callable[..., subprocess.CompletedProcess[str]], tiny_model: str, tmp_path: Path
) -> None:
    narrow = ("--cache", "dynamic", "--attention", "sdpa", "--dtype", "float32", "--parallelism", "single,tp=2,tp=4")
    workload = ("--context", "48", "--output-len", "4", "--repeats", "1", "--confirm", "1", "--search", "grid")
    done = kvray("tune", tiny_model, "--device", "cpu", "--output", tmp_path / "out", "--json", *narrow, *workload)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    results = list(ResultsStore(str(tmp_path / "out")).read(told["run_id"]))
    records = {one.record.candidate.label: one.record for one in reversed(results)}  # the first of each
    assert records["dynamic/sdpa/float32+tp=4"].message == (
        "2 heads of keys and values cannot be divided among 4 GPUs (several-gpus)"
    )
    alone, spread = records[ALONE], records[SPREAD]
    assert (alone.status, spread.status) == ("ok", "ok"), spread.message
    assert (spread.parallelism, spread.settings) == (2, (("split", "tp"),))
    assert spread.sample_tokens == alone.sample_tokens
    assert spread.kl_mean == pytest.approx(0.0, abs=1e-4)
    assert (spread.peak_mib or 0) > 1.5 * (alone.peak_mib or 0), "two processes, each with the libraries"
    plan = load_plan_file(told["files"]["plan"])
    report = (tmp_path / "out" / "reports" / told["run_id"] / "report.md").read_text()
    assert {ALONE, SPREAD} <= {word.strip("`") for word in report.replace("|", " ").split()}
    assert plan.code_check is not None
    assert "the same tokens" in plan.code_check.text
