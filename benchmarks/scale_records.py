"""`kvray rank` over a million runs, beside a scan of the same files by DuckDB."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from output import Figure

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DType
from kvray.record import Role, Run, TrialRecord, TrialStatus
from kvray.store.encoding import few_rows, many_rows
from kvray.store.manifest import SweepManifest
from kvray.store.memory import reading_once
from kvray.store.merging import MERGED_AT
from kvray.store.parquet import ResultsStore
from kvray.store.schema import METADATA, RUN_KEY, schema_of, to_table
from kvray.workload import create_custom_profile

RUN_ID = "scale-20260101"
NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
RUNS_PER_TRIAL = 100
WRITERS = 2
PROFILE = create_custom_profile(
    "scale",
    context_lengths=(512, 1024, 2048, 4096),
    output_lengths=(17, 33),
    repeats=12,
    weight_ttft=0.4,
    weight_throughput=0.4,
    weight_memory=0.2,
)
RUNS = [(cell.context_tokens, 16, 0, 0) for cell in PROFILE.cells(1, rung=0)] + [
    (cell.context_tokens, cell.output_tokens, min(repeat, 1) + 1, repeat)
    for repeat in range(12)
    for cell in PROFILE.cells(1, rung=2)
]
"""Context tokens, output tokens, rung and repeat of each run of a trial."""
KINDS = [
    (cache, attention, dtype)
    for cache in (CacheStrategy.DYNAMIC, CacheStrategy.STATIC)
    for attention in (AttentionBackend.SDPA, AttentionBackend.EAGER)
    for dtype in (DType.FLOAT32, DType.BFLOAT16)
]
RUN_ALONE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
"""
"""Starts a command from a small process: what a large one holds counts as its child's, too."""
SCAN = """
with calm as (
  select * from read_parquet('{runs}', hive_partitioning = false) where rung in (1, 2) and not disturbed),
cells as (
  select trial_id, context_tokens, output_tokens, batch_size, median(ttft_ms) ttft_ms,
         median(decode_tok_s) decode_tok_s, median(peak_mib) peak_mib
  from calm group by all),
gaps as (
  select trial_id, context_tokens, output_tokens, batch_size, quantile_cont(gap, [0.5, 0.95, 0.99]) itl_ms
  from (select trial_id, context_tokens, output_tokens, batch_size, unnest(itl_ms) gap from calm) group by all),
trials as (
  select trial_id, candidate_id, role, status, kl_mean, cold_s, started_at
  from read_parquet('{trials}', hive_partitioning = false) where status = 'ok')
select candidate_id, exp(avg(ln(ttft_ms))), exp(avg(ln(decode_tok_s))), exp(avg(ln(peak_mib))),
       exp(avg(ln(itl_ms[1]))), exp(avg(ln(itl_ms[2]))), exp(avg(ln(itl_ms[3])))
from trials join cells using (trial_id) join gaps using (trial_id, context_tokens, output_tokens, batch_size)
group by candidate_id
"""
"""The figures of `kvray rank`, without scores, gains, intervals and confidence."""


def measure_rank(quick: bool) -> dict[str, Figure]:
    """The part `rank`: one file a trial, as an older kvray left them; merged every 256 trials, as a sweep leaves them
    that runs or was killed; and one file a table, as one leaves them that has ended."""
    trials, size = (500, "50k") if quick else (10_000, "1m")  # runs in all, which every key names
    with tempfile.TemporaryDirectory(prefix="kvray-scale-") as folder:
        begun = time.monotonic()
        _write_sweep(Path(folder), trials, merged_at=1)
        figures: dict[str, Figure] = {"rank_data_s": round(time.monotonic() - begun, 1)}
        figures |= _timed(Path(folder), size)
    with tempfile.TemporaryDirectory(prefix="kvray-scale-") as folder:
        _write_sweep(Path(folder), trials, merged_at=MERGED_AT)
        figures |= _timed(Path(folder), f"{size}_running")
        begun = time.monotonic()
        ResultsStore(folder).compact(RUN_ID)
        figures[f"compact_{size}_s"] = round(time.monotonic() - begun, 2)
        figures |= _timed(Path(folder), f"{size}_compacted")
    return {**figures, "rank_trials": trials, "rank_runs": trials * len(RUNS)}


def _timed(folder: Path, name: str) -> dict[str, Figure]:
    rank_s, rank_cpu_s, mib = _rank(folder)  # first, so that DuckDB's scan is the one that finds the files in memory
    duckdb_s, duckdb_cpu_s = _scan(folder)
    read_s, read_cpu_s = _read(folder)
    return {
        f"rank_{name}_s": round(rank_s, 2),
        f"rank_{name}_cpu_s": round(rank_cpu_s, 2),
        f"rank_{name}_mib": round(mib, 1),
        f"duckdb_{name}_s": round(duckdb_s, 2),
        f"duckdb_{name}_cpu_s": round(duckdb_cpu_s, 2),
        f"rank_over_duckdb_{name}": round(rank_s / duckdb_s, 2),
        f"read_{name}_s": round(read_s, 2),
        f"read_{name}_cpu_s": round(read_cpu_s, 2),
        f"read_over_duckdb_{name}": round(read_s / duckdb_s, 2),
    }


def _rank(folder: Path) -> tuple[float, float, float]:
    """Seconds and CPU seconds of the whole command, and its most memory in MiB."""
    begun = time.monotonic()
    command = [sys.executable, "-c", RUN_ALONE, sys.executable, "-m", "kvray", "rank", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    cpu_s, kib = map(float, done.stdout.split())
    return time.monotonic() - begun, cpu_s, kib / 1024


def _read(folder: Path) -> tuple[float, float]:
    """Seconds and CPU seconds in which kvray itself comes to what the scan computes: all records as objects, and the
    medians and percentiles of every cell."""
    begun, begun_cpu = time.monotonic(), time.process_time()
    with reading_once():
        ResultsStore(folder).read(RUN_ID)
    return time.monotonic() - begun, time.process_time() - begun_cpu


def _scan(folder: Path) -> tuple[float, float]:
    """Seconds and CPU seconds."""
    begun, begun_cpu = time.monotonic(), time.process_time()
    with duckdb.connect() as connection:
        paths = {table: f"{folder}/{table}/*/*.parquet" for table in ("runs", "trials")}
        connection.sql(SCAN.format(**paths)).to_arrow_table()
    return time.monotonic() - begun, time.process_time() - begun_cpu


def _write_sweep(folder: Path, trials: int, *, merged_at: int) -> None:
    store = ResultsStore(folder)
    store.write_manifest(
        SweepManifest(
            kvray_version="0.1.0",
            run_id=RUN_ID,
            created_at=NOON,
            model_id="made up",
            model_revision="1",
            architecture="made up",
            engine="transformers",
            device="cpu",
            device_name="a CPU",
            profile=PROFILE,
            baseline_id=_candidate(0).candidate_id,
            memory_note="made up",
        )
    )
    paths = store.paths(RUN_ID)
    for place in (paths.trials, paths.runs):
        place.mkdir(parents=True)
    with ProcessPoolExecutor(WRITERS, mp_context=get_context("spawn")) as writers:
        files = range(-(-trials // merged_at))
        list(writers.map(_write_file, repeat(folder), files, repeat(merged_at), repeat(trials), chunksize=16))


def _write_file(folder: Path, number: int, merged_at: int, trials: int) -> None:
    """One file of each table, without the waits for the disk of `ResultsStore`."""
    paths, generator = ResultsStore(folder).paths(RUN_ID), np.random.default_rng(number)
    runs, records = [], []
    for trial in range(number * merged_at, min(trials, (number + 1) * merged_at)):
        candidate = _candidate(trial)
        trial_id = f"{trial:05d}-{candidate.candidate_id}"
        runs.append(_runs(candidate, trial_id, trial, generator))
        records.append(_record(candidate, trial_id, trial))
    name, encoded = (f"{trial_id}.parquet", few_rows) if merged_at == 1 else (f"part-{number + 1}.parquet", many_rows)
    (paths.runs / name).write_bytes(encoded(pa.concat_tables(runs)))
    (paths.trials / name).write_bytes(encoded(to_table(records, TrialRecord, run_id=RUN_ID)))


def _candidate(number: int) -> Candidate:
    cache, attention, dtype = KINDS[number % len(KINDS)]
    chunk = number if number >= len(KINDS) else None
    return Candidate(engine="transformers", cache=cache, attention=attention, dtype=dtype, prefill_chunk=chunk)


def _record(candidate: Candidate, trial_id: str, number: int) -> TrialRecord:
    return TrialRecord.of(
        candidate,
        run_id=RUN_ID,
        trial_id=trial_id,
        role=Role.SEARCH if number else Role.BASELINE,
        model_id="made up",
        profile=PROFILE.name,
        status=TrialStatus.OK,
        rung=2,
        wall_s=1.0,
        started_at=NOON + dt.timedelta(seconds=number),
        ended_at=NOON + dt.timedelta(seconds=number + 1),
        ttft_ms=150.0,
        decode_tok_s=40.0,
        peak_mib=500.0 + number % 50,
        load_s=0.5,
        warmup_s=0.2,
        cold_s=0.6,
        kl_mean=0.001,
        kl_decode=0.001,
        cache_class="DynamicCache",
        kernel_prefill="flash",
        kernel_decode="flash",
        device_name="a CPU",
        kvray_version="0.1.0",
    )


def _runs(candidate: Candidate, trial_id: str, number: int, generator: np.random.Generator) -> pa.Table:
    count, schema = len(RUNS), schema_of(Run)
    context, output, rung, repeat = (np.array(column) for column in zip(*RUNS, strict=True))
    slower = 1 + 0.5 * (number * 7919 % 1000) / 1000
    tok_s = 40 / slower * np.exp(generator.normal(0, 0.02, count))
    gaps = np.repeat(1000 / tok_s, output - 1) * np.exp(generator.normal(0, 0.05, (output - 1).sum()))
    offsets = pa.array(np.concatenate([[0], np.cumsum(output - 1)]), pa.int32())
    columns = {
        "run_id": pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), [RUN_ID]),
        "trial_id": pa.array([trial_id] * count),
        "candidate_id": pa.array([candidate.candidate_id] * count),
        "context_tokens": pa.array(context),
        "output_tokens": pa.array(output),
        "batch_size": pa.array([1] * count),
        "rung": pa.array(rung),
        "repeat": pa.array(repeat),
        "ttft_ms": pa.array(context * 0.1 * slower * np.exp(generator.normal(0, 0.02, count))),
        "itl_ms": pa.ListArray.from_arrays(offsets, pa.array(gaps)).cast(schema.field("itl_ms").type),
        "decode_tok_s": pa.array(tok_s),
        "peak_mib": pa.array([500.0 + number % 50] * count),
        "disturbed": pa.array([False] * count),
        "started_at": pa.array([NOON] * count, schema.field("started_at").type),
    }
    arrays = [columns.get(field.name, pa.nulls(count, field.type)) for field in schema]
    return pa.table(arrays, schema=schema.with_metadata({**METADATA, RUN_KEY: RUN_ID.encode()}))
