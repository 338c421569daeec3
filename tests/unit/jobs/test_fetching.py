"""Results that are brought home. In place of a cluster, the test runs the program that sends them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from kvray.errors import OutputError, ResultsError
from kvray.jobs.client import Job, JobServer, JobState
from kvray.jobs.fetching import RemoteFile, fetch_results
from kvray.jobs.package import shown_size
from kvray.jobs.sender import files_of, listing, stream

RUN = "r1"


class Cluster:
    """Sends what lies in a folder; `before` is called ahead of each part."""

    address = "http://head:8265"

    def __init__(self, root: Path, before: Callable[[], None] = lambda: None) -> None:
        self.root, self.before, self.parts, self._log = root, before, 0, ""

    def submit(self, *, entrypoint: str, folder: Path, node: str | None) -> str:
        self.before()
        self.parts += 1
        request = json.loads((folder / "request.json").read_text())
        files = listing(self.root, files_of(self.root, request["run_id"]))
        data = stream(self.root, files, request["start"], request["most"])
        self._log = "\n".join([json.dumps({"files": files}), base64.b64encode(data).decode(), "end"])
        return "job"

    def wait(self, job_id: str, *, within_s: float) -> Job:
        return Job(
            job_id=job_id,
            state=JobState.SUCCEEDED,
            command="",
            started=None,
            ended=None,
            exit_code=0,
            message="",
            node=None,
        )

    def log(self, job_id: str) -> str:
        return self._log


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """The results on the cluster."""
    for number in range(3):
        put(tmp_path / "there", f"trials/run_id={RUN}/t{number}.parquet", f"trial {number}" * 10)
    put(tmp_path / "there", f"sweeps/{RUN}.json", "{}")
    return tmp_path / "there"


def fetch(cluster: Cluster, folder: Path, part_bytes: int = 50) -> tuple[RemoteFile, ...]:
    server = cast(JobServer, cluster)
    return fetch_results(
        server, folder, results="r", run_id=RUN, node=None, tell=lambda *_: None, part_bytes=part_bytes
    )


def content(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file() and ".partial" not in path.parts)
    return {path.relative_to(root).as_posix(): path.read_text() for path in files}


def test_all_comes_in_parts_and_a_second_time_nothing(there: Path, tmp_path: Path) -> None:
    cluster, home = Cluster(there), tmp_path / "home"
    fetch(cluster, home)
    assert content(home) == content(there)
    parts = cluster.parts
    assert parts > 1
    fetch(cluster, home)
    assert cluster.parts == parts + 1


def test_results_that_change_once_come_anew_and_whole(there: Path, tmp_path: Path) -> None:
    def change() -> None:
        if cluster.parts == 1:
            put(there, f"reports/{RUN}/report.html", "done")

    cluster = Cluster(there, before=change)
    fetch(cluster, tmp_path / "home")
    assert content(tmp_path / "home") == content(there)


def test_results_that_change_all_the_time_are_given_up(there: Path, tmp_path: Path) -> None:
    def change() -> None:
        put(there, f"trials/run_id={RUN}/t{cluster.parts + 3}.parquet", "another trial")
        assert cluster.parts < 100

    cluster = Cluster(there, before=change)
    with pytest.raises(ResultsError, match=r"faster than they come\. Repeat the command when the job has ended"):
        fetch(cluster, tmp_path / "home")


def test_what_had_come_is_not_taken_for_all_when_the_sweep_has_gone_on_since(there: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "trials").touch()  # nothing can be put there
    with pytest.raises(OutputError, match="What has come is kept"):
        fetch(Cluster(there), home)
    (home / "trials").unlink()
    put(there, f"reports/{RUN}/report.html", "done")
    fetch(Cluster(there), home)
    assert content(home) == content(there)


def test_a_folder_that_cannot_be_written_is_said_to_be_that(there: Path, tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    with pytest.raises(OutputError, match=r"Cannot write to '.*home'"):
        fetch(Cluster(there), tmp_path / "home")


def test_trials_that_were_merged_since_the_last_fetch_are_not_there_twice(there: Path, tmp_path: Path) -> None:
    home, trials = tmp_path / "home", Path("trials") / f"run_id={RUN}"
    fetch(Cluster(there), home)
    (home / trials / "t1.parquet").write_text("the user's own")
    (home / trials / "mine.parquet").write_text("another of the user's own")
    for path in (there / trials).iterdir():
        path.unlink()
    put(there, f"{trials}/part-0.parquet", "all trials")
    fetch(Cluster(there), home)
    assert {path.name for path in (home / trials).iterdir()} == {"part-0.parquet", "t1.parquet", "mine.parquet"}


@pytest.mark.parametrize(
    ("size", "shown"), [(0, "0 KiB"), (1, "1 KiB"), (2**20 - 1, "1024 KiB"), (2**20, "1.0 MiB"), (2**30, "1,024.0 MiB")]
)
def test_a_size_is_shown_so_that_little_is_not_nothing(size: int, shown: str) -> None:
    assert shown_size(size) == shown
