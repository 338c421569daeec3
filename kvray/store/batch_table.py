"""`BatchRow` and the table of the file `batch.parquet`: what a batch came to, for programs. It is derived from the
records, written anew as each sweep of the batch ends, and read back by nothing here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from kvray.store.batch_manifest import BatchStatus
from kvray.store.schema import BOOL, CATEGORY, FLOAT, INT, METADATA, TEXT, encode


@dataclass(frozen=True, kw_only=True)
class BatchRow:
    """One sweep of a batch. Figures are the winner's, as in the sweep's own `ranking.parquet`; null where nothing is
    ranked, and as long as the sweep is not measured to its end.

    Attributes:
        batch_id: id of the batch.
        run_id: id of the sweep: `kvray rank RESULTS --run ID` shows it.
        model_id: the model, as it was given.
        profile: name of the workload.
        status: how far it is: `ok`, `no winner`, `failed`, `error`, `measuring`, `interrupted` or
            `waiting`.
        reason: why it has no winner, or what is best so far where it is not measured to its end.
        device_name: device that was measured.
        winner_id: candidate id of the recommended configuration.
        winner: that configuration in short.
        is_baseline: whether it is what the user has today.
        ttft_speedup: times as fast to the first token as the baseline.
        ttft_speedup_low, ttft_speedup_high: 95 % interval of `ttft_speedup`.
        decode_speedup: times as many tokens per second.
        decode_speedup_low, decode_speedup_high: 95 % interval of `decode_speedup`.
        peak_ratio: peak memory over the baseline's.
        ttft_ms: from submitted prompt to first token on the host.
        decode_tok_s: tokens per second of all sequences together, the first token left out.
        peak_mib: peak memory.
        confidence: share of resamplings of the measurements in which the winner is the best.
        is_disturbed: whether so many of its runs were disturbed that its figures are not to be trusted.
        trials: trials that were launched, confirming ones included.
        seconds: seconds that these trials took together.
    """

    batch_id: str
    run_id: str
    model_id: str
    profile: str
    status: BatchStatus
    reason: str | None = None
    device_name: str | None = None
    winner_id: str | None = None
    winner: str | None = None
    is_baseline: bool | None = None
    ttft_speedup: float | None = None
    ttft_speedup_low: float | None = None
    ttft_speedup_high: float | None = None
    decode_speedup: float | None = None
    decode_speedup_low: float | None = None
    decode_speedup_high: float | None = None
    peak_ratio: float | None = None
    ttft_ms: float | None = None
    decode_tok_s: float | None = None
    peak_mib: float | None = None
    confidence: float | None = None
    is_disturbed: bool | None = None
    trials: int = 0
    seconds: float = 0.0


_KINDS = {
    **dict.fromkeys(("run_id", "status"), CATEGORY),
    **dict.fromkeys(("batch_id", "model_id", "profile", "reason", "device_name", "winner_id", "winner"), TEXT),
    **dict.fromkeys(("is_baseline", "is_disturbed"), BOOL),
    "trials": INT,
}
BATCH_SCHEMA = pa.schema(
    [(spec.name, _KINDS.get(spec.name, FLOAT)) for spec in dataclasses.fields(BatchRow)], metadata=METADATA
)


def batch_table(rows: Sequence[BatchRow]) -> pa.Table:
    """The table of `rows`, in order."""
    plain = [encode(row) for row in rows]
    columns = {
        name: pa.array([row[name] for row in plain], BATCH_SCHEMA.field(name).type) for name in BATCH_SCHEMA.names
    }
    return pa.table(columns, schema=BATCH_SCHEMA)
