"""One real sweep in which nearly every trial goes wrong in a way of its own, and the others must not notice."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from drivers import FAKE

from kvray.record import Phase, TrialRecord, TrialStatus
from kvray.store.parquet import ResultsStore

COMMANDS = {
    "dynamic/eager/f": "raise",
    "dynamic/eager/b": "segv@load",
    "dynamic/sdpa/b": "children+daemon+files+shm+thread",
    "dynamic/sdpa_math/f": "daemon+kill",
    "dynamic/sdpa_math/b": "deaf+children+gil",
    "static/eager/f": "rlimit",
    "static/eager/b": "garbage",
    "static/sdpa/f": "exit",
    "static/sdpa/b": "unsupported@load",
    "static/sdpa_math/f": "stopped@load",
}
"""Two of the twelve candidates are told nothing: `dynamic/sdpa/f`, which is the baseline, and `static/sdpa_math/b`."""
LINE = (*FAKE, "--search", "grid", "--confirm", "0", "--timeout", "2")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, TrialRecord]]:
    """By label. Also checks that nothing is left of the sweep's processes, files and shared memory."""
    folder, short = tmp_path_factory.mktemp("results"), tempfile.TemporaryDirectory(prefix="kv-")
    scratch = Path(short.name)  # Ray's sockets have names of a hundred characters at most
    model = "fake:" + ",".join(f"{where}={how}" for where, hows in COMMANDS.items() for how in hows.split("+"))
    before, shared_before = set(psutil.pids()), shared_memory()
    done = subprocess.run(
        [sys.executable, "-m", "kvray", "tune", model, *LINE, "--output", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "TMPDIR": str(scratch), "COLUMNS": "120"},
    )
    assert done.returncode == 0, done.stderr
    store = ResultsStore(folder)
    found = [one.record for one in store.read(store.latest_run_id())]
    assert len(found) == 12
    yield {record.candidate.label: record for record in found}
    assert [path for path in scratch.rglob("*") if path.name in ("file", "daemon.pid")] == []
    assert shared_memory() <= shared_before
    assert [pid for pid in set(psutil.pids()) - before if is_ours(pid, scratch)] == []
    short.cleanup()


def shared_memory() -> set[str]:
    """What Python programs make; Ray's own is not a trial's."""
    return {path.name for path in Path("/dev/shm").glob("psm_*")}


def is_ours(pid: int, scratch: Path) -> bool:
    try:
        process = psutil.Process(pid)
        is_marked = bool(process.environ().get("TMPDIR", "").startswith(str(scratch)))
        return is_marked and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@pytest.mark.parametrize(
    ("label", "status", "phase", "message"),
    [
        ("dynamic/sdpa/float32", TrialStatus.OK, None, None),
        ("static/sdpa_math/bfloat16", TrialStatus.OK, None, None),
        ("dynamic/sdpa/bfloat16", TrialStatus.OK, None, None),
        ("dynamic/eager/float32", TrialStatus.ERROR, Phase.WARMUP, "RuntimeError: told to raise"),
        ("dynamic/eager/bfloat16", TrialStatus.CRASHED, Phase.LOAD, "killed by SIGSEGV"),
        ("dynamic/sdpa_math/float32", TrialStatus.CRASHED, Phase.WARMUP, "killed by SIGKILL"),
        ("dynamic/sdpa_math/bfloat16", TrialStatus.TIMEOUT, Phase.WARMUP, "no end of phase warmup within 2 s; killed"),
        ("static/eager/float32", TrialStatus.OOM, Phase.WARMUP, "Unable to allocate 2.00 GiB"),
        ("static/eager/bfloat16", TrialStatus.CRASHED, Phase.WARMUP, "the process wrote b"),
        ("static/sdpa/float32", TrialStatus.CRASHED, Phase.WARMUP, "exited with code 7 without a word"),
        ("static/sdpa/bfloat16", TrialStatus.UNSUPPORTED, Phase.LOAD, "told to be unsupported"),
        ("static/sdpa_math/float32", TrialStatus.TIMEOUT, Phase.LOAD, "no end of phase load within 2 s; killed"),
    ],
)
def test_every_candidate_ends_in_its_one_true_status(
    records: dict[str, TrialRecord], label: str, status: TrialStatus, phase: Phase | None, message: str | None
) -> None:
    record = records[label]
    assert (record.status, record.phase) == (status, phase)
    assert record.message == message if message is None else str(record.message).startswith(message)
    assert (record.rung == 2) is (status is TrialStatus.OK)


def test_the_last_words_of_a_failure_are_in_its_record(records: dict[str, TrialRecord]) -> None:
    assert records["static/sdpa/float32"].log_tail == "last words"
    assert str(records["dynamic/eager/float32"].log_tail).startswith("Traceback")
    assert records["dynamic/sdpa/float32"].log_tail is None
