"""A results folder after a bad night: what is torn, foreign or newer is named and passed over, and nothing is deleted.

Asked as a user asks, with `kvray rank`, `report` and `tune --resume`; a traceback or an internal error fails.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DType
from kvray.cli.app import run
from kvray.record import Role, Run, TrialRecord, TrialResult, TrialStatus
from kvray.store.manifest import SweepManifest
from kvray.store.parquet import ResultsStore
from kvray.store.schema import VERSION_KEY
from kvray.workload import create_custom_profile

RUN_ID = "20260101-120000-abcd"
NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
OLD_RESULTS = Path(__file__).parents[1] / "assets" / "results_v1"
PROFILE = create_custom_profile(
    "damage", context_lengths=(8,), output_lengths=(3,), weight_ttft=0.4, weight_throughput=0.4, weight_memory=0.2
)
BASELINE, VICTIM = (
    Candidate(engine="fake", cache=cache, attention=AttentionBackend.SDPA, dtype=DType.FLOAT32)
    for cache in (CacheStrategy.DYNAMIC, CacheStrategy.STATIC)
)


def result_of(candidate: Candidate, *, ttft_ms: float) -> TrialResult:
    trial_id = f"000{int(candidate == VICTIM)}-{candidate.candidate_id}"
    record = TrialRecord.of(
        candidate,
        run_id=RUN_ID,
        trial_id=trial_id,
        role=Role.BASELINE if candidate == BASELINE else Role.SEARCH,
        model_id="fake:ok",
        profile=PROFILE.name,
        status=TrialStatus.OK,
        rung=2,
        started_at=NOON,
        ttft_ms=ttft_ms,
        decode_tok_s=50.0,
        peak_mib=100.0,
    )
    runs = tuple(
        Run(
            run_id=RUN_ID,
            trial_id=trial_id,
            candidate_id=record.candidate_id,
            context_tokens=8,
            output_tokens=3,
            batch_size=1,
            rung=2,
            repeat=repeat,
            ttft_ms=ttft_ms + repeat,
            itl_ms=(10.0, 30.0),
            decode_tok_s=50.0,
            peak_mib=100.0,
            started_at=NOON,
        )
        for repeat in range(3)
    )
    return TrialResult(record=record, runs=runs)


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """A command line shows warnings its own way; other tests do not want that."""
    logger = logging.getLogger("kvray")
    before = logger.handlers, logger.propagate
    yield
    logger.handlers, logger.propagate = before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sweep of a baseline and a victim, one file a trial, as a killed sweep leaves it."""
    store = ResultsStore(tmp_path / "results")
    store.write_manifest(
        SweepManifest(
            kvray_version="0.1.0",
            run_id=RUN_ID,
            created_at=NOON,
            model_id="fake:ok",
            model_revision="1",
            architecture="Fake",
            engine="fake",
            device="cpu",
            device_name="a CPU",
            profile=PROFILE,
            baseline_id=BASELINE.candidate_id,
            memory_note="made up",
            arguments=("fake:ok", "-o", "elsewhere", "--engine", "fake"),
        )
    )
    store.append(result_of(BASELINE, ttft_ms=100.0))
    store.append(result_of(VICTIM, ttft_ms=50.0))
    return tmp_path / "results"


def victim(folder: Path, table: str = "trials") -> Path:
    return folder / table / f"run_id={RUN_ID}" / f"0001-{VICTIM.candidate_id}.parquet"


def ranked(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, object], list[str]]:
    """What `kvray rank --json` prints of the winner and the trials, and the warnings."""
    code = run(["rank", str(folder), "--json"], verbose=False)
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "internal error" not in said.err
    printed = json.loads(said.out)
    winner = printed["winner"] and printed["winner"]["label"]
    return {"winner": winner, "trials": printed["trials"]}, said.err.splitlines()


def content_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*.parquet")) if path.is_file()}


def newer(path: Path) -> bytes:
    table = pq.ParquetFile(path).read()
    pq.write_table(table.replace_schema_metadata({VERSION_KEY: b"99"}), path)
    return path.read_bytes()


def foreign(path: Path) -> bytes:
    pq.write_table(pq.ParquetFile(path).read().replace_schema_metadata(None), path)
    return path.read_bytes()


DAMAGE: dict[str, Callable[[Path], bytes]] = {
    "empty": lambda path: b"",
    "torn": lambda path: path.read_bytes()[: path.stat().st_size // 2],
    "truncated by a byte": lambda path: path.read_bytes()[:-1],
    "zeroes": lambda path: bytes(path.stat().st_size),
    "text": lambda path: b"not Parquet at all",
    "of a newer schema": newer,
    "without kvray's metadata": foreign,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_trial_is_passed_over_with_a_warning_that_names_it(
    folder: Path, damage: Callable[[Path], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    path = victim(folder)
    path.write_bytes(damage(path))
    before = content_of(folder)
    found, said = ranked(folder, capsys)
    assert found == {"winner": "dynamic/sdpa/float32", "trials": {"ok": 1}}
    assert [line.startswith(f"kvray: warning: Skipped {path}: ") for line in said] == [True]

    ResultsStore(folder).compact(RUN_ID)
    assert path.read_bytes() == before[path], "compaction deletes nothing that it cannot read"
    assert ranked(folder, capsys)[0] == found


def test_damaged_raw_runs_leave_their_trial_listed_and_not_ranked(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = victim(folder, "runs")
    path.write_bytes(b"PAR1")
    found, said = ranked(folder, capsys)
    assert found == {"winner": "dynamic/sdpa/float32", "trials": {"ok": 2}}
    assert said[0].startswith(f"kvray: warning: Skipped {path}: ")
    assert said[1:] == [
        "kvray: warning: The raw runs of 1 trial are missing or cannot be read, so it is in no figure. "
        f"Measure it again with kvray tune fake:ok --engine fake --output {folder} --resume {RUN_ID}"
    ]


@pytest.mark.parametrize("command", ["rank", "report"])
def test_without_any_raw_runs_that_is_given_as_the_reason_with_the_command_that_measures_them(
    folder: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder / "runs")
    assert run([command, str(folder)], verbose=False) == 0
    (said,) = capsys.readouterr().err.splitlines()
    assert said == (
        "kvray: warning: The raw runs of 2 trials are missing or cannot be read, so they are in no figure. "
        f"Measure them again with kvray tune fake:ok --engine fake --output {folder} --resume {RUN_ID}"
    )
    assert run(["report", str(folder)], verbose=False) == 0
    report = (folder / "reports" / RUN_ID / "report.md").read_text(encoding="utf-8")
    assert "of 2 launched trials, 2 lost their raw runs, which are missing or cannot be read." in report
    assert f"Repeat the kvray tune command with --resume {RUN_ID} to measure them again." in report
    assert "not every cell" not in report


def test_reports_are_written_anew_from_what_is_left(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = victim(folder)
    path.write_bytes(b"torn")
    assert run(["report", str(folder)], verbose=False) == 0
    assert f"Skipped {path}: " in capsys.readouterr().err
    report = (folder / "reports" / RUN_ID / "report.md").read_text(encoding="utf-8")
    assert "static/sdpa/float32" not in report


def test_where_nothing_can_be_read_that_is_said_and_good_reports_stay(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = ResultsStore(folder).paths(RUN_ID).report_markdown
    good.parent.mkdir(parents=True)
    good.write_text("good")
    for path in content_of(folder):
        path.write_bytes(b"torn")
    for command in ("rank", "report"):
        assert run([command, str(folder)], verbose=False) == 10
        *skipped, last = capsys.readouterr().err.splitlines()
        assert len(skipped) == 4
        assert last == (
            f"kvray: Sweep {RUN_ID!r} in {str(folder)!r} has no record of a trial that was launched: it still "
            "runs or was interrupted before the first trial had finished, or files are damaged or gone. If it does not "
            f"run any more, repeat the kvray tune command with --resume {RUN_ID} to measure it."
        )
    assert good.read_text() == "good"


def test_a_flipped_bit_never_changes_a_figure(folder: Path) -> None:
    """Wherever it is: in a page, which has a checksum, or in the footer, which has none."""
    path = victim(folder)
    whole = path.read_bytes()
    right = result_of(VICTIM, ttft_ms=50.0).record
    store, draw = ResultsStore(folder), random.Random(1)
    names = [place.start() for place in re.finditer(rb"decode_tok_s|ttft_ms", whole)]
    assert len(names) > 4
    for place in (*names, *(draw.randrange(len(whole)) for _ in range(80))):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        read = [one.record for one in store.read(RUN_ID) if one.record.candidate_id == VICTIM.candidate_id]
        assert read in ([], [right]), f"a bit flipped at byte {place}"


def test_folders_pipes_and_leftovers_called_like_records_are_none(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (victim(folder).parent / "folder.parquet").mkdir()
    os.mkfifo(victim(folder).parent / "pipe.parquet")
    (victim(folder).parent / "gone.parquet").symlink_to("nowhere")
    partial = folder / ".partial" / f"trials.run_id={RUN_ID}~0002-x.parquet.0123"
    partial.write_bytes(b"half of a fi")
    found, said = ranked(folder, capsys)
    assert (found["trials"], said) == ({"ok": 2}, [])
    assert partial.exists(), "reading deletes nothing; whoever writes may be at it"


@pytest.fixture
def unreadable(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The victim may not be read; root, who may read everything, drops its privileges meanwhile."""
    path = victim(folder)
    path.chmod(0)
    opened = [one for one in (folder, *folder.parents) if one.stat().st_mode & 0o005 != 0o005]
    modes = [one.stat().st_mode for one in opened]
    for one in opened:
        one.chmod(0o755)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield path
    finally:
        if is_root:
            os.seteuid(0)
        for one, mode in zip(opened, modes, strict=True):
            one.chmod(mode)


def test_a_file_that_may_not_be_read_is_named_with_the_reason(
    unreadable: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, said = ranked(folder, capsys)
    assert found["trials"] == {"ok": 1}
    assert len(said) == 1
    assert str(unreadable) in said[0]
    assert "Permission denied" in said[0]


# Folders that were merged by hand


def test_a_file_of_another_sweep_is_named_and_changes_no_figure(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Copied as whoever merges two results folders does it; the other one measured the same candidates slower."""
    paths = ResultsStore(folder).paths(RUN_ID)
    ResultsStore(folder).compact(RUN_ID)
    before = ranked(folder, capsys)[0]
    for table in (paths.trials, paths.runs):
        rows = pq.ParquetFile(table / "part-0.parquet").read()
        other = pa.array(["20260202-120000-beef"] * rows.num_rows).dictionary_encode()
        place = rows.schema.get_field_index("run_id")
        pq.write_table(rows.set_column(place, rows.schema.field("run_id"), other), table / "part-1.parquet")
    content = content_of(folder)
    found, said = ranked(folder, capsys)
    assert found == before
    why = "it holds records of another sweep, '20260202-120000-beef'."
    assert sorted(said) == [
        f"kvray: warning: Skipped {table / 'part-1.parquet'}: {why}" for table in (paths.runs, paths.trials)
    ]
    ResultsStore(folder).compact(RUN_ID)
    assert content_of(folder) == content


def test_a_name_that_is_not_utf_8_does_not_hide_the_records_beside_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (victim(folder).parent, folder / "sweeps"):
        for suffix in (b".parquet", b".json"):
            Path(os.fsdecode(os.fsencode(place) + b"/\xff\xfe" + suffix)).write_bytes(b"x")
    found, said = ranked(folder, capsys)
    assert found["trials"] == {"ok": 2}
    assert len(said) == 2
    assert all(line.startswith("kvray: warning: Skipped ") and "\\xff\\xfe." in line for line in said)


# Manifests


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"run_id": 7}'])
@pytest.mark.parametrize("command", ["rank", "report", "tune"])
def test_a_torn_manifest_is_one_clear_error_that_names_the_sweep(
    folder: Path, command: str, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "sweeps" / f"{RUN_ID}.json").write_bytes(content)
    resume = ["tune", "fake:ok", "--engine", "fake", "--output", str(folder), "--resume", RUN_ID]
    before = content_of(folder)
    code = run(resume if command == "tune" else [command, str(folder), "--run", RUN_ID], verbose=False)
    (said,) = capsys.readouterr().err.splitlines()
    assert code == 10
    assert said.startswith(f"kvray: The manifest of sweep '{RUN_ID}' is not ")
    assert content_of(folder) == before


def test_a_sweep_with_a_torn_manifest_does_not_hide_the_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = folder / "sweeps" / "20260202-120000-torn.json"
    torn.write_bytes(b"{")
    found, said = ranked(folder, capsys)
    assert found["trials"] == {"ok": 2}
    assert [line.startswith(f"kvray: warning: Skipped {torn}: ") for line in said] == [True]


# Older kvrays


def test_a_folder_of_an_older_kvray_is_ranked_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(OLD_RESULTS, tmp_path / "old")
    found, said = ranked(tmp_path / "old", capsys)
    assert (found["trials"], said) == ({"ok": 1, "oom": 1}, [])
    assert run(["report", str(tmp_path / "old")], verbose=False) == 0
