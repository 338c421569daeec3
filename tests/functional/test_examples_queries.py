"""Each query example, run as a user would run it, over a results folder of two runs."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DType
from kvray.record import Phase, Role, Run, TrialRecord, TrialResult, TrialStatus
from kvray.store.parquet import ResultsStore

EXAMPLES = Path(__file__).parents[2] / "examples"
NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """An older, compacted run in float32 and a newer one in bfloat16, whose eager trial ran out of memory."""
    store = ResultsStore(tmp_path)
    for number, cache in enumerate((CacheStrategy.DYNAMIC, CacheStrategy.STATIC)):
        store.append(measured("old-run", f"o-{number}", cache, DType.FLOAT32, minute=number))
    store.compact("old-run")
    for number, cache in enumerate((CacheStrategy.DYNAMIC, CacheStrategy.STATIC)):
        store.append(measured("new-run", f"n-{number}", cache, DType.BFLOAT16, minute=60 + number))
    failed = record_of("new-run", "n-8", CacheStrategy.DYNAMIC, DType.BFLOAT16, status=TrialStatus.OOM, minute=70)
    store.append(TrialResult(record=failed.with_(phase=Phase.LOAD, message="no memory left", wall_s=3.0)))
    rejected = record_of("new-run", "n-9", CacheStrategy.STATIC, DType.FLOAT16, status=TrialStatus.REJECTED)
    store.append_many([rejected.with_(message="slow on a CPU")])
    return tmp_path


def record_of(
    run_id: str, trial_id: str, cache: CacheStrategy, dtype: DType, *, minute: int | None = None, **values: Any
) -> TrialRecord:
    return TrialRecord.of(
        Candidate(engine="fake", cache=cache, attention=AttentionBackend.SDPA, dtype=dtype),
        run_id=run_id,
        trial_id=trial_id,
        role=Role.SEARCH,
        model_id="org/model",
        profile="ci-micro",
        started_at=None if minute is None else NOON + dt.timedelta(minutes=minute),
        **values,
    )


def measured(run_id: str, trial_id: str, cache: CacheStrategy, dtype: DType, *, minute: int) -> TrialResult:
    """Throughput rises with the minute; two undisturbed runs with gaps of 10 and 30 ms, and a disturbed one."""
    record = record_of(
        run_id,
        trial_id,
        cache,
        dtype,
        minute=minute,
        status=TrialStatus.OK,
        wall_s=10.0,
        ttft_ms=101.5,
        decode_tok_s=50.0 + minute,
        peak_mib=900.0,
    )
    runs = tuple(
        Run(
            run_id=run_id,
            trial_id=trial_id,
            candidate_id=record.candidate_id,
            context_tokens=512,
            output_tokens=3,
            batch_size=1,
            rung=2,
            repeat=repeat,
            ttft_ms=101.5,
            itl_ms=(10.0, 30.0) if repeat < 2 else (9000.0, 9000.0),
            decode_tok_s=50.0,
            disturbed=repeat == 2,
            started_at=NOON + dt.timedelta(minutes=minute, seconds=repeat),
        )
        for repeat in range(3)
    )
    return TrialResult(record=record, runs=runs)


def output_of(example: str, results: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / example), str(results)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def rows_with(lines: list[str], *words: str) -> list[list[str]]:
    """The cells of the lines that hold all of `words`, without the frames that tables are drawn with."""
    rows = [line.replace("│", " ").replace("┆", " ").split() for line in lines]
    return [row for row in rows if all(word in row for word in words)]


def test_duckdb_ranks_the_newest_run_with_the_tail_latency_of_undisturbed_runs(results: Path) -> None:
    lines = output_of("query_duckdb.py", results)
    assert rows_with(lines, "search") == [
        ["search", "static", "sdpa", "bfloat16", "101.5", "111.0", "900.0", "30.0"],
        ["search", "dynamic", "sdpa", "bfloat16", "101.5", "110.0", "900.0", "30.0"],
    ]


def test_polars_shows_latency_per_candidate_and_context_of_the_newest_run(results: Path) -> None:
    lines = output_of("query_polars.py", results)
    assert sorted(rows_with(lines, "512")) == [
        ["dynamic/sdpa/bfloat16", "512", "1", "2", "101.5", "20.0", "30.0"],
        ["static/sdpa/bfloat16", "512", "1", "2", "101.5", "20.0", "30.0"],
    ]


def test_pandas_counts_how_trials_ended_and_says_why(results: Path) -> None:
    lines = output_of("query_pandas.py", results)
    assert "Run new-run" in lines
    assert ["ok", "2", "20.0"] in rows_with(lines, "ok")
    assert ["oom", "load", "dynamic", "sdpa", "bfloat16", "no", "memory", "left"] in rows_with(lines, "oom")
    (rejected,) = rows_with(lines, "rejected", "float16")
    assert rejected[-4:] == ["slow", "on", "a", "CPU"]
