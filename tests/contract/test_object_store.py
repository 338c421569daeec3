"""Results in an object store that fails, hangs, or is written by two: a real S3 API behind a real, unwell proxy."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from store_contract import RUN_ID, manifest_of, result_of
from unwell_s3 import Illness

import kvray.store.keeper as keeping
from kvray.errors import OutputError, PlanError, ResultsError
from kvray.files.remote import open_uri
from kvray.jobs.destination import destination
from kvray.jobs.fetching import RemoteFile
from kvray.plan.plan import load_plan_file
from kvray.store import lease
from kvray.store.claim import claimed_sweep
from kvray.store.files import ResultsFiles
from kvray.store.keeper import RecordKeeper
from kvray.store.parquet import ResultsStore
from kvray.tuning.outcome import interruption


def test_while_an_upload_creeps_measuring_goes_on_and_nothing_torn_is_there(
    uri: str, behind: str, illness: Illness, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_WAIT_S", 0.1)
    store, there = ResultsStore(uri), ResultsStore(behind)
    store.write_manifest(manifest_of(RUN_ID))
    keeper = RecordKeeper(store, manifest_of(RUN_ID))
    assert there.read(RUN_ID) == [], "opened before: Arrow opens no second service while a request is under way"
    illness.halts = True
    results = [result_of(name, minute=minute) for minute, name in enumerate(("t-a", "t-b", "t-c"))]
    for one in results:
        keeper.keep(one)
    assert illness.is_waiting.wait(240)
    assert there.read(RUN_ID) == []
    assert (len(keeper.results), keeper.unwritten, keeper.has_moved) == (3, 3, False)
    assert "3 trials could not be written there yet" in interruption(keeper).message
    assert "is slow. Measuring goes on while records are written" in caplog.text
    assert caplog.text.count(" is slow.") == 1
    illness.halts = False
    illness.goes_on.set()
    assert keeper.settle().read(RUN_ID) == results
    assert (there.read(RUN_ID), keeper.unwritten) == (results, 0)


UPLOAD = """
import sys
sys.path[:] = {path!r}
from store_contract import manifest_of, result_of
from kvray.store import lease
from kvray.store.claim import claimed_sweep
from kvray.store.keeper import RecordKeeper
from kvray.store.parquet import ResultsStore
store, manifest = ResultsStore({uri!r}), manifest_of({run_id!r})
with claimed_sweep(store, {run_id!r}):
    store.write_manifest(manifest)
    keeper = RecordKeeper(store, manifest)
    keeper.keep(result_of("t-a"))
    keeper.finish_writing()
    print("kept", flush=True)
    sys.stdin.readline()
    keeper.keep(result_of("t-b", minute=1))
    sys.stdin.readline()
"""


def test_a_process_killed_in_an_upload_leaves_no_torn_object_and_another_one_takes_over(
    uri: str, behind: str, illness: Illness, caplog: pytest.LogCaptureFixture
) -> None:
    code = UPLOAD.format(path=sys.path, uri=uri, run_id=RUN_ID)
    writer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdin is not None
    assert writer.stdout is not None
    assert writer.stdout.readline() == "kept\n"
    illness.halts = True
    writer.stdin.write("\n")
    writer.stdin.flush()
    assert illness.is_waiting.wait(240)
    with pytest.raises(ResultsError, match="is being measured already"), claimed_sweep(ResultsStore(behind), RUN_ID):
        pass
    writer.kill()
    writer.communicate()
    illness.halts = False
    illness.goes_on.set()
    store = ResultsStore(behind)
    with claimed_sweep(store, RUN_ID):
        assert store.read(RUN_ID) == [result_of("t-a")]
        names = {
            path.stem
            for folder in (store.paths(RUN_ID).trials, store.paths(RUN_ID).runs)
            for path in ResultsFiles(behind).list(folder, "")
        }
        assert names <= {"t-a", "t-b"}, "a whole file of runs may be there before that of its trial"
    assert f"Process {writer.pid} on " in caplog.text
    assert "has ended; this process takes over" in caplog.text


def test_the_lease_of_a_machine_that_is_gone_ends_after_its_time_and_that_is_said(
    behind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, (folder, prefix) = ResultsFiles(behind), ResultsStore(behind).paths(RUN_ID).leases
    about = {"pid": 7, "host": "node-7", "since": "noon", "machine": "another", "born": 0.0}
    files.write(folder / f"{prefix}dead.lease", json.dumps(about).encode())
    with (
        pytest.raises(ResultsError, match=r"by process 7 on node-7, since noon\..*its claim ends in 1\d\d s"),
        claimed_sweep(ResultsStore(behind), RUN_ID),
    ):
        pass
    monkeypatch.setattr(lease, "LASTS_S", 0.5)
    time.sleep(2)  # the service tells whole seconds
    with claimed_sweep(ResultsStore(behind), RUN_ID):
        assert [path.name for path in files.ages_s(folder, prefix)] != [f"{prefix}dead.lease"]
    assert "Process 7 on node-7, which measured this since noon, has not been heard of for" in caplog.text


@pytest.mark.parametrize("what", ["fails", "cuts"])
def test_a_record_that_cannot_be_uploaded_is_kept_elsewhere_and_uploaded_once_it_can_be(
    uri: str,
    illness: Illness,
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path))
    store = ResultsStore(uri)
    store.write_manifest(manifest_of(RUN_ID))
    keeper = RecordKeeper(store, manifest_of(RUN_ID))
    setattr(illness, what, True)
    keeper.keep(result_of("t-a"))
    keeper.finish_writing()
    assert "Measuring goes on; what cannot be written is kept also in" in caplog.text
    assert keeper.place.read(RUN_ID) == [result_of("t-a")]
    setattr(illness, what, False)
    assert ResultsStore(uri).read(RUN_ID) == [], "nothing torn is there"
    keeper.keep(result_of("t-b", minute=1))
    assert keeper.settle().read(RUN_ID) == [result_of("t-a"), result_of("t-b", minute=1)]
    assert store.read(RUN_ID) == keeper.settle().read(RUN_ID)


def test_of_two_that_measure_one_sweep_the_second_is_refused_and_may_once_the_first_has_ended(uri: str) -> None:
    first, second = ResultsStore(uri), ResultsStore(uri)
    with claimed_sweep(first, RUN_ID) as claim:
        with (
            pytest.raises(ResultsError, match=r"is being measured already, by process \d+ .*its claim ends in \d+ s"),
            claimed_sweep(second, RUN_ID),
        ):
            pass
        claim.renew()
        with claimed_sweep(second, f"{RUN_ID}.b"):
            pass
    with claimed_sweep(second, RUN_ID):
        pass


@pytest.mark.parametrize("read", [ResultsStore.run_ids, ResultsStore.check_writable])
def test_a_service_that_is_down_is_said_in_one_line_and_soon(read: object) -> None:
    store = ResultsStore("s3://k:secret@bucket/kv?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1")
    begun = time.monotonic()
    with pytest.raises((ResultsError, OutputError), match="the service cannot be reached") as caught:
        read(store)  # type: ignore[operator]
    assert "secret" not in str(caught.value)
    assert time.monotonic() - begun < 60, "its own attempts would take minutes"


def test_a_folder_in_a_bucket_that_is_not_there_is_not_taken_for_an_empty_one(options: str) -> None:
    with pytest.raises(ResultsError, match="there is no bucket 'nowhere'"):
        ResultsStore(f"s3://k:s@nowhere/kv?{options}").latest_run_id()


def test_files_are_named_so_that_another_command_finds_them(uri: str) -> None:
    paths = ResultsStore(uri).paths(RUN_ID)
    assert paths.shown(paths.best_plan).startswith("s3://b-")
    assert paths.shown(paths.best_plan).endswith(f"/kv/reports/{RUN_ID}/best_plan.json")
    assert "secret" not in paths.shown(paths.best_plan)


def test_a_plan_is_read_from_a_uri(uri: str) -> None:
    store = ResultsStore(uri)
    store.write_text(store.paths(RUN_ID).best_plan, '{"plan_version": 99}')
    with pytest.raises(PlanError, match=r"Plan 's3://b-[^@?]*' has plan_version 99"):
        load_plan_file(uri.replace("/kv?", f"/kv/reports/{RUN_ID}/best_plan.json?"))
    with pytest.raises(PlanError, match=r"Cannot read plan 's3://b-.*/kv/none.json': no such file") as caught:
        load_plan_file(uri.replace("/kv?", "/kv/none.json?"))
    assert "secret" not in str(caught.value)


def test_duckdb_reads_the_records_through_the_same_service(uri: str) -> None:
    import duckdb
    import pyarrow.dataset as ds

    store = ResultsStore(uri)
    for name in ("t-a", "t-b"):
        store.append(result_of(name))
    filesystem, root = open_uri(uri)
    trials = ds.dataset(f"{root}/trials", filesystem=filesystem, format="parquet")
    found = duckdb.sql("select trial_id from trials order by trial_id").fetchall()
    assert (found, trials.count_rows()) == ([("t-a",), ("t-b",)], 2)


def test_what_is_fetched_for_a_bucket_is_there_whole_and_leaves_nothing_in_the_cache(
    uri: str, illness: Illness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path))
    files = [RemoteFile(name=name, size=1, sha256="") for name in ("sweeps/r.json", "trials/run_id=r/t.parquet")]
    put_into: list[Path] = []

    def fetch() -> None:
        with destination(uri) as (folder, put):
            for one in files:
                (folder / one.name).parent.mkdir(parents=True, exist_ok=True)
                (folder / one.name).write_text(one.name[0])
            put_into.append(folder)
            illness.cuts = len(put_into) == 1
            put(files)

    with pytest.raises(OutputError, match="Cannot write 's3://"):
        fetch()
    assert (put_into[0] / "sweeps/r.json").is_file(), "a fetch that is repeated goes on from there"
    illness.cuts = False
    fetch()
    assert put_into[0] == put_into[1]
    assert not put_into[0].exists()
    there = ResultsFiles(uri)
    assert [there.read(there.root / one.name) for one in files] == [b"s", b"t"]


def test_the_endpoint_of_the_environment_is_used(uri: str, options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ResultsStore(uri).write_manifest(manifest_of(RUN_ID))
    host = options.split("=", 1)[1].split("&")[0]
    for name, value in (("ENDPOINT_URL", f"http://{host}"), ("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s")):
        monkeypatch.setenv(f"AWS_{name}", value)
    assert ResultsStore(uri.partition("?")[0].replace("k:secret@", "")).run_ids() == [RUN_ID]
