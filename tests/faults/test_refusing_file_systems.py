"""Results folders on file systems that refuse what local disks offer: network shares, mounts in user space."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from drivers import FAKE, recorded

from kvray.record import TrialStatus

SOURCE = Path(__file__).parent / "refusing.c"
ENOTSUPP = 524
"""An error number inside the kernel that reaches programs all the same."""
NO_FOLDER_SYNC = "it cannot sync folders: a power cut may cost the last records."
NO_FILE_SYNC = "it cannot sync files: a power cut may cost the last records."
NO_RENAME = "it cannot rename files: a record that is being written when kvray is killed is lost."
NO_LOCKS = "its file system has no locks: nothing keeps another kvray from resuming this sweep meanwhile."

TRY_EACH = """
import json, logging, os, shutil, sys
from pathlib import Path
from kvray.errors import KvrayError
from kvray.store.claim import claimed_sweep
from kvray.store.files import ResultsFiles
from kvray.store.parquet import ResultsStore

said = []

class Said(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())

logging.getLogger("kvray").addHandler(Said())
root = Path(os.environ["REFUSE_UNDER"])
for variable, number in json.loads(sys.argv[1]):
    said.clear()
    os.environ[variable] = str(number)
    files = ResultsFiles(root)
    path = root / "trials" / "run_id=a" / "a.parquet"
    try:
        files.check_writable()
        for data in (b"one", b"two"):
            files.write(path, data)
        with claimed_sweep(ResultsStore(root), "a"):
            pass
        end = files.read(path).decode()
    except KvrayError as error:
        end = str(error)
    del os.environ[variable]
    left = sorted(one.name for one in root.rglob("*") if one.is_file())
    print(json.dumps([end, [text.partition(": ")[2] for text in said], left]))
    shutil.rmtree(root)
"""


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that refuses."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("refusing") / "refusing.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return library


Outcome = tuple[str, list[str], list[str]]


def outcomes(library: Path, folder: Path, refusals: list[tuple[str, int]]) -> list[Outcome]:
    """What writing and claiming came to under each of `refusals`: what was read back, the warnings, the files left."""
    done = subprocess.run(
        [sys.executable, "-c", TRY_EACH, json.dumps(refusals)],
        env={**os.environ, "LD_PRELOAD": str(library), "REFUSE_UNDER": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


WRITTEN = ["a.parquet"]
WORKS = {
    ("REFUSE_FOLDER_FSYNC", errno.EINVAL): NO_FOLDER_SYNC,
    ("REFUSE_FOLDER_FSYNC", errno.ENOTSUP): NO_FOLDER_SYNC,
    ("REFUSE_FOLDER_FSYNC", errno.EBADF): NO_FOLDER_SYNC,
    ("REFUSE_FOLDER_OPEN", errno.EACCES): NO_FOLDER_SYNC,
    ("REFUSE_FOLDER_OPEN", errno.EISDIR): NO_FOLDER_SYNC,
    ("REFUSE_FILE_FSYNC", errno.EINVAL): NO_FILE_SYNC,
    ("REFUSE_FILE_FSYNC", ENOTSUPP): NO_FILE_SYNC,
    ("REFUSE_RENAME", errno.ENOSYS): NO_RENAME,
    ("REFUSE_RENAME", errno.EPERM): NO_RENAME,
    ("REFUSE_ACROSS", errno.EXDEV): None,  # a temporary file beside the target is as good
    ("REFUSE_FLOCK", ENOTSUPP): NO_LOCKS,
    ("REFUSE_FLOCK", errno.EBADF): NO_LOCKS,
    ("REFUSE_FLOCK", errno.ENOLCK): NO_LOCKS,
    ("REFUSE_FLOCK", errno.ENOSYS): NO_LOCKS,
    ("REFUSE_FLOCK", errno.EOPNOTSUPP): NO_LOCKS,
}


def test_what_a_file_system_does_not_offer_costs_a_warning_and_no_record(refusing: Path, tmp_path: Path) -> None:
    found = outcomes(refusing, tmp_path / "out", list(WORKS))
    for (refusal, warning), (read, said, left) in zip(WORKS.items(), found, strict=True):
        assert (read, left) == ("two", WRITTEN), refusal
        assert said == ([] if warning is None else [warning]), refusal


def test_what_a_failing_disk_says_is_an_error_as_before(refusing: Path, tmp_path: Path) -> None:
    calls = ("REFUSE_FOLDER_FSYNC", "REFUSE_FILE_FSYNC", "REFUSE_RENAME", "REFUSE_FLOCK")
    for end, said, _ in outcomes(refusing, tmp_path / "out", [(call, errno.EIO) for call in calls]):
        assert end.startswith("Cannot write")
        assert "Input/output error" in end
        assert said == []


def test_a_lock_that_is_anothers_is_not_taken_for_none(refusing: Path, tmp_path: Path) -> None:
    numbers = (errno.EAGAIN, errno.EACCES)  # the latter on CIFS
    for end, _, _ in outcomes(refusing, tmp_path / "out", [("REFUSE_FLOCK", number) for number in numbers]):
        assert end.startswith("Sweep 'a' is being measured already")


@pytest.mark.slow
def test_a_sweep_on_a_file_system_that_refuses_all_of_it_is_measured(refusing: Path, tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    refused = {"FOLDER_FSYNC": errno.EINVAL, "FLOCK": ENOTSUPP, "RENAME": errno.ENOSYS}
    refusals = {f"REFUSE_{call}": str(number) for call, number in refused.items()}
    command = ("tune", "fake:ok", *FAKE, "--search", "grid", "--confirm", "0", "--cache", "dynamic")
    done = subprocess.run(
        [sys.executable, "-m", "kvray", *command, "--output", str(share / "out")],
        env={
            **os.environ,
            "LD_PRELOAD": str(refusing),
            "REFUSE_UNDER": str(share),
            **refusals,
            "KVRAY_CACHE": str(share / "cache"),
            "COLUMNS": "200",
            "NO_COLOR": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    for words in (NO_FOLDER_SYNC, NO_RENAME, NO_LOCKS):
        assert [line.startswith("kvray: warning: Results folder") for line in said if words in line] == [True], words
    assert sum("lies on a file system without locks: what is compiled is not kept." in line for line in said) == 1
    assert {one.record.status for one in recorded(share / "out").values()} == {TrialStatus.OK}
