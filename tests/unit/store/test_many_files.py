"""A sweep of many files is checked at the price of a few, and its runs stay columns until somebody asks for one."""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvray.analysis import analyse
from kvray.analysis.aggregate import StoredCells
from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DType
from kvray.record import Role, Run, TrialRecord, TrialResult, TrialStatus
from kvray.run_columns import RunColumns
from kvray.store import stored_runs, tables
from kvray.store.files import ResultsFiles
from kvray.store.parquet import ResultsStore, TrialFiles
from kvray.store.paths import part_file
from kvray.store.schema import SchemaError, conform, from_table, to_table
from kvray.workload import create_custom_profile

RUN_ID = "20260101-120000-abcd"
NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
PROFILE = create_custom_profile(
    "many", context_lengths=(8, 16), output_lengths=(3,), weight_ttft=0.4, weight_throughput=0.4, weight_memory=0.2
)
TRIALS = 30


def result_of(number: int) -> TrialResult:
    candidate = Candidate(
        engine="fake",
        cache=CacheStrategy.STATIC,
        attention=AttentionBackend.SDPA,
        dtype=DType.FLOAT32,
        settings=(("tile", number + 1),),
    )
    trial_id = f"{number:04d}-{candidate.candidate_id}"
    record = TrialRecord.of(
        candidate,
        run_id=RUN_ID,
        trial_id=trial_id,
        role=Role.SEARCH if number else Role.BASELINE,
        model_id="m",
        profile=PROFILE.name,
        status=TrialStatus.OK,
        rung=2,
        started_at=NOON + dt.timedelta(seconds=number),
    )
    runs = tuple(
        Run(
            run_id=RUN_ID,
            trial_id=trial_id,
            candidate_id=record.candidate_id,
            context_tokens=context,
            output_tokens=3,
            batch_size=1,
            rung=rung,
            repeat=repeat,
            ttft_ms=100.0 + number + repeat,
            itl_ms=(10.0, 30.0 + number),
            decode_tok_s=50.0,
            peak_mib=None if number % 3 else 100.0,
            disturbed=number % 5 == 1 and repeat == 0,
            disturbance="clocks fell" if number % 5 == 1 and repeat == 0 else None,
            started_at=NOON,
        )
        for context in (8, 16)
        for rung in (0, 1, 2)
        for repeat in range(rung + 1)
    )
    return TrialResult(record=record, runs=runs)


RESULTS = [result_of(number) for number in range(TRIALS)]


@pytest.fixture
def store(tmp_path: Path) -> ResultsStore:
    store = ResultsStore(tmp_path)
    for result in RESULTS:
        store.append(result)
    return store


def test_reading_and_ranking_makes_no_object_of_a_run_and_checks_few_tables(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    conformed = []

    def counting(table: pa.Table, kind: type[Run] | type[TrialRecord]) -> pa.Table:
        conformed.append(table.num_rows)
        return conform(table, kind)

    monkeypatch.setattr(tables, "conform", counting)
    monkeypatch.setattr(stored_runs, "from_table", lambda *_: pytest.fail("somebody asked for a run"))
    results = store.read(RUN_ID)
    assert analyse(results, PROFILE).ranking.entries
    assert len(conformed) == 2, "all trials together, and all runs together"


def merge(store: ResultsStore) -> None:
    """Merge the trials as a running sweep does, all but the last."""
    paths = store.paths(RUN_ID)
    appended = {
        TrialFiles(paths.runs_file(one.record.trial_id), paths.trial_file(one.record.trial_id)): one
        for one in RESULTS[:-1]
    }
    for first in range(0, len(appended), 8):
        store.merge(RUN_ID, dict(list(appended.items())[first : first + 8]))


def test_what_a_merge_removes_after_it_was_listed_is_listed_again(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings: list[str] = []

    def merging_meanwhile(files: ResultsFiles, folder: Path, suffix: str) -> list[Path]:
        listings.append(folder.parent.name)
        found = listed(files, folder, suffix)
        if len(listings) == 1:
            merge(ResultsStore(store.files.root))
            del listings[1:]
        return found

    listed = ResultsFiles.list
    monkeypatch.setattr(ResultsFiles, "list", merging_meanwhile)
    assert {one.record.trial_id: len(one.runs) for one in store.read(RUN_ID)} == {
        one.record.trial_id: len(one.runs) for one in RESULTS
    }
    assert listings == ["trials", "trials", "runs"], "the runs of a trial that is seen are listed after it"


@pytest.mark.parametrize("arrange", [lambda _: None, merge, lambda store: store.compact(RUN_ID)])
def test_what_is_read_is_what_was_appended_as_objects_and_as_columns(
    store: ResultsStore, arrange: Callable[[ResultsStore], None]
) -> None:
    arrange(store)
    read = store.read(RUN_ID)
    assert read == RESULTS
    for one, other in zip(read, RESULTS, strict=True):
        ours, theirs = one.columns, RunColumns.of(other.runs)
        for name in ("context_tokens", "rung", "ttft_ms", "decode_tok_s", "peak_mib", "energy_j", "disturbed"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        assert ours.reasons == theirs.reasons
        for cell, columns in theirs.by_cell(full_length=True).items():
            np.testing.assert_array_equal(one.full_length[cell].own_gaps_ms, columns.own_gaps_ms)
    assert analyse(read, PROFILE) == analyse(RESULTS, PROFILE)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ttft_ms": math.nan},
        {"ttft_ms": -1.0},
        {"output_tokens": 0},
        {"itl_ms": (10.0, -1.0)},
        {"run_id": "another"},
    ],
)
def test_one_file_of_many_that_is_out_of_the_ordinary_is_named_alone(
    store: ResultsStore, caplog: pytest.LogCaptureFixture, wrong: dict[str, object]
) -> None:
    victim = RESULTS[7]
    runs = [dataclasses.replace(run, **wrong) for run in victim.runs]  # type: ignore[arg-type]
    path = store.paths(RUN_ID).runs_file(victim.record.trial_id)
    pq.write_table(to_table(runs, Run), path)
    read = store.read(RUN_ID)
    assert [one.record.trial_id for one in read if not one.runs] == [victim.record.trial_id]
    assert [record.getMessage() for record in caplog.records if path.name in record.getMessage()]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("wrong", [{"candidate_id": "another"}, {"ttft_ms": -1.0}])
def test_a_merged_file_with_a_record_that_is_out_of_the_ordinary_is_named_alone(
    store: ResultsStore, caplog: pytest.LogCaptureFixture, wrong: dict[str, object]
) -> None:
    merge(store)
    path = part_file(store.paths(RUN_ID).trials, 2)
    records = [result.record for result in RESULTS[8:16]]
    pq.write_table(to_table([records[0].with_(**wrong), *records[1:]], TrialRecord), path)
    read = store.read(RUN_ID)
    assert [one.record.trial_id for one in read] == [one.record.trial_id for one in (*RESULTS[:8], *RESULTS[16:])]
    (said,) = caplog.records
    assert path.name in said.getMessage()


def test_a_row_without_a_value_that_it_must_have_is_refused_naming_it() -> None:
    table = to_table([one.record for one in RESULTS[:2]], TrialRecord)
    place = table.schema.get_field_index("trial_id")
    table = table.set_column(place, "trial_id", pa.array(["t", None]))
    with pytest.raises(SchemaError, match="it has no trial_id"):
        from_table(table, TrialRecord)


def test_ranking_makes_no_object_of_a_cell(store: ResultsStore, monkeypatch: pytest.MonkeyPatch) -> None:
    results = store.read(RUN_ID)
    monkeypatch.setattr(StoredCells, "_make", lambda _: pytest.fail("somebody asked for a cell"))
    assert analyse(results, PROFILE).ranking.entries


def test_the_text_of_a_result_is_short_and_makes_no_object_of_a_run(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_runs, "from_table", lambda *_: pytest.fail("somebody asked for a run"))
    (first, *_) = store.read(RUN_ID)
    assert repr(first) == f"TrialResult('{first.record.trial_id}', ok, 12 runs)"
