"""The real command line in places that are not as it would like them: it works, or says in one line why not."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from busy_machine import other_lines

from kvray.record import TrialRecord, TrialStatus
from kvray.store.parquet import ResultsStore

Environment = dict[str, str]
Done = subprocess.CompletedProcess[bytes]
SMALL = ("--device", "cpu", "--context", "16", "--output-len", "4", "--repeats", "1", "--search", "grid")
NARROW = ("--confirm", "0", "--cache", "dynamic", "--dtype", "float32", "--attention", "sdpa")
FAKE = ("fake:ok", "--engine", "fake", *SMALL, *NARROW)
TINY = (f"random:{Path(__file__).parent.parent / 'assets' / 'tiny_llama'}", *SMALL, *NARROW, "--no-check-snippet")

CLOSED = """
mount --bind "$1" "$1" && mount -o remount,ro,bind "$1"
mount -t tmpfs -o size=64k tmpfs /dev/shm
shift
exec "$@"
"""
"""Makes the folder $1 read-only and leaves no space in /dev/shm, then runs the rest."""
WITHOUT_NAME = ("setpriv", "--reuid=4012345", "--regid=4012345", "--clear-groups")
SEE_ALL = ("--inh-caps=+dac_override,+dac_read_search", "--ambient-caps=+dac_override,+dac_read_search")
"""For a user whom nobody knows, who yet may read an interpreter below root's home."""


def works(*command: str) -> bool:
    return shutil.which(command[0]) is not None and _run(command).returncode == 0


def _run(command: tuple[str, ...]) -> Done:
    return subprocess.run(command, capture_output=True, check=False, timeout=240)


def run_kvray(
    *arguments: str | Path, before: tuple[str, ...] = (), without: str = "", environment: Environment | None = None
) -> Done:
    own = {"COLUMNS": "120", "HF_HUB_OFFLINE": "1", **(environment or {})}
    line = [*before, sys.executable, "-m", "kvray", *map(str, arguments)]
    surroundings = {name: value for name, value in os.environ.items() if name != without}
    return subprocess.run(line, capture_output=True, check=False, env={**surroundings, **own})


def records_in(folder: Path) -> list[TrialRecord]:
    store = ResultsStore(folder)
    return [one.record for one in store.read(store.latest_run_id())]


def check_swept(folder: Path) -> TrialRecord:
    """All went well, and the plan is UTF-8 and JSON."""
    (record,) = records_in(folder)
    assert record.status is TrialStatus.OK
    assert record.ttft_ms is not None
    assert 0.01 < record.ttft_ms < 10_000
    (plan,) = (folder / "reports").glob("*/best_plan.json")
    assert json.loads(plan.read_text(encoding="utf-8"))["winner"]
    (report,) = (folder / "reports").glob("*/report.html")
    assert not report.read_text(encoding="utf-8").isascii()
    return record


def only_line(done: Done) -> str:
    (line,) = other_lines(done.stderr.decode())
    assert done.stdout == b""
    return line


@pytest.fixture(scope="module")
def decimal_comma(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A German locale that every Python process sets at its start, as some libraries do."""
    if shutil.which("localedef") is None:
        pytest.skip("localedef is not installed")
    folder = tmp_path_factory.mktemp("locales")
    made = _run(("localedef", "-i", "de_DE", "-f", "UTF-8", str(folder / "de_DE.UTF-8")))
    if made.returncode > 1:
        pytest.skip(f"no German locale can be made here: {made.stderr.decode()}")
    (folder / "sitecustomize.py").write_text(
        "import locale\nlocale.setlocale(locale.LC_ALL, '')\nassert locale.localeconv()['decimal_point'] == ','\n"
    )
    path = os.pathsep.join([str(folder), *sys.path])
    return {"LOCPATH": str(folder), "LC_ALL": "de_DE.UTF-8", "PYTHONPATH": path}


@pytest.fixture(scope="module")
def closed() -> Iterator[tuple[Path, tuple[str, ...]]]:
    """A folder, and what makes it read-only and leaves no space in /dev/shm for the command behind it."""
    if os.getuid() != 0 or not works("unshare", "-m", "true"):
        pytest.skip("mount namespaces need root")
    with tempfile.TemporaryDirectory(prefix="kv-") as folder:  # in a long one Ray's sockets would not be
        yield Path(folder), ("unshare", "-m", "bash", "-c", CLOSED, "bash", folder)


@pytest.mark.slow  # a whole sweep
def test_a_sweep_works_with_decimal_commas_a_read_only_home_and_no_shared_memory(
    decimal_comma: Environment, closed: tuple[Path, tuple[str, ...]], tmp_path: Path
) -> None:
    home, before = closed
    done = run_kvray(
        "tune", *FAKE, "--output", tmp_path, before=before, environment={"HOME": str(home), **decimal_comma}
    )
    assert done.returncode == 0, done.stderr
    assert list(home.iterdir()) == []
    check_swept(tmp_path)
    shown = done.stderr.decode()
    assert re.search(r"TTFT \d+\.\d+ ms", shown)
    assert f"warning: The cache folder {home}/.cache/kvray cannot be written, so quality is measured only" in shown


@pytest.mark.slow
def test_a_log_that_nobody_reads_and_a_full_output_stop_no_measurement(tmp_path: Path) -> None:
    line = shlex.join([sys.executable, "-m", "kvray", "tune", *FAKE, "--output", str(tmp_path / "out")])
    shell = f"{{ {line} 2>&1 >/dev/full; echo $? >{tmp_path}/code; }} | head -1"
    subprocess.run(["bash", "-c", shell], capture_output=True, check=True, timeout=120)
    assert (tmp_path / "code").read_text() == "7\n", "the ranking was lost"
    check_swept(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("reports/*/best_plan.json"))) == 1


@pytest.mark.parametrize(
    ("redirected", "code", "text"),
    [
        ("profiles | head -1", 0, ""),
        ("profiles >/dev/full", 7, "kvray: Cannot write to standard output: No space left on device.\n"),
        ("profiles 2>&- >&-", 0, ""),
        ("rank nowhere 2>/dev/full", 10, ""),
        ("rank nowhere 2>&1 >&-", 10, ""),
    ],
)
def test_a_command_minds_no_stream_but_the_one_it_prints_to(redirected: str, code: int, text: str) -> None:
    line = f"{shlex.quote(sys.executable)} -m kvray {redirected}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, done.stderr) == (code, text)


@pytest.mark.slow
def test_a_real_model_is_measured_with_decimal_commas_and_a_read_only_home(
    decimal_comma: Environment, closed: tuple[Path, tuple[str, ...]], tmp_path: Path
) -> None:
    home, before = closed
    done = run_kvray(
        "tune", *TINY, "--output", tmp_path, before=before, environment={"HOME": str(home), **decimal_comma}
    )
    assert done.returncode == 0, done.stderr
    record = check_swept(tmp_path)
    assert "OSError: [Errno 30]" in str(record.quality_note)  # the rest is German


@pytest.fixture(scope="module")
def swept_in_ascii(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A sweep in a terminal of the C locale, by a user whose home does not exist."""
    folder = tmp_path_factory.mktemp("ascii")
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "HOME": str(folder / "nowhere")}
    return folder, run_kvray("tune", *FAKE, "--output", folder / "results", environment=environment)


@pytest.mark.slow
def test_a_terminal_without_unicode_shows_plain_signs_and_the_files_are_utf8(swept_in_ascii: tuple[Path, Done]) -> None:
    folder, done = swept_in_ascii
    assert done.returncode == 0, done.stderr
    shown = done.stderr.decode("ascii")
    assert re.search(r"^ok +dynamic/sdpa/float32 - TTFT ", shown, re.MULTILINE)
    assert "dynamic/sdpa/float32" in done.stdout.decode("ascii")
    check_swept(folder / "results")


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_ranking_can_be_shown_in_any_encoding(swept_in_ascii: tuple[Path, Done], encoding: str) -> None:
    done = run_kvray("rank", swept_in_ascii[0] / "results", environment={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    assert "dynamic/sdpa/float32" in done.stdout.decode(encoding)


def test_a_user_without_any_home_is_told_to_name_one(tmp_path: Path) -> None:
    if os.getuid() != 0 or not works(*WITHOUT_NAME, *SEE_ALL, "true"):
        pytest.skip("another user can only be had as root")
    done = run_kvray("tune", *FAKE, "--output", tmp_path, before=(*WITHOUT_NAME, *SEE_ALL), without="HOME")
    assert done.returncode == 11
    assert only_line(done) == (
        "kvray: Ray needs a home folder: HOME is not set, and this user has no entry in the system's list of users. "
        "Set HOME to a folder that can be written."
    )


@pytest.fixture
def long_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kv-" + "x" * 100) as folder:
        yield Path(folder)


@pytest.mark.slow  # a whole sweep
def test_a_temporary_folder_too_long_for_sockets_works_all_the_same(long_folder: Path, tmp_path: Path) -> None:
    done = run_kvray("tune", *FAKE, "--output", tmp_path / "results", environment={"TMPDIR": str(long_folder)})
    assert done.returncode == 0, done.stderr
    assert list(long_folder.iterdir()) == [], "nothing is left there"


def test_a_read_only_temporary_folder_is_told_with_a_way_out(
    closed: tuple[Path, tuple[str, ...]], tmp_path: Path
) -> None:
    folder, before = closed
    done = run_kvray("tune", *FAKE, "--output", tmp_path, before=before, environment={"RAY_TMPDIR": str(folder)})
    assert done.returncode == 11
    assert re.match(r"kvray: Ray cannot start: .*Read-only file system.*\. Ray needs a folder", only_line(done))
