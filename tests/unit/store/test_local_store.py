"""What a local results folder adds to the contract: kills, torn files, old files, and readers that are not kvray."""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DType
from kvray.errors import InvalidValueError, OutputError, ResultsError
from kvray.record import Role, Run, TrialRecord, TrialResult, TrialStatus
from kvray.store.files import ResultsFiles
from kvray.store.parquet import ResultsStore, records_sha256
from kvray.store.schema import VERSION_KEY

pytestmark = pytest.mark.spawns

OLD_RESULTS = Path(__file__).parents[2] / "assets" / "results_v1"
RUN_ID = "20260101-120000-abcd"
NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)


def result_of(trial_id: str, *, run_id: str = RUN_ID, **values: Any) -> TrialResult:
    record = TrialRecord.of(
        Candidate(engine="fake", cache=CacheStrategy.STATIC, attention=AttentionBackend.SDPA, dtype=DType.FLOAT32),
        run_id=run_id,
        trial_id=trial_id,
        role=Role.SEARCH,
        model_id="org/model",
        profile="ci-micro",
        status=TrialStatus.OK,
        started_at=NOON,
        **values,
    )
    run = Run(
        run_id=run_id,
        trial_id=trial_id,
        candidate_id=record.candidate_id,
        context_tokens=512,
        output_tokens=3,
        batch_size=1,
        rung=2,
        repeat=0,
        ttft_ms=100.0,
        itl_ms=(10.0, 30.0),
        decode_tok_s=50.0,
        started_at=NOON,
    )
    return TrialResult(record=record, runs=(run,))


@pytest.fixture
def store(tmp_path: Path) -> ResultsStore:
    return ResultsStore(tmp_path)


def visible_files(folder: Path) -> list[str]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if not path.as_posix().startswith("."))


def partial_files(folder: Path) -> list[Path]:
    return list((folder / ".partial").iterdir())


# Kills


def run_killed(tmp_path: Path, *, at: str, action: str) -> None:
    """Run `action` on a store in a process that is killed at the call of `at`, as a power cut would."""
    script = f"""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_local_store import ResultsStore, result_of, RUN_ID
        from kvray.store.files import ResultsFiles
        store = ResultsStore({str(tmp_path)!r})
        {at} = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
        {action}
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == -9


def test_a_kill_between_write_and_rename_leaves_no_visible_file(store: ResultsStore, tmp_path: Path) -> None:
    run_killed(tmp_path, at="Path.replace", action="store.append(result_of('t-1'))")
    assert visible_files(tmp_path) == []
    assert store.read(RUN_ID) == []
    assert len(partial_files(tmp_path)) == 1


def test_what_a_killed_writer_left_half_written_goes_with_the_next_compaction(
    store: ResultsStore, tmp_path: Path
) -> None:
    run_killed(tmp_path, at="Path.replace", action="store.append(result_of('t-1'))")
    store.append(result_of("t-1"))
    store.compact(RUN_ID)
    assert partial_files(tmp_path) == []


def test_a_kill_within_a_compaction_leaves_duplicates_that_read_drops_and_compact_cleans(
    store: ResultsStore, tmp_path: Path
) -> None:
    results = [result_of("t-1"), result_of("t-2")]
    for result in results:
        store.append(result)
    digest = records_sha256(store.read(RUN_ID))
    run_killed(tmp_path, at="ResultsFiles.delete", action="store.compact(RUN_ID)")
    assert f"runs/run_id={RUN_ID}/part-0.parquet" in visible_files(tmp_path)
    assert f"runs/run_id={RUN_ID}/t-1.parquet" in visible_files(tmp_path)
    assert store.read(RUN_ID) == results
    assert records_sha256(store.read(RUN_ID)) == digest
    store.compact(RUN_ID)
    assert visible_files(tmp_path) == [f"{table}/run_id={RUN_ID}/part-0.parquet" for table in ("runs", "trials")]
    assert store.read(RUN_ID) == results


def test_a_trial_row_is_written_after_its_runs(store: ResultsStore, tmp_path: Path) -> None:
    (tmp_path / "trials").write_text("in the way")
    with pytest.raises(OutputError, match=r"Cannot write '.*t-1\.parquet': .*trials is a file, not a folder"):
        store.append(result_of("t-1"))
    assert visible_files(tmp_path) == [f"runs/run_id={RUN_ID}/t-1.parquet", "trials"]


def test_a_write_that_fails_leaves_no_temporary_file(store: ResultsStore, tmp_path: Path) -> None:
    target = store.paths(RUN_ID).runs_file("t-1")
    target.mkdir(parents=True)
    with pytest.raises(OutputError, match="Is a directory"):
        store.append(result_of("t-1"))
    assert partial_files(tmp_path) == []


# Files that are not ours


@pytest.mark.parametrize("content", [b"", b"PAR1", b"torn"])
def test_a_torn_or_foreign_file_is_passed_over_with_a_warning_that_names_it(
    store: ResultsStore, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store.append(result_of("t-1"))
    whole = store.paths(RUN_ID).trial_file("t-1").read_bytes()
    bad = store.paths(RUN_ID).trial_file("t-bad")
    bad.write_bytes(content if content != b"torn" else whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING, logger="kvray.store"):
        assert store.read(RUN_ID) == [result_of("t-1")]
    assert [record.getMessage().startswith(f"Skipped {bad}: ") for record in caplog.records] == [True]


def test_a_file_with_flipped_bits_is_passed_over(store: ResultsStore, caplog: pytest.LogCaptureFixture) -> None:
    store.append(result_of("t-1"))
    store.append(result_of("t-2"))
    path = store.paths(RUN_ID).trial_file("t-2")
    path.write_bytes(path.read_bytes().replace(b"org/model", b"org/mOdel", 1))
    assert store.read(RUN_ID) == [result_of("t-1")]
    assert "CRC checksum" in caplog.text


def test_compaction_keeps_what_it_cannot_read(store: ResultsStore) -> None:
    store.append(result_of("t-1"))
    store.append(result_of("t-2"))
    paths = store.paths(RUN_ID)
    rewrite(paths.trial_file("t-2"), cache="telepathic")
    unreadable = paths.trial_file("t-2").read_bytes()
    store.compact(RUN_ID)
    assert sorted(path.name for path in paths.trials.iterdir()) == ["part-0.parquet", "t-2.parquet"]
    assert paths.trial_file("t-2").read_bytes() == unreadable


def test_compaction_never_overwrites_a_compacted_file_that_it_cannot_read(store: ResultsStore) -> None:
    store.append(result_of("t-1"))
    store.compact(RUN_ID)
    part = store.paths(RUN_ID).trials / "part-0.parquet"
    rewrite(part, cache="telepathic")
    unreadable = part.read_bytes()
    store.append(result_of("t-2"))
    store.compact(RUN_ID)
    assert part.read_bytes() == unreadable
    assert store.read(RUN_ID) == [result_of("t-2")]


def test_compaction_keeps_columns_that_this_kvray_does_not_know(store: ResultsStore) -> None:
    for trial_id in ("t-1", "t-2"):
        store.append(result_of(trial_id))
    paths = store.paths(RUN_ID)
    rewrite(paths.trial_file("t-2"), colour="red")
    store.compact(RUN_ID)
    table = pq.ParquetFile(paths.trials / "part-0.parquet").read()
    assert table.column("colour").to_pylist() == [None, "red"]


@pytest.mark.parametrize("name", ["not_launched.parquet", "part-0.parquet"])
def test_trials_never_launched_are_kept_beside_files_that_cannot_be_read(store: ResultsStore, name: str) -> None:
    unreadable = store.paths(RUN_ID).trials / name
    unreadable.parent.mkdir(parents=True)
    unreadable.write_bytes(b"of a newer kvray")
    records = [result_of(trial_id).record.with_(status=TrialStatus.REJECTED) for trial_id in ("t-1", "t-2")]
    for record in records:
        store.append_many([record])
    store.compact(RUN_ID)
    assert [one.record for one in store.read(RUN_ID)] == [one.with_(started_at=NOON) for one in records]
    assert unreadable.read_bytes() == b"of a newer kvray"


# Files of other sweeps, and copies of this one's


def file_of_another_sweep(folder: Path, trial_id: str = "t-1", table: str = "trials") -> bytes:
    other = ResultsStore(folder / "other")
    other.append(result_of(trial_id, run_id="20260102-120000-beef", ttft_ms=1.0))
    paths = other.paths("20260102-120000-beef")
    return (paths.trial_file(trial_id) if table == "trials" else paths.runs_file(trial_id)).read_bytes()


@pytest.mark.parametrize("table", ["trials", "runs"])
@pytest.mark.parametrize("name", ["part-1.parquet", "t-9.parquet", "not_launched.parquet", "0.parquet"])
def test_records_of_another_sweep_replace_nothing_and_stay_where_they_are(
    store: ResultsStore, tmp_path: Path, table: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.append(result_of("t-1"))
    store.compact(RUN_ID)
    content = file_of_another_sweep(tmp_path, table=table)
    foreign = getattr(store.paths(RUN_ID), table) / name
    foreign.write_bytes(content)
    skipped = result_of("t-2", fingerprint="bbbbbbbb").record.with_(status=TrialStatus.SKIPPED, started_at=None)
    store.append_many([skipped])
    store.compact(RUN_ID)
    assert store.read(RUN_ID) == [result_of("t-1"), TrialResult(record=skipped)]
    assert foreign.read_bytes() == content
    why = "it holds records of another sweep, '20260102-120000-beef'."
    assert caplog.messages == [f"Skipped {foreign}: {why}"]


def test_a_trial_without_runs_of_another_sweep_takes_no_runs_from_the_trial_with_its_id(
    store: ResultsStore, tmp_path: Path
) -> None:
    other = ResultsStore(tmp_path / "other")
    other.append(TrialResult(record=result_of("t-1", run_id="20260102-120000-beef").record))
    store.append(result_of("t-1"))
    store.compact(RUN_ID)
    foreign = store.paths(RUN_ID).runs_file("t-1")
    shutil.copy(other.paths("20260102-120000-beef").runs_file("t-1"), foreign)
    store.compact(RUN_ID)
    assert store.read(RUN_ID) == [result_of("t-1")]
    assert foreign.exists()

    rows = pq.ParquetFile(foreign).read()
    pq.write_table(rows.replace_schema_metadata({VERSION_KEY: rows.schema.metadata[VERSION_KEY]}), foreign)
    store.compact(RUN_ID)
    assert store.read(RUN_ID) == [result_of("t-1")], "of an older kvray: its file does not name the sweep"


def test_a_trial_is_not_written_over_that_of_another_sweep_with_the_same_id(
    store: ResultsStore, tmp_path: Path
) -> None:
    paths = store.paths(RUN_ID)
    foreign = {
        paths.trial_file("t-1"): file_of_another_sweep(tmp_path),
        paths.runs_file("t-1"): file_of_another_sweep(tmp_path, table="runs"),
    }
    for path, content in foreign.items():
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    store.append(result_of("t-1", message="first"))
    store.append(result_of("t-1", message="again"))
    assert store.read(RUN_ID) == [result_of("t-1", message="again")]
    store.compact(RUN_ID)
    assert store.read(RUN_ID) == [result_of("t-1", message="again")]
    assert {path: path.read_bytes() for path in foreign} == foreign
    assert "trials/run_id=20260101-120000-abcd/t-1+1.parquet" not in visible_files(tmp_path), "it was merged"


def test_a_compacted_file_of_another_sweep_in_its_place_is_not_replaced(store: ResultsStore, tmp_path: Path) -> None:
    foreign = store.paths(RUN_ID).trials / "part-0.parquet"
    store.append(result_of("t-1"))
    content = file_of_another_sweep(tmp_path)
    foreign.write_bytes(content)
    store.compact(RUN_ID)
    assert store.read(RUN_ID) == [result_of("t-1")]
    assert foreign.read_bytes() == content


def test_of_an_older_copy_of_the_same_sweep_only_what_is_missing_counts_and_it_is_never_deleted(
    store: ResultsStore, caplog: pytest.LogCaptureFixture
) -> None:
    for trial_id in ("t-1", "t-2"):
        store.append(result_of(trial_id, message="old"))
    store.compact(RUN_ID)
    part = store.paths(RUN_ID).trials / "part-0.parquet"
    copy = part.with_name("copy of part-0.parquet")
    shutil.copy(part, copy)
    content = copy.read_bytes()
    part.unlink()
    store.append(result_of("t-1", message="new"))
    expected = [result_of("t-1", message="new"), result_of("t-2", message="old")]
    assert store.read(RUN_ID) == expected
    store.compact(RUN_ID)
    assert store.read(RUN_ID) == expected
    assert copy.read_bytes() == content
    assert caplog.messages == [f"Skipped {copy}: 1 of its trials lie in the sweep's own files too, which are used."]


def test_a_trial_measured_again_without_runs_has_none_left_from_before(store: ResultsStore) -> None:
    store.append(result_of("t-1"))
    store.compact(RUN_ID)
    again = TrialResult(record=result_of("t-1", message="again").record)
    store.append(again)
    assert store.read(RUN_ID) == [again]
    store.compact(RUN_ID)
    assert store.read(RUN_ID) == [again]


def test_a_row_that_lies_in_a_file_twice_is_one_trial(store: ResultsStore) -> None:
    import pyarrow as pa

    store.append(result_of("t-1"))
    path = store.paths(RUN_ID).trial_file("t-1")
    table = pq.ParquetFile(path).read()
    pq.write_table(pa.concat_tables([table, table]), path)
    assert store.read(RUN_ID) == [result_of("t-1")]


# Names and sizes that kvray never makes


def test_a_name_that_is_not_utf_8_is_escaped_in_a_warning_and_the_rest_is_read(
    store: ResultsStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.append(result_of("t-1"))
    trials = store.paths(RUN_ID).trials
    odd = Path(os.fsdecode(os.fsencode(trials) + b"/\xff\xfe.parquet"))
    odd.write_bytes(store.paths(RUN_ID).trial_file("t-1").read_bytes())
    assert store.read(RUN_ID) == [result_of("t-1")]
    (told,) = caplog.messages
    assert told.startswith(f"Skipped {trials}/\\xff\\xfe.parquet: ")
    assert told.endswith("its name is not UTF-8.")
    store.compact(RUN_ID)
    assert odd.exists()


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Not more than a gigabyte beyond what this process has."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def footer_of(data: bytes) -> bytes:
    return data[-8 - int.from_bytes(data[-8:-4], "little") :]


@pytest.mark.parametrize("table", ["trials", "runs"])
def test_a_file_larger_than_memory_is_told_by_its_ends_and_passed_over(
    store: ResultsStore, table: str, little_memory: None, caplog: pytest.LogCaptureFixture
) -> None:
    store.append(result_of("t-1"))
    sparse = getattr(store.paths(RUN_ID), table) / "x.parquet"
    sparse.touch()
    os.truncate(sparse, 4 * 2**30)
    assert store.read(RUN_ID) == [result_of("t-1")]
    assert caplog.messages == [f"Skipped {sparse}: it is no Parquet file: the magic bytes at its ends are missing."]


def test_of_a_file_with_a_hole_only_what_its_footer_tells_of_is_read(store: ResultsStore, little_memory: None) -> None:
    store.append(result_of("t-1"))
    path = store.paths(RUN_ID).trial_file("t-1")
    footer = footer_of(path.read_bytes())
    os.truncate(path, 4 * 2**30)
    with path.open("ab") as file:
        file.write(footer)
    assert store.read(RUN_ID) == [result_of("t-1")]


def test_of_a_footer_that_would_be_huge_nothing_is_read(
    store: ResultsStore, little_memory: None, caplog: pytest.LogCaptureFixture
) -> None:
    store.append(result_of("t-1"))
    store.append(result_of("t-2"))
    path = store.paths(RUN_ID).trial_file("t-2")
    os.truncate(path, 4 * 2**30)
    with path.open("ab") as file:
        file.write((3 * 2**30).to_bytes(4, "little") + b"PAR1")
    assert store.read(RUN_ID) == [result_of("t-1")]
    assert caplog.messages == [f"Skipped {path}: its footer is damaged: it would be larger than 64 MiB."]


def test_a_manifest_that_is_larger_than_any_is_refused_unread(store: ResultsStore, little_memory: None) -> None:
    path = store.paths("r-1").manifest
    path.parent.mkdir(parents=True)
    path.touch()
    os.truncate(path, 4 * 2**30)
    with pytest.raises(ResultsError, match=r"r-1\.json': it has 4,294,967,296 bytes, more than kvray writes\."):
        store.read_manifest("r-1")
    assert store.run_ids() == []


def test_a_folder_and_a_named_pipe_called_like_records_are_no_records(store: ResultsStore) -> None:
    store.append(result_of("t-1"))
    trials = store.paths(RUN_ID).trials
    (trials / "folder.parquet").mkdir()
    os.mkfifo(trials / "pipe.parquet")
    assert store.read(RUN_ID) == [result_of("t-1")]


def test_a_file_that_may_not_be_read_is_passed_over_and_named(caplog: pytest.LogCaptureFixture) -> None:
    """Not in `tmp_path`: root, who may read everything, drops its privileges, and others may not enter there."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    store = ResultsStore(folder)
    store.append(result_of("t-1"))
    store.append(result_of("t-2"))
    store.paths(RUN_ID).trial_file("t-2").chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        assert store.read(RUN_ID) == [result_of("t-1")]
    finally:
        if is_root:
            os.seteuid(0)
        shutil.rmtree(folder)
    assert "t-2.parquet" in caplog.text
    assert "Permission denied" in caplog.text


def test_of_another_fingerprint_a_skipped_trial_stays_although_its_candidate_was_launched(store: ResultsStore) -> None:
    launched = result_of("t-1", fingerprint="aaaaaaaa")
    skipped = result_of("t-2").record.with_(status=TrialStatus.SKIPPED, started_at=None)
    store.append(launched)
    store.append_many([skipped.with_(fingerprint="bbbbbbbb", trial_id="t-3"), skipped.with_(fingerprint="aaaaaaaa")])
    assert [one.record.trial_id for one in store.read(RUN_ID)] == ["t-1", "t-3"]


def rewrite(path: Path, **columns: str) -> None:
    """The file with columns set to a constant, metadata kept: what a newer kvray could have written."""
    import pyarrow as pa

    table = pq.ParquetFile(path).read()
    for name, value in columns.items():
        values = pa.array([value] * table.num_rows)
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, values)
        else:
            table = table.append_column(name, values)
    pq.write_table(table, path)


def test_a_results_folder_of_schema_version_1_with_fewer_columns_is_read() -> None:
    """The files lack niceness, threads, cpus, busy_s, log_tail and disturbed."""
    store = ResultsStore(OLD_RESULTS)
    run_id = store.latest_run_id()
    first, second = store.read(run_id)
    assert store.read_manifest(run_id).model_id == "org/model"
    assert (first.record.status, first.record.decode_tok_s, first.record.threads) == (TrialStatus.OK, 50.5, None)
    assert first.record.candidate.cache_params == (("window", 256),)
    assert [(run.itl_ms, run.disturbed, run.started_at) for run in first.runs] == [((10.0, 30.0), False, NOON)]
    assert (second.record.status, second.record.message, second.runs) == (TrialStatus.OOM, "no memory", ())
    assert records_sha256(store.read(run_id)) == "61fa4ec37672e5e174fb45f1fc73e9a6b0a18aa71c4803c3f45669cbdeeb4c8a"


# Errors that a user meets


def test_a_folder_that_is_a_file_is_not_writable(tmp_path: Path) -> None:
    path = tmp_path / "results"
    path.write_text("")
    with pytest.raises(OutputError, match=r"Cannot write to results folder '.*results': .*results is a file, not a"):
        ResultsStore(path).check_writable()


@pytest.fixture
def forbidden_folder() -> Iterator[Path]:
    """A folder that this process may read and not write; root drops its privileges meanwhile."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        shutil.rmtree(folder)


def test_a_folder_without_permission_is_not_writable(forbidden_folder: Path) -> None:
    with pytest.raises(OutputError, match=r"Cannot write to results folder '.*': Permission denied\.") as error:
        ResultsStore(forbidden_folder / "results").check_writable()
    assert "\n" not in str(error.value)


def test_the_writable_check_leaves_nothing_behind(store: ResultsStore, tmp_path: Path) -> None:
    store.check_writable()
    assert visible_files(tmp_path) == []


def test_constructing_a_store_touches_nothing(tmp_path: Path) -> None:
    ResultsStore(tmp_path / "new")
    ResultsStore("s3://no-such-bucket-anywhere/x")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"There is no results folder '.*nowhere'"):
        ResultsStore(tmp_path / "nowhere").latest_run_id()


def test_a_uri_of_an_unknown_kind_is_refused_without_repeating_its_secret() -> None:
    with pytest.raises(InvalidValueError, match="Results folder 'ftp://host/x' cannot be opened") as error:
        ResultsStore("ftp://me:secret@host/x").check_writable()
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a JSON object"),
        ("[]", "is not a JSON object"),
        ('{"manifest_version": 99}', "has version 99, this kvray reads up to 2. Use a newer kvray"),
        ('{"run_id": "r-1"}', "is not valid: kvray_version: Field required"),
        ("\x00\x00", "is not a JSON object"),
        pytest.param("[" * 200_000, "is not a JSON object", id="deeply nested"),
    ],
)
def test_a_bad_manifest_is_refused_and_not_listed(
    store: ResultsStore, content: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.write_text(store.paths("r-1").manifest, content)
    with pytest.raises(ResultsError, match=f"The manifest of sweep 'r-1' {message}"):
        store.read_manifest("r-1")
    assert store.run_ids() == []
    assert "r-1.json" in caplog.text


# Readers that are not kvray: the partition column `run_id` is also a column of the files


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One compacted run, one not, and what a killed writer left. Tests read it only."""
    folder = tmp_path_factory.mktemp("two-runs")
    store = ResultsStore(folder)
    for run_id in ("20260101-120000-abcd", "2026-01-02"):
        store.append(result_of("t-1", run_id=run_id))
        store.append(result_of("t-2", run_id=run_id))
    store.compact("2026-01-02")
    run_killed(folder, at="Path.replace", action="store.append(result_of('t-3'))")
    return folder


EXPECTED = [("2026-01-02", "static", 2), ("20260101-120000-abcd", "static", 2)]


@pytest.mark.parametrize("options", ["", ", hive_partitioning = true", ", union_by_name = true"])
def test_duckdb_reads_all_trials(two_runs: Path, options: str) -> None:
    query = f"""
        SELECT run_id, cache, count(*) FROM read_parquet('{two_runs}/trials/**/*.parquet'{options})
        WHERE run_id LIKE '2026%' GROUP BY ALL ORDER BY ALL
    """
    assert duckdb.sql(query).fetchall() == EXPECTED


def test_duckdb_unnests_the_token_latencies(two_runs: Path) -> None:
    query = f"SELECT unnest(itl_ms) AS itl FROM read_parquet('{two_runs}/runs/*/*.parquet') ORDER BY itl"
    assert [row[0] for row in duckdb.sql(query).fetchall()] == [10.0] * 4 + [30.0] * 4


@pytest.mark.parametrize("hive", [None, True, False])
def test_polars_reads_all_trials_by_folder_and_by_glob(two_runs: Path, hive: bool | None) -> None:
    for source in (two_runs / "trials", two_runs / "trials/**/*.parquet"):
        frame = pl.scan_parquet(source, hive_partitioning=hive).filter(pl.col("run_id") != "x")
        counted = frame.group_by(pl.col("run_id", "cache").cast(pl.String)).len().sort("run_id").collect()
        assert counted.rows() == EXPECTED


def test_pandas_reads_all_trials(two_runs: Path) -> None:
    frame = pd.read_parquet(two_runs / "trials")
    counted = frame.astype({"run_id": str, "cache": str}).groupby(["run_id", "cache"]).size()
    assert [(*key, count) for key, count in counted.items()] == EXPECTED
    filtered = pd.read_parquet(two_runs / "trials", filters=[("run_id", "==", "2026-01-02")])
    assert list(filtered["trial_id"]) == ["t-1", "t-2"]


@pytest.mark.parametrize("linked", ["reports", "reports/r-1", ".partial", "trials", "loop"])
def test_nothing_is_written_through_a_link_out_of_the_folder(linked: str, tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "results"
    outside.mkdir()
    link = root / ("reports" if linked == "loop" else linked)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(link if linked == "loop" else outside)
    files = ResultsFiles(root)
    folder = root / ("trials" if linked == "trials" else "reports/r-1")
    with pytest.raises(OutputError, match="a link leads out of the results folder"):
        files.write(folder / "report.md", b"text")
    assert list(outside.iterdir()) == []


def test_a_results_folder_may_itself_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "results").symlink_to(tmp_path / "disk")
    ResultsFiles(tmp_path / "results").write(tmp_path / "results/reports/report.md", b"text")
    assert (tmp_path / "disk/reports/report.md").read_bytes() == b"text"


def test_a_manifest_of_a_time_that_is_none_is_refused(store: ResultsStore) -> None:
    manifest = json.loads(next((Path(__file__).parents[2] / "assets/results_v1/sweeps").iterdir()).read_text())
    path = store.paths("r-1").manifest
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**manifest, "run_id": "r-1", "created_at": "0001-01-01T00:00:00+14:00"}))
    with pytest.raises(ResultsError, match="no such time in UTC"):
        store.read_manifest("r-1")
