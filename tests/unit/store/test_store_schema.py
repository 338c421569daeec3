"""Rows and columns: what goes into a table comes out of it, and what does not fit is refused by name."""

from __future__ import annotations

import dataclasses
import datetime as dt
import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DType
from kvray.record import Phase, Role, Run, TrialRecord, TrialStatus
from kvray.store.ranking_table import RANKING_SCHEMA
from kvray.store.schema import (
    CANDIDATE_COLUMNS,
    RUNS_SCHEMA,
    TRIALS_SCHEMA,
    VERSION_KEY,
    SchemaError,
    from_table,
    to_table,
)

floats = st.floats(allow_nan=False)
counts = st.integers(0, 2**62)
instants = st.datetimes(
    dt.datetime(1970, 1, 2), timezones=st.sampled_from([dt.UTC, dt.timezone(dt.timedelta(hours=5, minutes=30))])
)
params = st.dictionaries(
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*", fullmatch=True), st.booleans() | counts | floats | st.text()
).map(lambda values: tuple(sorted(values.items())))


def of_type(annotation: str) -> st.SearchStrategy[Any] | None:
    """Strategies where Hypothesis would infer NaN, integers beyond 64 bits and instants without a time zone."""
    plain = {"float": floats, "int": counts, "dt.datetime": instants}
    strategy = plain.get(annotation.removesuffix(" | None"))
    return st.none() | strategy if strategy is not None and annotation.endswith(" | None") else strategy


def fields_of(kind: type) -> dict[str, st.SearchStrategy[Any]]:
    chosen = {field.name: of_type(str(field.type)) for field in dataclasses.fields(kind)}
    return {name: strategy for name, strategy in chosen.items() if strategy is not None}


texts = st.dictionaries(st.text(), st.text()).map(lambda values: tuple(sorted(values.items())))
records = st.builds(
    TrialRecord,
    **{**fields_of(TrialRecord), "cache_params": params, "settings": params, "engine_versions": texts},
)
runs = st.builds(Run, **{**fields_of(Run), "itl_ms": st.lists(floats, max_size=5).map(tuple)})


@pytest.fixture
def record() -> TrialRecord:
    return TrialRecord.of(
        Candidate(
            engine="fake", cache=CacheStrategy.STATIC, attention=AttentionBackend.SDPA_MATH, dtype=DType.BFLOAT16
        ),
        run_id="run-1",
        trial_id="t-1",
        role=Role.BASELINE,
        model_id="org/model",
        profile="ci-micro",
        status=TrialStatus.OOM,
        phase=Phase.LOAD,
        started_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    )


def through_a_file(table: pa.Table) -> pa.Table:
    file = io.BytesIO()
    pq.write_table(table, file)
    return pq.ParquetFile(file).read()


@pytest.mark.parametrize(("kind", "schema"), [(TrialRecord, TRIALS_SCHEMA), (Run, RUNS_SCHEMA)])
def test_every_field_has_a_column_and_every_column_a_field(kind: type, schema: pa.Schema) -> None:
    assert sorted(schema.names) == sorted(field.name for field in dataclasses.fields(kind))


def test_enums_and_the_partition_column_are_dictionary_encoded_strings() -> None:
    encoded = {field.name for field in TRIALS_SCHEMA if pa.types.is_dictionary(field.type)}
    assert encoded == {"run_id", "role", "cache", "attention", "dtype", "compile", "status", "phase"}


def test_instants_are_microseconds_in_utc() -> None:
    assert TRIALS_SCHEMA.field("started_at").type == RUNS_SCHEMA.field("started_at").type == pa.timestamp("us", "UTC")


@settings(deadline=None, max_examples=30)
@given(st.lists(records, max_size=3))
def test_records_come_back_equal(items: list[TrialRecord]) -> None:
    table = through_a_file(to_table(items, TrialRecord))
    assert table.schema.equals(TRIALS_SCHEMA, check_metadata=True)
    assert from_table(table, TrialRecord) == items


@settings(deadline=None)
@given(st.lists(runs, max_size=3))
def test_runs_come_back_equal(items: list[Run]) -> None:
    table = through_a_file(to_table(items, Run))
    assert table.schema.equals(RUNS_SCHEMA, check_metadata=True)
    assert from_table(table, Run) == items


def test_types_that_enums_had_survive_the_round_trip(record: TrialRecord) -> None:
    (back,) = from_table(to_table([record], TrialRecord), TrialRecord)
    assert [type(getattr(back, f.name)) for f in dataclasses.fields(back)] == [
        type(getattr(record, f.name)) for f in dataclasses.fields(record)
    ]


def test_text_that_is_not_unicode_costs_a_character_not_the_record(record: TrialRecord) -> None:
    undecodable = b"out of memory \xff".decode(errors="surrogateescape")
    (back,) = from_table(to_table([record.with_(log_tail=undecodable)], TrialRecord), TrialRecord)
    assert back.log_tail == "out of memory ?"


def test_an_instant_without_a_time_zone_is_refused(record: TrialRecord) -> None:
    with pytest.raises(ValueError, match="started_at 2026-01-01T00:00:00 has no time zone"):
        to_table([record.with_(started_at=dt.datetime(2026, 1, 1))], TrialRecord)


def test_missing_columns_become_none_and_unknown_ones_are_ignored(record: TrialRecord) -> None:
    table = to_table([record.with_(niceness=3)], TrialRecord).drop_columns(["niceness", "cpus"])
    table = table.append_column("colour", pa.array(["red"]))
    assert from_table(table, TrialRecord) == [record]


def test_a_table_rewritten_by_another_tool_with_wider_or_plain_types_is_read(record: TrialRecord) -> None:
    table = to_table([record], TrialRecord)
    plain = pa.schema([f.with_type(pa.large_string()) if pa.types.is_dictionary(f.type) else f for f in table.schema])
    assert from_table(table.cast(plain).replace_schema_metadata(table.schema.metadata), TrialRecord) == [record]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({VERSION_KEY: b"2"}, "schema version 2, this kvray reads up to 1"),
        ({VERSION_KEY: b"x"}, "schema version x"),
        (None, "not written by kvray"),
    ],
)
def test_a_newer_or_missing_version_is_refused(
    record: TrialRecord, metadata: dict[bytes, bytes] | None, message: str
) -> None:
    table = to_table([record], TrialRecord).replace_schema_metadata(metadata)
    with pytest.raises(SchemaError, match=message):
        from_table(table, TrialRecord)


def test_a_missing_required_column_is_refused_by_name(record: TrialRecord) -> None:
    with pytest.raises(SchemaError, match="required columns are missing: trial_id"):
        from_table(to_table([record], TrialRecord).drop_columns(["trial_id"]), TrialRecord)


def test_an_unknown_enum_value_is_refused_naming_it(record: TrialRecord) -> None:
    table = to_table([record], TrialRecord)
    table = table.set_column(table.column_names.index("cache"), "cache", pa.array(["telepathic"]))
    with pytest.raises(SchemaError, match="'telepathic' is not a valid CacheStrategy"):
        from_table(table, TrialRecord)


def test_a_column_of_another_type_is_refused(record: TrialRecord) -> None:
    table = to_table([record], TrialRecord)
    table = table.set_column(table.column_names.index("rung"), "rung", pa.array(["many"]))
    with pytest.raises(SchemaError, match="a column has another type"):
        from_table(table, TrialRecord)


@pytest.mark.parametrize("text", ['{"torch": 2}', '{"torch": ["2"]}', "[]", "null", "torch"])
def test_versions_that_are_no_text_are_refused(record: TrialRecord, text: str) -> None:
    table = to_table([record], TrialRecord)
    place = table.schema.get_field_index("engine_versions")
    with pytest.raises(SchemaError, match="a row does not fit"):
        from_table(table.set_column(place, "engine_versions", pa.array([text])), TrialRecord)


def test_every_field_of_a_candidate_is_a_column_of_trials_and_rankings_alike() -> None:
    names = [name for name, _ in CANDIDATE_COLUMNS]
    assert {*names, "engine"} == {field.name for field in dataclasses.fields(Candidate)}
    for schema in (TRIALS_SCHEMA, RANKING_SCHEMA):
        first = schema.get_field_index(names[0])
        assert schema.names[first : first + len(names)] == names
