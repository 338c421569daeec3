"""`ResultsPaths`: where everything of one sweep lies under a results folder, and which ids may name files there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kvray.errors import InvalidValueError

SWEEPS = "sweeps"
BATCHES = "batches"
PARTIAL = ".partial"
"""Folder of what is being written, and of locks. It is hidden because readers of Parquet scan folders."""
PART = "part-0.parquet"
"""What a sweep is merged into when it ends. While it runs, the files of its trials are merged into `part-1.parquet` and
so on."""
NOT_LAUNCHED = "not_launched"
BESIDE = "+"
"""Parts a trial's id from a number, where a file of another sweep lies under the name that is this trial's."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_RESERVED = re.compile(rf"part-\d+|{NOT_LAUNCHED}(-\d+)?")
_BATCH_ID = "batch-"
_PART_FILE = re.compile(r"part-(\d{1,9})\.parquet")


def check_id(value: str, *, what: str = "run id") -> str:
    """`value`, if it may name a run or a trial: it becomes a part of file names and a Hive partition.

    All digits are refused because readers of Hive partitions take them for a number and `run_id` for an integer column.

    Raises:
        InvalidValueError: it is not of that form.
    """
    if not _ID.fullmatch(value) or value.isdigit() or _RESERVED.fullmatch(value):
        raise InvalidValueError(
            f"Invalid {what} {value!r}.",
            hint="Use up to 80 letters, digits, '.', '_' or '-', starting with a letter or digit, not digits alone.",
        )
    return value


def run_id_in_batch(batch_id: str, number: int) -> str:
    """Run id of the sweep of that number, from 1 on."""
    return f"{batch_id.removeprefix(_BATCH_ID)}-{number:02d}"


def batch_of_run(run_id: str) -> str:
    """Id of the batch that has given a sweep its `run_id`."""
    return f"{_BATCH_ID}{run_id.rpartition('-')[0]}"


def part_number(path: Path) -> int | None:
    """The number of a merged file; `None` for others."""
    match = _PART_FILE.fullmatch(path.name)
    return int(match[1]) if match else None


def part_file(folder: Path, number: int) -> Path:
    """The merged file with that number."""
    return folder / f"part-{number}.parquet"


def not_launched_files(folder: Path) -> list[Path]:
    """Names for the file of trials that were never launched; a later one only where those before cannot be read."""
    return [folder / f"{NOT_LAUNCHED}{suffix}.parquet" for suffix in ("", *(f"-{number}" for number in range(1, 100)))]


@dataclass(frozen=True)
class ResultsPaths:
    """The paths of one sweep. In an object store they are keys (bucket first) that only `ResultsStore` can open.

    Args:
        hardware: digest of the hardware whose reports are meant, where that is not the one with the sweep's plan.
        shown_root: URI of the results folder without credentials, where that is in an object store.

    Raises:
        InvalidValueError: `run_id` cannot name files.
    """

    root: Path
    run_id: str
    hardware: str | None = None
    shown_root: str = ""

    def __post_init__(self) -> None:
        check_id(self.run_id)

    def shown(self, path: Path) -> str:
        """One of these paths as a user can give it to another command."""
        if not self.shown_root:
            return str(path)
        return "/".join((self.shown_root.rstrip("/"), *path.relative_to(self.root).parts))

    @property
    def trials(self) -> Path:
        """Folder of the trial rows: one Parquet file a trial, merged now and then and when the sweep ends."""
        return self.root / "trials" / f"run_id={self.run_id}"

    @property
    def runs(self) -> Path:
        """Folder of the raw runs, with the same file names as `trials`."""
        return self.root / "runs" / f"run_id={self.run_id}"

    @property
    def manifest(self) -> Path:
        """The sweep's manifest (JSON)."""
        return self.root / SWEEPS / f"{self.run_id}.json"

    @property
    def reports(self) -> Path:
        """Folder of what is derived from the records, and the log."""
        folder = self.root / "reports" / self.run_id
        return folder if self.hardware is None else folder / f"hardware-{check_id(self.hardware, what='hardware')}"

    @property
    def best_plan(self) -> Path:
        """The plan (JSON)."""
        return self.reports / "best_plan.json"

    @property
    def optimized_config(self) -> Path:
        """The snippet that applies the winner (Python)."""
        return self.reports / "optimized_config.py"

    @property
    def report_markdown(self) -> Path:
        """The report as Markdown."""
        return self.reports / "report.md"

    @property
    def report_html(self) -> Path:
        """The report as one HTML page."""
        return self.reports / "report.html"

    @property
    def ranking(self) -> Path:
        """The ranking as a table (Parquet), one row a candidate. Not among `trials` or `runs`, which are read as whole
        folders."""
        return self.reports / "ranking.parquet"

    @property
    def sweep_log(self) -> Path:
        """What libraries and processes said during the sweep."""
        return self.reports / "sweep.log"

    @property
    def lock(self) -> Path:
        """Held by the process that measures."""
        return self.root / PARTIAL / f"{self.run_id}.lock"

    @property
    def leases(self) -> tuple[Path, str]:
        """The folder in an object store where processes that measure say so, and how the names of their files begin.
        Ids hold no `~`, so that no name begins like those of another run."""
        return self.root / PARTIAL, f"{self.run_id}~"

    def trial_file(self, trial_id: str) -> Path:
        """The file of one trial's row.

        Raises:
            InvalidValueError: `trial_id` cannot name a file.
        """
        return self.trials / f"{check_id(trial_id, what='trial id')}.parquet"

    def runs_file(self, trial_id: str) -> Path:
        """The file of one trial's raw runs.

        Raises:
            InvalidValueError: `trial_id` cannot name a file.
        """
        return self.runs / f"{check_id(trial_id, what='trial id')}.parquet"
