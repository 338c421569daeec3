"""Arrow schemas of the `trials` and `runs` tables, and the translation between their rows and the dataclasses.

Columns are the fields of `TrialRecord` and `Run` by name. `run_id` is dictionary-encoded like the enums, because
pandas infers that type for the Hive partition of the same name and refuses a file that says otherwise.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from kvray.candidate import AttentionBackend, CacheStrategy, CompileMode, DType
from kvray.record import Phase, Role, Run, TrialRecord, TrialStatus

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SCHEMA_VERSION = 1
VERSION_KEY = b"kvray_schema_version"
RUN_KEY = b"kvray_run_id"
"""In the files of single trials: one without rows would not tell of which sweep it is."""

T = TypeVar("T", Run, TrialRecord)

_TEXT = pa.string()
_INT = pa.int64()
_FLOAT = pa.float64()
_BOOL = pa.bool_()
_CATEGORY = pa.dictionary(pa.int32(), pa.string())
_INSTANT = pa.timestamp("us", tz="UTC")
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_VERSION_DIGITS = 9
METADATA = {VERSION_KEY: str(SCHEMA_VERSION).encode()}

TRIALS_SCHEMA = pa.schema(
    [
        ("run_id", _CATEGORY),
        ("trial_id", _TEXT),
        ("candidate_id", _TEXT),
        ("role", _CATEGORY),
        ("confirm_round", _INT),
        ("model_id", _TEXT),
        ("engine", _TEXT),
        ("profile", _TEXT),
        ("cache", _CATEGORY),
        ("cache_params", _TEXT),
        ("attention", _CATEGORY),
        ("hub_kernel", _TEXT),
        ("dtype", _CATEGORY),
        ("compile", _CATEGORY),
        ("batch_size", _INT),
        ("parallelism", _INT),
        ("prefill_chunk", _INT),
        ("weights_limit_mib", _INT),
        ("settings", _TEXT),
        ("status", _CATEGORY),
        ("phase", _CATEGORY),
        ("message", _TEXT),
        ("log_tail", _TEXT),
        ("rung", _INT),
        ("wall_s", _FLOAT),
        ("busy_s", _FLOAT),
        ("proof_s", _FLOAT),
        ("started_at", _INSTANT),
        ("ended_at", _INSTANT),
        ("host", _TEXT),
        ("pid", _INT),
        ("ttft_ms", _FLOAT),
        ("itl_p50_ms", _FLOAT),
        ("itl_p95_ms", _FLOAT),
        ("itl_p99_ms", _FLOAT),
        ("decode_tok_s", _FLOAT),
        ("peak_mib", _FLOAT),
        ("reserved_peak_mib", _FLOAT),
        ("device_peak_mib", _FLOAT),
        ("device_peak_gpu_mib", _FLOAT),
        ("kv_cache_mib", _FLOAT),
        ("energy_j_per_tok", _FLOAT),
        ("load_s", _FLOAT),
        ("compile_s", _FLOAT),
        ("first_call_s", _FLOAT),
        ("warmup_s", _FLOAT),
        ("cold_s", _FLOAT),
        ("warmed_up", _BOOL),
        ("kl_mean", _FLOAT),
        ("kl_decode", _FLOAT),
        ("nll_delta", _FLOAT),
        ("nll_delta_se", _FLOAT),
        ("top1_agreement", _FLOAT),
        ("kl_upper", _FLOAT),
        ("kl_decode_upper", _FLOAT),
        ("nll_delta_upper", _FLOAT),
        ("quality_s", _FLOAT),
        ("quality_note", _TEXT),
        ("cache_class", _TEXT),
        ("cache_layers", _TEXT),
        ("kernel_prefill", _TEXT),
        ("kernel_decode", _TEXT),
        ("graph_breaks", _INT),
        ("recompiles", _INT),
        ("compile_cold", pa.bool_()),
        ("kv_dtype", _TEXT),
        ("sample_context_tokens", _INT),
        ("sample_tokens", _TEXT),
        ("processors", _TEXT),
        ("processor_share", _FLOAT),
        ("forecast_ttft_ms", _FLOAT),
        ("forecast_decode_tok_s", _FLOAT),
        ("forecast_peak_mib", _FLOAT),
        ("roofline_share", _FLOAT),
        ("expected_ttft_ms", _FLOAT),
        ("expected_decode_tok_s", _FLOAT),
        ("expected_peak_mib", _FLOAT),
        ("expected_score_low", _FLOAT),
        ("expected_score_high", _FLOAT),
        ("win_chance", _FLOAT),
        ("device_name", _TEXT),
        ("device_uuid", _TEXT),
        ("driver_version", _TEXT),
        ("engine_versions", _TEXT),
        ("torch_version", _TEXT),
        ("transformers_version", _TEXT),
        ("kvray_version", _TEXT),
        ("fingerprint", _TEXT),
        ("hardware", _TEXT),
        ("niceness", _INT),
        ("threads", _INT),
        ("cpus", _INT),
        ("cpu_quota", _FLOAT),
        ("gpu_clock_mhz", _FLOAT),
        ("gpu_temperature_c", _FLOAT),
        ("gpu_power_w", _FLOAT),
    ],
    metadata=METADATA,
)

RUNS_SCHEMA = pa.schema(
    [
        ("run_id", _CATEGORY),
        ("trial_id", _TEXT),
        ("candidate_id", _TEXT),
        ("context_tokens", _INT),
        ("output_tokens", _INT),
        ("batch_size", _INT),
        ("rung", _INT),
        ("repeat", _INT),
        ("ttft_ms", _FLOAT),
        ("itl_ms", pa.list_(pa.field("element", _FLOAT))),
        ("decode_tok_s", _FLOAT),
        ("peak_mib", _FLOAT),
        ("reserved_peak_mib", _FLOAT),
        ("energy_j", _FLOAT),
        ("disturbed", _BOOL),
        ("disturbance", _TEXT),
        ("started_at", _INSTANT),
    ],
    metadata=METADATA,
)

_SCHEMAS: Mapping[type, pa.Schema] = {TrialRecord: TRIALS_SCHEMA, Run: RUNS_SCHEMA}


class SchemaError(ValueError):
    """A table is of a newer schema version, or is not a table of these records at all."""


def schema_of(kind: type[Run] | type[TrialRecord]) -> pa.Schema:
    """The schema of the table that holds `kind`."""
    return _SCHEMAS[kind]


def to_table(items: Iterable[T], kind: type[T], *, run_id: str | None = None) -> pa.Table:
    """A table of `items`, in order; its metadata name the sweep `run_id`, if given.

    Raises:
        KeyError: a field of `kind` has no column.
        ValueError: a datetime has no time zone.
    """
    rows = [encode(item) for item in items]
    names = [field.name for field in dataclasses.fields(kind)]
    schema = schema_of(kind)
    columns = {name: pa.array([row[name] for row in rows], schema.field(name).type) for name in names}
    metadata = METADATA if run_id is None else {**METADATA, RUN_KEY: run_id.encode()}
    return pa.table(columns).select(schema.names).replace_schema_metadata(metadata)


def from_table(table: pa.Table, kind: type[T]) -> list[T]:
    """The rows of `table` as objects: columns that it lacks take the field's default, unknown ones are ignored.

    Raises:
        SchemaError: newer version, a required column is missing or null, or a value that does not fit.
    """
    fitting = conform(table, kind)
    try:
        rows = _with_plain_instants(fitting.select(schema_of(kind).names)).to_pylist()
        return [_decode(row, kind) for row in rows]
    except (TypeError, ValueError, OverflowError, AttributeError, RecursionError) as error:
        raise SchemaError(f"a row does not fit: {error}") from error


def conform(table: pa.Table, kind: type[Run] | type[TrialRecord]) -> pa.Table:
    """`table` with exactly the current columns and types first, then any unknown ones as they are.

    Raises:
        SchemaError: newer version, a required column is missing, or a column cannot be converted.
    """
    _check_version(table)
    schema = schema_of(kind)
    required = [field.name for field in dataclasses.fields(kind) if not _has_default(field)]
    if missing := [name for name in required if name not in table.column_names]:
        raise SchemaError(f"required columns are missing: {', '.join(missing)}")
    try:
        known = {field.name: _column(table, field) for field in schema}
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(f"a column has another type: {error}") from error
    unknown = {name: table.column(name) for name in table.column_names if name not in known}
    return pa.table({**known, **unknown}).replace_schema_metadata(METADATA)


def encode(item: DataclassInstance) -> dict[str, Any]:
    """A row's `item` as plain values by column name, the way they are stored.

    Raises:
        ValueError: a datetime has no time zone.
    """
    return {field.name: _plain(field.name, getattr(item, field.name)) for field in dataclasses.fields(item)}


_PAIRS = ("cache_params", "settings", "engine_versions")
"""Columns of names and values, which are one JSON object."""


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, dt.datetime):
        if value.tzinfo is None:
            raise ValueError(f"{name} {value.isoformat()} has no time zone")
        return value.astimezone(dt.UTC)
    if name in _PAIRS:
        return json.dumps(dict(value), sort_keys=True)
    if isinstance(value, str):  # a log's undecodable bytes must not cost the record
        return str(value).encode(errors="replace").decode()
    return list(value) if isinstance(value, tuple) else value


def _pairs(text: str) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(json.loads(text).items()))


def _texts(text: str) -> tuple[tuple[str, str], ...]:
    pairs = _pairs(text)
    if not all(isinstance(value, str) for _, value in pairs):
        raise ValueError(f"{text[:80]!r} holds other values than text")
    return pairs


def _instant(microseconds: int) -> dt.datetime:
    return _EPOCH + dt.timedelta(microseconds=microseconds)


_FROM_PLAIN: Mapping[str, Callable[[Any], Any]] = {
    "role": Role,
    "status": TrialStatus,
    "phase": Phase,
    "cache": CacheStrategy,
    "attention": AttentionBackend,
    "dtype": DType,
    "compile": CompileMode,
    **dict.fromkeys(_PAIRS, _pairs),
    "engine_versions": _texts,
    "itl_ms": tuple,
    "started_at": _instant,
    "ended_at": _instant,
}


def _with_plain_instants(table: pa.Table) -> pa.Table:
    """Instants as microseconds since `_EPOCH`: pyarrow would import pandas, if it is there, to make objects of them."""
    plain = [pa.field(one.name, _INT if one.type == _INSTANT else one.type) for one in table.schema]
    return table.cast(pa.schema(plain))


def _decode(row: Mapping[str, Any], kind: type[T]) -> T:
    """Null is left to the field's default; a required field without a value makes the constructor raise."""
    return kind(**{name: _FROM_PLAIN.get(name, _same)(value) for name, value in row.items() if value is not None})


def _same(value: Any) -> Any:
    return value


def _column(table: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    if field.name not in table.column_names:
        return pa.chunked_array([pa.nulls(table.num_rows, field.type)], field.type)
    column = table.column(field.name)
    return column if column.type == field.type else column.cast(field.type)


def _check_version(table: pa.Table) -> None:
    text = (table.schema.metadata or {}).get(VERSION_KEY)
    if text is None:
        raise SchemaError(f"no {VERSION_KEY.decode()} in its metadata: not written by kvray")
    if not text.isdigit() or len(text) > _VERSION_DIGITS or int(text) > SCHEMA_VERSION:
        shown = text[:_VERSION_DIGITS].decode(errors="replace")
        raise SchemaError(f"schema version {shown}, this kvray reads up to {SCHEMA_VERSION}")


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
