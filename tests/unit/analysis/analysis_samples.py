"""Trials made of numbers, for the tests of `kvray.analysis`."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable, Iterable
from typing import Any

from kvray.analysis.aggregate import Metrics
from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DType
from kvray.record import Role, Run, TrialRecord, TrialResult, TrialStatus
from kvray.workload import Cell, WorkloadProfile

START = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
SMALL = Cell(128, 32, 1)
_numbers = itertools.count()


def make_profile(**changes: Any) -> WorkloadProfile:
    values: dict[str, Any] = {
        "name": "sample",
        "context_lengths": (128, 512),
        "output_lengths": (32,),
        "weight_ttft": 0.4,
        "weight_throughput": 0.4,
        "weight_memory": 0.2,
    }
    return WorkloadProfile(**{**values, **changes})


def make_candidate(name: int = 0, *, batch_size: int = 1) -> Candidate:
    """Candidates of different `name` differ; higher ones have higher labels."""
    return Candidate(
        engine="fake",
        cache=CacheStrategy.DYNAMIC,
        attention=AttentionBackend.SDPA,
        dtype=DType.FLOAT32,
        batch_size=batch_size,
        cache_params=(("window", 100 + name),),
    )


def make_run(
    *,
    cell: Cell = SMALL,
    ttft_ms: float = 100.0,
    decode_tok_s: float = 50.0,
    peak_mib: float | None = 1000.0,
    itl_ms: tuple[float, ...] = (20.0, 20.0, 20.0),
    rung: int = 2,
    repeat: int = 0,
    disturbed: bool = False,
    energy_j: float | None = None,
    trial_id: str = "t",
    candidate_id: str = "c",
) -> Run:
    return Run(
        run_id="r",
        trial_id=trial_id,
        candidate_id=candidate_id,
        context_tokens=cell.context_tokens,
        output_tokens=cell.output_tokens,
        batch_size=cell.batch_size,
        rung=rung,
        repeat=repeat,
        ttft_ms=ttft_ms,
        itl_ms=itl_ms,
        decode_tok_s=decode_tok_s,
        peak_mib=peak_mib,
        energy_j=energy_j,
        disturbed=disturbed,
        started_at=START,
    )


def make_record(
    candidate: Candidate, *, status: TrialStatus = TrialStatus.OK, role: Role = Role.SEARCH, **values: Any
) -> TrialRecord:
    values.setdefault("trial_id", f"t{next(_numbers):05d}")
    return TrialRecord.of(candidate, run_id="r", role=role, model_id="m", profile="sample", status=status, **values)


Factor = Callable[[Cell, int], float]


def make_result(
    candidate: Candidate,
    profile: WorkloadProfile,
    *,
    ttft_ms: float = 100.0,
    decode_tok_s: float = 50.0,
    peak_mib: float | None = 1000.0,
    repeats: int = 3,
    ttft_factor: Factor = lambda cell, repeat: 1.0,
    decode_factor: Factor = lambda cell, repeat: 1.0,
    cells: Iterable[Cell] | None = None,
    status: TrialStatus = TrialStatus.OK,
    **values: Any,
) -> TrialResult:
    """A trial that measured the full-length `cells` (default: all) `repeats` times: once at rung 1, then at rung 2."""
    record = make_record(candidate, status=status, **values)
    measured = profile.cells(candidate.batch_size, rung=2) if cells is None else tuple(cells)
    runs = tuple(
        make_run(
            cell=cell,
            ttft_ms=ttft_ms * ttft_factor(cell, repeat),
            decode_tok_s=decode_tok_s * decode_factor(cell, repeat),
            peak_mib=peak_mib,
            rung=1 if repeat == 0 else 2,
            repeat=max(repeat - 1, 0),
            trial_id=record.trial_id,
            candidate_id=record.candidate_id,
        )
        for cell in measured
        for repeat in range(repeats)
    )
    return TrialResult(record=record, runs=runs)


def make_metrics(ttft_ms: float = 100.0, decode_tok_s: float = 50.0, peak_mib: float | None = 1000.0) -> Metrics:
    return Metrics(
        ttft_ms=ttft_ms,
        itl_p50_ms=20.0,
        itl_p95_ms=20.0,
        itl_p99_ms=20.0,
        decode_tok_s=decode_tok_s,
        peak_mib=peak_mib,
    )
