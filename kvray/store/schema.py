"""Arrow schemas of the `trials` and `runs` tables, and the translation between their rows and the dataclasses.

Columns are the fields of `TrialRecord` and `Run` by name. `run_id` is dictionary-encoded like the enums, because
pandas infers that type for the Hive partition of the same name and refuses a file that says otherwise.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from kvray.candidate import AttentionBackend, CacheStrategy, CompileMode, DType
from kvray.record import Phase, Role, Run, TrialRecord, TrialStatus
from kvray.store.plausible import numbers, whole

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SCHEMA_VERSION = 1
VERSION_KEY = b"kvray_schema_version"
RUN_KEY = b"kvray_run_id"
"""In the files of single trials: one without rows would not tell of which sweep it is."""

T = TypeVar("T", Run, TrialRecord)

TEXT = pa.string()
INT = pa.int64()
FLOAT = pa.float64()
BOOL = pa.bool_()
CATEGORY = pa.dictionary(pa.int32(), pa.string())
CANDIDATE_COLUMNS = [
    ("cache", CATEGORY),
    ("cache_params", TEXT),
    ("attention", CATEGORY),
    ("hub_kernel", TEXT),
    ("dtype", CATEGORY),
    ("compile", CATEGORY),
    ("batch_size", INT),
    ("parallelism", INT),
    ("prefill_chunk", INT),
    ("weights_limit_mib", INT),
    ("settings", TEXT),
]
"""What a configuration is, beside the name of its engine: in every table with a row for a trial or a candidate."""
_INSTANT = pa.timestamp("us", tz="UTC")
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_VERSION_DIGITS = 9
METADATA = {VERSION_KEY: str(SCHEMA_VERSION).encode()}

TRIALS_SCHEMA = pa.schema(
    [
        ("run_id", CATEGORY),
        ("trial_id", TEXT),
        ("candidate_id", TEXT),
        ("role", CATEGORY),
        ("confirm_round", INT),
        ("model_id", TEXT),
        ("engine", TEXT),
        ("profile", TEXT),
        *CANDIDATE_COLUMNS,
        ("status", CATEGORY),
        ("phase", CATEGORY),
        ("message", TEXT),
        ("log_tail", TEXT),
        ("rung", INT),
        ("wall_s", FLOAT),
        ("busy_s", FLOAT),
        ("proof_s", FLOAT),
        ("started_at", _INSTANT),
        ("ended_at", _INSTANT),
        ("host", TEXT),
        ("pid", INT),
        ("ttft_ms", FLOAT),
        ("itl_p50_ms", FLOAT),
        ("itl_p95_ms", FLOAT),
        ("itl_p99_ms", FLOAT),
        ("decode_tok_s", FLOAT),
        ("peak_mib", FLOAT),
        ("reserved_peak_mib", FLOAT),
        ("library_mib", FLOAT),
        ("device_peak_mib", FLOAT),
        ("device_peak_gpu_mib", FLOAT),
        ("kv_cache_mib", FLOAT),
        ("energy_j_per_tok", FLOAT),
        ("load_s", FLOAT),
        ("compile_s", FLOAT),
        ("first_call_s", FLOAT),
        ("warmup_s", FLOAT),
        ("cold_s", FLOAT),
        ("warmed_up", BOOL),
        ("kl_mean", FLOAT),
        ("kl_decode", FLOAT),
        ("nll_delta", FLOAT),
        ("nll_delta_se", FLOAT),
        ("top1_agreement", FLOAT),
        ("kl_upper", FLOAT),
        ("kl_decode_upper", FLOAT),
        ("nll_delta_upper", FLOAT),
        ("quality_s", FLOAT),
        ("quality_note", TEXT),
        ("cache_class", TEXT),
        ("cache_layers", TEXT),
        ("kernel_prefill", TEXT),
        ("kernel_decode", TEXT),
        ("graph_breaks", INT),
        ("recompiles", INT),
        ("compile_cold", BOOL),
        ("kv_dtype", TEXT),
        ("resolved", TEXT),
        ("sample_context_tokens", INT),
        ("sample_tokens", TEXT),
        ("forced_logs", TEXT),
        ("processors", TEXT),
        ("processor_share", FLOAT),
        ("forecast_ttft_ms", FLOAT),
        ("forecast_decode_tok_s", FLOAT),
        ("forecast_peak_mib", FLOAT),
        ("roofline_share", FLOAT),
        ("expected_ttft_ms", FLOAT),
        ("expected_decode_tok_s", FLOAT),
        ("expected_peak_mib", FLOAT),
        ("expected_score_low", FLOAT),
        ("expected_score_high", FLOAT),
        ("win_chance", FLOAT),
        ("device_name", TEXT),
        ("device_uuid", TEXT),
        ("driver_version", TEXT),
        ("engine_versions", TEXT),
        ("torch_version", TEXT),
        ("transformers_version", TEXT),
        ("kvray_version", TEXT),
        ("fingerprint", TEXT),
        ("hardware", TEXT),
        ("gpu_type", TEXT),
        ("niceness", INT),
        ("threads", INT),
        ("cpus", INT),
        ("cpu_quota", FLOAT),
        ("gpu_clock_mhz", FLOAT),
        ("gpu_temperature_c", FLOAT),
        ("gpu_power_w", FLOAT),
    ],
    metadata=METADATA,
)

RUNS_SCHEMA = pa.schema(
    [
        ("run_id", CATEGORY),
        ("trial_id", TEXT),
        ("candidate_id", TEXT),
        ("context_tokens", INT),
        ("output_tokens", INT),
        ("batch_size", INT),
        ("rung", INT),
        ("repeat", INT),
        ("ttft_ms", FLOAT),
        ("itl_ms", pa.list_(pa.field("element", FLOAT))),
        ("decode_tok_s", FLOAT),
        ("peak_mib", FLOAT),
        ("reserved_peak_mib", FLOAT),
        ("energy_j", FLOAT),
        ("disturbed", BOOL),
        ("disturbance", TEXT),
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
        ValueError: a datetime has no time zone.
    """
    metadata = METADATA if run_id is None else {**METADATA, RUN_KEY: run_id.encode()}
    # As one array of rows: an array for each of a trial's hundred columns takes twice as long.
    columns = schema_of(kind).names
    rows = pa.array([_stored(item, columns) for item in items], _ROW_TYPES[kind])
    return pa.Table.from_batches([pa.RecordBatch.from_struct_array(rows)]).replace_schema_metadata(metadata)


def from_table(table: pa.Table, kind: type[T]) -> list[T]:
    """The rows of `table` as objects: columns that it lacks take the field's default, unknown ones are ignored.

    Raises:
        SchemaError: newer version, a required column is missing or null, or a value that does not fit.
    """
    return rows_of(conform(table, kind), kind)


def rows_of(fitting: pa.Table, kind: type[T]) -> list[T]:
    """`from_table` of what `conform` has returned.

    Raises:
        SchemaError: a required value is null, or a value does not fit.
    """
    # A column of nulls leaves every row its default; of a trial's hundred columns half are so.
    names = [name for name in schema_of(kind).names if fitting.column(name).null_count < fitting.num_rows]
    try:
        columns = {name: _decoded(fitting.column(name), name) for name in names}
    except (TypeError, ValueError, OverflowError, AttributeError, RecursionError) as error:
        raise SchemaError(f"a row does not fit: {error}") from error
    lacking = [name for name in _required(kind) if name not in columns or None in columns[name]]
    if lacking and fitting.num_rows:
        raise SchemaError(f"a row does not fit: it has no {lacking[0]}")
    rows = zip(*columns.values(), strict=True) if columns else ((),) * fitting.num_rows
    return [_made(kind, zip(names, row, strict=True)) for row in rows]


def _made(kind: type[T], values: Iterable[tuple[str, Any]]) -> T:
    """An item with these values and its fields' defaults for the others and for null. The constructor would set all of
    a trial's hundred fields one by one, which takes longer than to read them."""
    item = object.__new__(kind)
    item.__dict__.update({name: value for name, value in values if value is not None})
    return item


def _required(kind: type[Run] | type[TrialRecord]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if not _has_default(field)]


def conform(table: pa.Table, kind: type[Run] | type[TrialRecord]) -> pa.Table:
    """`table` with exactly the current columns and types first, then any unknown ones as they are.

    Raises:
        SchemaError: newer version, a required column is missing, or a column cannot be converted.
    """
    _check_version(table)
    schema = schema_of(kind)
    if missing := [name for name in _required(kind) if name not in table.column_names]:
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


def _decoded(column: pa.ChunkedArray, name: str) -> Sequence[Any]:
    """The values of a column as a record has them; equal texts are one object, and are translated once."""
    # Of instants pyarrow would import pandas, if it is there, to make objects.
    array = whole(column.cast(INT) if column.type == _INSTANT else column)
    translate = _FROM_PLAIN.get(name)
    if pa.types.is_dictionary(array.type) or array.type == TEXT:
        return _texts_decoded(array, translate)
    is_plain = array.type in (INT, FLOAT) and not array.null_count
    values: list[Any] = numbers(array).tolist() if is_plain else array.to_pylist()
    return values if translate is None else [None if value is None else translate(value) for value in values]


def _texts_decoded(array: pa.Array, translate: Callable[[Any], Any] | None) -> list[Any]:
    """`array` may be a dictionary with values that no row has."""
    encoded = (array.dictionary_decode() if pa.types.is_dictionary(array.type) else array).dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    known = texts if translate is None else [translate(text) for text in texts]
    if encoded.null_count:
        return [None if place is None else known[place] for place in encoded.indices.to_pylist()]
    return [known[place] for place in numbers(encoded.indices).tolist()]


def _stored(row: DataclassInstance, columns: Sequence[str]) -> dict[str, Any]:
    """The values that are not null. Most of a trial's hundred are numbers, or were not measured."""
    values = ((name, getattr(row, name)) for name in columns)
    return {name: v if name in _NUMBERS else _plain(name, v) for name, v in values if v is not None}


_NUMBERS = frozenset(one.name for schema in _SCHEMAS.values() for one in schema if one.type in (INT, FLOAT, BOOL))

_ROW_TYPES: Mapping[type, pa.StructType] = {kind: pa.struct(list(schema)) for kind, schema in _SCHEMAS.items()}


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
