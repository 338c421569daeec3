"""The rows of a batch's overview, made from the records of its sweeps."""

from __future__ import annotations

from typing import Any

from kvray.errors import ResultsError
from kvray.report.disturbances import disturbances
from kvray.report.ranking_file import ranking_file_rows
from kvray.store.batch_manifest import BatchStatus, BatchSweep
from kvray.store.batch_table import BatchRow
from kvray.store.parquet import ResultsStore
from kvray.store.ranking_table import RankingRow
from kvray.tuning.result import TuneResult, read_result

_OF_THE_WINNER = (
    *("is_baseline", "ttft_speedup", "ttft_speedup_low", "ttft_speedup_high", "decode_speedup", "decode_speedup_low"),
    *("decode_speedup_high", "peak_ratio", "ttft_ms", "decode_tok_s", "peak_mib", "confidence"),
)


def batch_row(store: ResultsStore, batch_id: str, sweep: BatchSweep) -> BatchRow:
    """The row of `sweep` as it stands."""
    row: dict[str, Any] = {
        "batch_id": batch_id,
        "run_id": sweep.run_id,
        "model_id": sweep.shown_model,
        "profile": sweep.profile.name,
        "status": sweep.status,
        "reason": sweep.reason,
    }
    if sweep.status in (BatchStatus.FAILED, BatchStatus.ERROR):
        return BatchRow(**row)
    try:
        if sweep.status is BatchStatus.WAITING and not store.has_manifest(sweep.run_id):
            return BatchRow(**row)
        result = read_result(store, sweep.run_id)
        return BatchRow(**row | result_columns(result, is_measured=sweep.status.is_measured, reason=sweep.reason))
    except ResultsError:
        return BatchRow(**row)


def result_columns(result: TuneResult, *, is_measured: bool, reason: str | None = None) -> dict[str, Any]:
    """What a row has of the sweep's records. The best of a sweep that has not ended is no winner yet: it is told with
    the `reason` why not."""
    if not is_measured:
        best = [f"best so far: {one.label}" for one in _ranked_first(result)]
        return _counted(result) | {"reason": "; ".join(filter(None, (reason, *best))) or None}
    found = _counted(result) | {"is_disturbed": disturbances(result.results).decides}
    for one in _ranked_first(result):
        found |= {"winner_id": one.candidate_id, "winner": one.label}
        found |= {name: getattr(one, name) for name in _OF_THE_WINNER}
    return found


def _counted(result: TuneResult) -> dict[str, Any]:
    launched = [one.record for one in result.results if one.record.status.was_launched]
    return {
        "device_name": result.device_name,
        "trials": len(launched),
        "seconds": sum(record.wall_s or 0.0 for record in launched),
    }


def _ranked_first(result: TuneResult) -> list[RankingRow]:
    """The best candidate, if there is one."""
    rows = ranking_file_rows(result.manifest, result.results, result.analysis)
    return [one for one in rows if one.rank == 1]
