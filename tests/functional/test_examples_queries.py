"""Each query example, run as a user would run it, and those of the documentation: they must give the right answer.

The newest sweep has a candidate that was stopped at its first rung and looks the fastest there.
"""

from __future__ import annotations

import datetime as dt
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DType
from kvray.record import Phase, Role, Run, TrialRecord, TrialResult, TrialStatus
from kvray.report.ranking_file import ranking_file_rows
from kvray.store.manifest import SweepManifest
from kvray.store.parquet import ResultsStore
from kvray.tuning.result import read_result
from kvray.workload import create_custom_profile

ROOT = Path(__file__).parents[2]
NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
OLD, NEW = "20260101-120000-old1", "20260101-130000-new1"
PROFILE = create_custom_profile(
    "two-prompts",
    context_lengths=(128, 512),
    output_lengths=(3,),
    repeats=2,
    weight_ttft=0.4,
    weight_throughput=0.4,
    weight_memory=0.2,
)
WINNER, BASELINE, STOPPED = "static/sdpa/bfloat16", "dynamic/sdpa/bfloat16", "dynamic/eager/bfloat16"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An older, compacted sweep in float32 and a newer one in bfloat16, which says which candidate is the best."""
    folder = tmp_path_factory.mktemp("results")
    store = ResultsStore(folder)
    for run_id, dtype in ((OLD, DType.FLOAT32), (NEW, DType.BFLOAT16)):
        store.write_manifest(manifest(run_id, dtype))
        for trial_id, cache, ttft_ms in (("t-0", CacheStrategy.DYNAMIC, 100.0), ("t-1", CacheStrategy.STATIC, 50.0)):
            store.append(measured(run_id, trial_id, candidate(cache, dtype), ttft_ms=ttft_ms))
            store.append(measured(run_id, f"confirm-1-{trial_id}", candidate(cache, dtype), ttft_ms=ttft_ms))
    store.compact(OLD)
    store.append(measured(NEW, "t-2", candidate(attention=AttentionBackend.EAGER), ttft_ms=9.0, rung=0))
    failed = record_of(NEW, "t-8", candidate(attention=AttentionBackend.SDPA_MATH), TrialStatus.OOM, started_at=NOON)
    store.append(TrialResult(record=failed.with_(phase=Phase.LOAD, message="no memory left", wall_s=3.0)))
    rejected = record_of(NEW, "t-9", candidate(CacheStrategy.STATIC, DType.FLOAT16), TrialStatus.REJECTED)
    store.append_many([rejected.with_(message="slow on a CPU")])
    for run_id in (OLD, NEW):
        result = read_result(store, run_id)
        store.write_ranking(run_id, ranking_file_rows(result.manifest, result.results, result.analysis))
    return folder


def candidate(
    cache: CacheStrategy = CacheStrategy.DYNAMIC,
    dtype: DType = DType.BFLOAT16,
    attention: AttentionBackend = AttentionBackend.SDPA,
) -> Candidate:
    return Candidate(engine="fake", cache=cache, attention=attention, dtype=dtype)


def manifest(run_id: str, dtype: DType) -> SweepManifest:
    values: dict[str, Any] = {
        "kvray_version": "0.1.0",
        "run_id": run_id,
        "created_at": NOON,
        "model_id": "org/model",
        "model_revision": "1",
        "architecture": "Fake",
        "engine": "fake",
        "device": "cpu",
        "device_name": "a CPU",
        "profile": PROFILE,
        "baseline_id": candidate(dtype=dtype).candidate_id,
        "memory_note": "made up",
    }
    return SweepManifest(**values)


def record_of(run_id: str, trial_id: str, one: Candidate, status: TrialStatus, **values: Any) -> TrialRecord:
    roles = {"confirm": Role.CONFIRM, "t-0": Role.BASELINE}
    return TrialRecord.of(
        one,
        run_id=run_id,
        trial_id=trial_id,
        role=roles.get(trial_id.partition("-1-")[0], Role.SEARCH),
        model_id="org/model",
        profile=PROFILE.name,
        status=status,
        **values,
    )


def measured(run_id: str, trial_id: str, one: Candidate, *, ttft_ms: float, rung: int = 2) -> TrialResult:
    """With two undisturbed runs of each cell, gaps of 10 and 30 ms, and a disturbed one; or stopped at rung 0, where
    the gaps are a tenth."""
    record = record_of(
        run_id,
        trial_id,
        one,
        TrialStatus.OK if rung else TrialStatus.STOPPED,
        started_at=NOON,
        wall_s=10.0,
        rung=rung,
        ttft_ms=ttft_ms,
        decode_tok_s=5000.0 / ttft_ms,
        peak_mib=900.0,
    )
    runs = tuple(
        Run(
            run_id=run_id,
            trial_id=trial_id,
            candidate_id=one.candidate_id,
            context_tokens=context,
            output_tokens=3,
            batch_size=1,
            rung=of_rung,
            repeat=repeat,
            ttft_ms=ttft_ms,
            itl_ms=(9000.0, 9000.0) if repeat == 2 else (10.0, 30.0) if of_rung else (1.0, 3.0),
            decode_tok_s=5000.0 / ttft_ms,
            peak_mib=900.0,
            disturbed=repeat == 2,
            started_at=NOON + dt.timedelta(seconds=repeat),
        )
        for context in PROFILE.context_lengths
        for of_rung, repeat in [(0, 0), (1, 0), (2, 1), (2, 2)]
        if of_rung <= rung
    )
    return TrialResult(record=record, runs=runs)


def output_of(example: str, results: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / example), str(results)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def rows_with(lines: list[str], *words: str) -> list[list[str]]:
    """The cells of the lines that hold all of `words`, without the frames that tables are drawn with."""
    rows = [line.replace("│", " ").replace("┆", " ").split() for line in lines]
    return [row for row in rows if all(word in row for word in words)]


def test_duckdb_ranks_the_newest_sweep_and_gives_no_rank_to_what_was_stopped(results: Path) -> None:
    lines = output_of("query_duckdb.py", results)
    assert rows_with(lines, "900.0") == [
        ["1", WINNER, "ok", "50.0", "100.0", "900.0", "2.0", "30.0"],
        ["2", BASELINE, "ok", "100.0", "50.0", "900.0", "1.0", "30.0"],
    ]
    assert rows_with(lines, STOPPED) == [["NULL", STOPPED, "stopped", *["NULL"] * 5]]
    assert not [line for line in lines if "float32" in line]


def test_polars_shows_latency_per_ranked_candidate_and_prompt_from_comparable_runs(results: Path) -> None:
    lines = output_of("query_polars.py", results)
    assert rows_with(lines, "20.0") == [
        [rank, label, prompt, "3", "4", ttft_ms, "20.0", "30.0"]
        for rank, label, ttft_ms in (("1", WINNER, "50.0"), ("2", BASELINE, "100.0"))
        for prompt in ("128", "512")
    ]
    assert not rows_with(lines, STOPPED)


def test_pandas_shows_the_ranking_how_trials_ended_and_why_there_is_no_rank(results: Path) -> None:
    lines = output_of("query_pandas.py", results)
    assert f"Sweep {NEW}" in lines
    assert rows_with(lines, "900.0") == [
        ["1", WINNER, "50.0", "100.0", "900.0", "2.0", "2.0", "1.0"],
        ["2", BASELINE, "100.0", "50.0", "900.0", "1.0", "1.0", "1.0"],
    ]
    assert ["ok", "4", "40.0"] in rows_with(lines, "ok")
    (oom,) = rows_with(lines, "oom", "dynamic/sdpa_math/bfloat16")
    assert oom[-3:] == ["no", "memory", "left"]
    (rejected,) = rows_with(lines, "rejected", "static/sdpa/float16")
    assert rejected[-4:] == ["slow", "on", "a", "CPU"]
    assert rows_with(lines, "stopped", STOPPED)


@pytest.mark.parametrize("page", ["README.md", "docs/columns.md"])
def test_the_documented_query_puts_the_winner_first(results: Path, page: str) -> None:
    queries = re.findall(r"```sql\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert queries
    for query in queries:
        found = duckdb.sql(query.replace("kvray_results", str(results))).fetchall()
        assert [one[:2] for one in found[:2]] == [(1, WINNER), (2, BASELINE)]
        assert [one[0] for one in found[2:]] == [None] * 3
