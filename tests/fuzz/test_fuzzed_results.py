"""What kvray itself has written: a results folder's manifests and records, and the files of its own cache."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_values import damaged, edited, rarely, texts
from hypothesis import strategies as st
from promises import RATES, BrokenPromiseError, Place, fuzzes, names_canary, run_line
from test_fuzzed_command_lines import ASSETS, RUN_ID

from kvray.errors import KvrayError
from kvray.models.hashes import file_sha256
from kvray.trial.quality import compare, summarize
from kvray.trial.reference import load_reference

WRITTEN = ASSETS / "results_v3"
MANIFEST = json.loads((WRITTEN / "sweeps" / f"{RUN_ID}.json").read_bytes())
TABLES = [f"{kind}/run_id={RUN_ID}/part-0.parquet" for kind in ("trials", "runs")]
STREAM = [(number, number, row[None]) for number, row in enumerate(np.log(np.full((6, 32), 1 / 32, np.float32)))]
REFERENCE: dict[str, Any] = dict(vars(summarize(STREAM)))
readings = st.sampled_from(("rank", "rank", "rank", "rank --json", "rank --json", "rank --json", "report", "compare"))


@st.composite
def manifests(draw: st.DrawFn) -> bytes:
    name = draw(st.sampled_from(("model_id", "architecture", "device_name", "memory_note")))
    return draw(edited({**MANIFEST, name: draw(texts)} if draw(rarely(8)) else MANIFEST))


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file of records with columns dropped, retyped or filled with something else, or damaged."""
    name = draw(st.sampled_from(TABLES))
    if draw(rarely(2)):
        return name, draw(st.sampled_from((b"", b"PAR1", b"PAR1PAR1", b"not parquet", b"\0" * 4096)))
    table = pq.read_table(WRITTEN / name, partitioning=None)
    for _ in range(draw(st.integers(1, 3))):
        table = _with_change(draw, table)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return name, draw(damaged(sink.getvalue())) if draw(rarely(6)) else sink.getvalue()


def _with_change(draw: st.DrawFn, table: pa.Table) -> pa.Table:
    name = draw(st.sampled_from(table.column_names))
    place, field = table.column_names.index(name), table.schema.field(name)
    change = draw(st.integers(0, 7))
    if change == 0:
        return table.drop_columns([name])
    if change == 1:
        version = draw(st.sampled_from((b"2", b"", b"x", b"1" * 5000, "١".encode(), b"-1")))
        return table.replace_schema_metadata({b"kvray_schema_version": version})
    if change == 2:
        return pa.concat_tables([table, table])
    rows = table.column(place).to_pylist()
    for row in range(len(rows)) if draw(st.booleans()) else draw(st.lists(st.integers(0, len(rows) - 1), max_size=3)):
        rows[row] = draw(_cells(field.type))
    try:
        column = pa.array(rows, field.type if change > 4 else None)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        column = pa.nulls(table.num_rows, field.type)
    return table.set_column(place, pa.field(name, column.type), column)


def _cells(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_floating(kind):
        return st.sampled_from((0.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e308, 5e-324, 1e-300, None))
    if pa.types.is_integer(kind):
        return st.sampled_from((0, -1, 1, 2, 2**31, 2**63 - 1, -(2**63), None))
    if pa.types.is_list(kind):
        return st.sampled_from(([], [0.0], [float("nan")] * 3, [-1.0, 1e308], [float("inf")], None))
    if pa.types.is_boolean(kind) or pa.types.is_timestamp(kind):
        return st.sampled_from((True, False, None))
    usual = ("dynamic", "static", "ok", "oom", "baseline", "sdpa", "hub_kernel", "float32", "off", "t-0", "{}")
    odd = ('{"a": [1]}', '{"nbits": 1e999}', "[" * 50_000, "[]", "null", '{"window": 0, "sinks": 0}', None)
    return texts | st.sampled_from(usual) | st.sampled_from(odd)


@pytest.fixture(scope="module")
def results(place: Place) -> Place:
    for name in ("results", "other"):
        shutil.copytree(WRITTEN, place.output / name, copy_function=shutil.copyfile)
    (place.input / "model").mkdir()
    shutil.copyfile(ASSETS / "tiny_llama" / "config.json", place.input / "model" / "config.json")
    run_line(*forecast(place))  # keeps the rates
    return place


def forecast(place: Place) -> tuple[str, ...]:
    model = f"random:{place.input / 'model'}"
    return "forecast", model, "--device", "cpu", "--context", "16", "--output-len", "4"


def read(reading: str, place: Place) -> bool:
    """Rank, report or compare."""
    folder = place.output / "results"
    shutil.rmtree(folder / "reports", ignore_errors=True)
    command, *option = reading.split()
    named = [place.output / "other"] if command == "compare" else ["--run", RUN_ID]
    code, _ = place.cli(command, folder, *named, *option)
    known = {"sweeps", "trials", "runs", "reports", ".partial"}
    strange = [path for path in place.output.iterdir() if path.name not in ("results", "other")]
    if strange := [*strange, *(path for path in folder.iterdir() if path.name not in known)]:
        raise BrokenPromiseError(f"wrote {strange[0]}")
    for snippet in folder.glob("reports/*/*.py"):
        if names_canary(snippet.read_text(encoding="utf-8")):
            raise BrokenPromiseError("a string of the records is code in the snippet")
    return code == 0


@fuzzes("manifests", content=manifests(), reading=readings)
def test_a_sweep_with_such_a_manifest_is_read_or_refused(content: bytes, reading: str, results: Place) -> bool:
    path = results.output / "results" / "sweeps" / f"{RUN_ID}.json"
    path.write_bytes(content)
    try:
        return read(reading, results)
    finally:
        shutil.copyfile(WRITTEN / "sweeps" / f"{RUN_ID}.json", path)


@fuzzes("records", changed=st.lists(tables(), min_size=1, max_size=2), reading=readings)
def test_a_sweep_with_such_records_is_read_or_refused(
    changed: list[tuple[str, bytes]], reading: str, results: Place
) -> bool:
    folder = results.output / "results"
    try:
        for name, content in changed:
            (folder / name).write_bytes(content)
        return read(reading, results)
    finally:
        for name in TABLES:
            shutil.copyfile(WRITTEN / name, folder / name)


@fuzzes("caches", content=edited(json.loads(RATES.to_json())))
def test_rates_of_a_device_in_the_cache_are_used_or_measured_again(content: bytes, results: Place) -> bool:
    (path,) = (results.cache / "hardware").iterdir()
    path.write_bytes(content)
    code, _ = results.cli(*forecast(results))
    if code != 0:
        raise BrokenPromiseError(f"a damaged cache ends a command with {code}")
    return path.read_bytes() == content


@st.composite
def references(draw: st.DrawFn) -> bytes:
    arrays = dict(REFERENCE)
    name = draw(st.sampled_from(sorted(arrays)))
    whole = arrays[name]
    shapes = (whole[:1], whole[::-1], whole.reshape(-1), np.zeros((0,)), np.full_like(whole, 0), np.full_like(whole, 1))
    arrays[name] = draw(st.sampled_from((*shapes, whole.astype(np.float64), whole.astype(str), np.array("text"))))
    if draw(rarely(4)):
        del arrays[draw(st.sampled_from(sorted(arrays)))]
    sink = io.BytesIO()
    np.savez(sink, **arrays)
    return draw(damaged(sink.getvalue())) if draw(st.booleans()) else sink.getvalue()


@fuzzes("caches", content=references())
def test_a_reference_for_quality_in_the_cache_is_used_or_refused(content: bytes, results: Place) -> bool:
    path = results.cache / "some.npz"
    path.write_bytes(content)
    with contextlib.suppress(KvrayError), results.watched(KvrayError):
        compare(load_reference(path), iter(STREAM))
        return True
    return False


@fuzzes("caches", content=edited({"sha256": "ab" * 32}))
def test_a_hash_in_the_cache_is_a_hash_or_made_again(content: bytes, results: Place) -> bool:
    target = Path(results.input / "model" / "config.json")
    file_sha256(target)
    (memo,) = (results.cache / "hashes").glob("*.json")
    memo.write_bytes(content)
    with results.watched():
        found = file_sha256(target)
    memo.unlink()
    if len(found) != 64 or not found.isalnum():
        raise BrokenPromiseError(f"a hash that is a path: {found!r}"[:200])
    return True
