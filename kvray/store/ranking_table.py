"""`RankingRow` and the table of the file `ranking.parquet`: what a sweep decided, for programs. It is derived from the
records, written anew with the reports, and read back by nothing here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from kvray.candidate import AttentionBackend, CacheStrategy, CompileMode, DType, ParamValue
from kvray.record import TrialStatus
from kvray.store.schema import BOOL, CANDIDATE_COLUMNS, CATEGORY, FLOAT, INT, METADATA, TEXT, encode


@dataclass(frozen=True, kw_only=True)
class RankingRow:
    """One candidate of a sweep, by all of its trials that can be compared.

    Figures are those of the full-length cells, each by the median of its undisturbed runs over all processes, then the
    geometric mean over the cells. They are null where a candidate did not measure every cell, so that no row compares
    other cells than the rest. Ratios are against the baseline's.

    Attributes:
        run_id: id of the sweep. Ids of kvray's own making sort by time.
        model_id: the model, as it was given.
        profile: name of the workload; `…, changed` where it was measured with other lengths or batch sizes.
        device_name: device that was measured.
        rank: 1 is the recommended candidate; null for one that is listed and not ranked.
        is_baseline: whether it is what the user has today, which ratios are against.
        is_tied: whether it cannot be told apart from the recommended one; true of that one, too, where it has ties.
        candidate_id: hash over every field of the configuration: the same in all sweeps.
        label: the configuration in short.
        engine: inference engine.
        cache: cache strategy.
        cache_params: settings of the cache strategy (JSON).
        attention: attention implementation.
        hub_kernel: name of the kernel where `attention` is `hub_kernel`.
        dtype: floating-point type of the weights.
        compile: mode of torch.compile.
        batch_size: sequences generated together.
        parallelism: GPUs that one copy of the model is spread over.
        prefill_chunk: prompt tokens that are worked on at once; null: all.
        weights_limit_mib: device memory that the weights may take; null: no limit.
        settings: values of the engine's own axes that are set (JSON).
        status: how its search trial ended (of several, the one that came furthest).
        reason: why it is not ranked; null where it is.
        limits_missed: names of the limits that it does not keep.
        score: weighted geometric mean; 100 would be the best of every metric at once. Null where it is not ranked.
        ttft_ms: from submitted prompt to first token on the host.
        itl_p50_ms, itl_p95_ms, itl_p99_ms: percentiles of the gaps between tokens.
        decode_tok_s: tokens per second of all sequences together, the first token left out.
        peak_mib: peak memory.
        energy_j_per_tok: energy per generated token, the prefill included.
        ttft_speedup: times as fast to the first token: 2 is half the baseline's time, 0.5 twice its time. From
            confirming rounds alone, where there are `pairs`.
        ttft_speedup_low, ttft_speedup_high: 95 % interval of `ttft_speedup`.
        decode_speedup: times as many tokens per second, from the same processes.
        decode_speedup_low, decode_speedup_high: 95 % interval of `decode_speedup`.
        peak_ratio: peak memory over the baseline's: 0.5 is half of it.
        pairs: confirming rounds in which both ran, one after the other on the same device. Without any, ratios
            rest on all processes.
        break_even_tokens: generated tokens that make up for a longer load and warm-up; null where they never do.
        on_pareto_front: whether no ranked candidate is at least as good in first token, throughput and memory and
            better in one. Null where it is not ranked.
        confidence: share of resamplings of the measurements in which the recommended candidate is the best; null for
            all others, and where too many runs were disturbed to tell.
        kl_mean: loss of quality: mean Kullback-Leibler divergence from the reference, nats per token.
        kl_upper: upper bound of `kl_mean`, which is a lower bound then; null where that is exact.
        top1_agreement: share of tokens at which both hold the same one for the most probable.
        processes: fresh processes that measured every cell.
        runs: timed runs that the figures rest on.
        fingerprint: that of the trials behind these figures.
        hardware: digest of the node that measured them. A sweep on unlike nodes of a cluster has a ranking for each, so
            there `rank` counts within one value of this column. Null where one machine measured.
    """

    run_id: str
    model_id: str
    profile: str
    device_name: str
    rank: int | None
    is_baseline: bool
    is_tied: bool
    candidate_id: str
    label: str
    engine: str
    cache: CacheStrategy
    cache_params: tuple[tuple[str, ParamValue], ...]
    attention: AttentionBackend
    hub_kernel: str | None
    dtype: DType
    compile: CompileMode
    batch_size: int
    parallelism: int
    prefill_chunk: int | None
    weights_limit_mib: int | None
    settings: tuple[tuple[str, ParamValue], ...]
    status: TrialStatus
    reason: str | None
    limits_missed: tuple[str, ...]
    score: float | None
    ttft_ms: float | None
    itl_p50_ms: float | None
    itl_p95_ms: float | None
    itl_p99_ms: float | None
    decode_tok_s: float | None
    peak_mib: float | None
    energy_j_per_tok: float | None
    ttft_speedup: float | None
    ttft_speedup_low: float | None
    ttft_speedup_high: float | None
    decode_speedup: float | None
    decode_speedup_low: float | None
    decode_speedup_high: float | None
    peak_ratio: float | None
    pairs: int
    break_even_tokens: float | None
    on_pareto_front: bool | None
    confidence: float | None
    kl_mean: float | None
    kl_upper: float | None
    top1_agreement: float | None
    processes: int
    runs: int
    fingerprint: str | None = None
    hardware: str | None = None


RANKING_SCHEMA = pa.schema(
    [
        ("run_id", CATEGORY),
        ("model_id", TEXT),
        ("profile", TEXT),
        ("device_name", TEXT),
        ("rank", INT),
        ("is_baseline", BOOL),
        ("is_tied", BOOL),
        ("candidate_id", TEXT),
        ("label", TEXT),
        ("engine", TEXT),
        *CANDIDATE_COLUMNS,
        ("status", CATEGORY),
        ("reason", TEXT),
        ("limits_missed", pa.list_(pa.field("element", TEXT))),
        ("score", FLOAT),
        ("ttft_ms", FLOAT),
        ("itl_p50_ms", FLOAT),
        ("itl_p95_ms", FLOAT),
        ("itl_p99_ms", FLOAT),
        ("decode_tok_s", FLOAT),
        ("peak_mib", FLOAT),
        ("energy_j_per_tok", FLOAT),
        ("ttft_speedup", FLOAT),
        ("ttft_speedup_low", FLOAT),
        ("ttft_speedup_high", FLOAT),
        ("decode_speedup", FLOAT),
        ("decode_speedup_low", FLOAT),
        ("decode_speedup_high", FLOAT),
        ("peak_ratio", FLOAT),
        ("pairs", INT),
        ("break_even_tokens", FLOAT),
        ("on_pareto_front", BOOL),
        ("confidence", FLOAT),
        ("kl_mean", FLOAT),
        ("kl_upper", FLOAT),
        ("top1_agreement", FLOAT),
        ("processes", INT),
        ("runs", INT),
        ("fingerprint", TEXT),
        ("hardware", TEXT),
    ],
    metadata=METADATA,
)


def ranking_table(rows: Sequence[RankingRow]) -> pa.Table:
    """The table of `rows`, in order."""
    plain = [encode(row) for row in rows]
    names = [field.name for field in dataclasses.fields(RankingRow)]
    columns = {name: pa.array([row[name] for row in plain], RANKING_SCHEMA.field(name).type) for name in names}
    return pa.table(columns).select(RANKING_SCHEMA.names).replace_schema_metadata(METADATA)
