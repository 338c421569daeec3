"""`WatchHistory`: the observations of one watch, as Parquet under its folder.

Each observation is one small file, written whole; many of them are merged now and then. What a process was killed in
the middle of is put right by the next one. One process writes; readers may come at any time.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from kvray.errors import ResultsError
from kvray.store.encoding import few_rows, many_rows
from kvray.store.files import ResultsFiles, reason
from kvray.store.paths import part_file, part_number
from kvray.store.skipped import SKIPPED, SkippedTurn, skipped_bytes, skipped_turns
from kvray.store.tables import UNREADABLE, read_raw

HISTORY_VERSION = 1
VERSION_KEY = b"kvray_history_version"
OBSERVATIONS = "observations"
MERGED_AT = 64
"""Single files, after which they are merged."""
ROOM_BYTES = 256 * 1024
"""Ten times what the files of an observation and of its confirming rounds have together."""
_logger = logging.getLogger("kvray.watch")
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class ObservationRole(enum.StrEnum):
    """Why it was made."""

    WINNER = "winner"
    """The regular measurement of the plan's winner, with the anchor beside it."""
    CONFIRM = "confirm"
    """Measured at once after a suspicion, with the anchor beside it."""
    ANCHOR = "anchor"
    """The anchor alone: the winner could not be measured."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One row of the history: what was measured at one moment, and what followed from it.

    Figures are geometric means over the profile's cells and over the processes; `None` where not measured.

    Attributes:
        observation_id: begins with the moment, so that names sort by time.
        watch_id: of the watch: which configuration is measured, with which workload, on which kind of device.
        observed_at: when it began.
        processes: fresh processes that were measured to their end.
        ttft_ms_each, decode_tok_s_each, peak_mib_each: the same figures of each process.
        copy_gb_s: the anchor: gigabytes per second, read and written, of a copy in memory.
        matmul_gflop_s: the anchor: rate of a matrix multiplication.
        copy_gb_s_each, matmul_gflop_s_each: the same of each process that measured the anchor.
        anchor: which computation the anchor was.
        hardware: digest over what the machine is, without its software.
        disturbed: most of the runs were disturbed by other programs.
        load: who used the machine when it began, as a sentence; `None`: nobody.
        variables: environment variables that make libraries faster or slower, as they were set; `None`: not known.
        kernels: what ran in prefill and decode, and the cache's class.
        message: why processes failed.
        ttft_state, decode_state, memory_state, machine_state: states after this observation.
        standing: the watch's whole state after it, as JSON.
        events: what it made known, as JSON: a list of objects.
        trial_ids: of its processes.
    """

    observation_id: str
    watch_id: str
    observed_at: dt.datetime
    role: ObservationRole
    candidate_id: str
    model_id: str
    profile: str
    engine: str
    device_name: str
    hardware: str
    host: str = ""
    processes: int = 0
    ttft_ms: float | None = None
    decode_tok_s: float | None = None
    peak_mib: float | None = None
    ttft_ms_each: tuple[float, ...] = ()
    decode_tok_s_each: tuple[float, ...] = ()
    peak_mib_each: tuple[float, ...] = ()
    copy_gb_s: float | None = None
    matmul_gflop_s: float | None = None
    copy_gb_s_each: tuple[float, ...] = ()
    matmul_gflop_s_each: tuple[float, ...] = ()
    anchor: str | None = None
    driver_version: str | None = None
    engine_versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    python_version: str | None = None
    kvray_version: str | None = None
    variables: Mapping[str, str] | None = None
    kernels: str | None = None
    disturbed: bool = False
    load: str | None = None
    message: str | None = None
    ttft_state: str = "ok"
    decode_state: str = "ok"
    memory_state: str = "ok"
    machine_state: str = "ok"
    standing: str = "{}"
    events: str = "[]"
    run_id: str = ""
    trial_ids: tuple[str, ...] = ()


_TEXT, _FLOAT = pa.string(), pa.float64()
_KINDS: Mapping[str, pa.DataType] = {
    "observed_at": pa.timestamp("us", tz="UTC"),
    "processes": pa.int64(),
    "disturbed": pa.bool_(),
    "trial_ids": pa.list_(pa.field("element", _TEXT)),
    **dict.fromkeys(
        ("ttft_ms_each", "decode_tok_s_each", "peak_mib_each", "copy_gb_s_each", "matmul_gflop_s_each"),
        pa.list_(pa.field("element", _FLOAT)),
    ),
    **dict.fromkeys(("ttft_ms", "decode_tok_s", "peak_mib", "copy_gb_s", "matmul_gflop_s"), _FLOAT),
}
_FIELDS = dataclasses.fields(Observation)
_REQUIRED = [
    one.name for one in _FIELDS if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
]
HISTORY_SCHEMA = pa.schema(
    [(one.name, _KINDS.get(one.name, _TEXT)) for one in _FIELDS],
    metadata={VERSION_KEY: str(HISTORY_VERSION).encode()},
)


class WatchHistory:
    """The history under the folder `root`; constructing it touches nothing.

    Every method may raise `OutputError` where something cannot be written and `ResultsError` where it cannot be read.
    """

    def __init__(self, root: str | Path) -> None:
        self._files = ResultsFiles(root)
        self._warned: set[Path] = set()

    @property
    def display_name(self) -> str:
        """Its folder for messages."""
        return self._files.display_name

    @property
    def root(self) -> Path:
        """Its folder."""
        return self._files.root

    @property
    def folder(self) -> Path:
        """The folder of the Parquet files, for readers such as DuckDB."""
        return self._files.root / OBSERVATIONS

    def check_writable(self) -> None:
        """Make the folder and write a file on trial."""
        self._files.check_writable()

    def check_room(self) -> None:
        """Write on trial as much as an observation and its confirming rounds take."""
        self._files.check_writable(ROOM_BYTES)

    def read(self, watch_id: str) -> list[Observation]:
        """All observations of the watch, oldest first; none where there is no history yet. A file that is damaged is
        warned of and left out.

        Raises:
            ResultsError: they are another watch's, or of a newer version.
        """
        found = self._read_all()
        if others := sorted({one.watch_id for one in found.values()} - {watch_id}):
            other = max((one for one in found.values() if one.watch_id == others[0]), key=lambda one: one.observed_at)
            raise ResultsError(
                f"{self.display_name!r} holds the history of another watch: {_watched(other)}.",
                hint="Choose another folder with --output, or give that watch's plan.",
            )
        return sorted(found.values(), key=lambda one: (one.observed_at, one.observation_id))

    def read_any(self) -> list[Observation]:
        """All observations of whichever watch the folder belongs to, oldest first."""
        return sorted(self._read_all().values(), key=lambda one: (one.observed_at, one.observation_id))

    def append(self, observation: Observation) -> None:
        """Make `observation` durable."""
        path = self.folder / f"{observation.observation_id}.parquet"
        self._files.write(path, few_rows(_table([observation])))

    def skipped(self) -> list[SkippedTurn]:
        """The turns that were skipped because others used the machine, oldest first; none where the file is missing or
        damaged, which is warned of once."""
        path = self._files.root / SKIPPED
        try:
            with self._files.open(path) as source:
                return skipped_turns(read_raw(source, path).table)
        except FileNotFoundError:
            return []
        except UNREADABLE as error:
            self._warn_of(path, error)
            return []

    def append_skipped(self, turn: SkippedTurn) -> None:
        """Make `turn` durable."""
        self._files.write(self._files.root / SKIPPED, skipped_bytes([*self.skipped(), turn]))

    def tidy(self) -> None:
        """Merge the files of single observations where they are many, and remove what a killed process has left. To be
        called by the one process that writes."""
        self._files.delete_leftovers(self.folder)
        parts, singles = self._listed()
        merged = {one.observation_id for path in parts for one in self._rows(path)}
        for path in [one for one in singles if one.stem in merged]:
            self._files.delete(path)
            singles.remove(path)
        if len(singles) < MERGED_AT:
            return
        rows = {path: self._rows(path) for path in singles}
        whole = [row for found in rows.values() for row in found]
        number = max((part_number(path) or 0 for path in parts), default=0) + 1
        self._files.write(part_file(self.folder, number), many_rows(_table(whole)))
        for path, found in rows.items():
            if found:  # what cannot be read stays as it is
                self._files.delete(path)

    def _read_all(self) -> dict[str, Observation]:
        parts, singles = self._listed()
        return {row.observation_id: row for path in (*parts, *singles) for row in self._rows(path)}

    def _listed(self) -> tuple[list[Path], list[Path]]:
        """Merged files, and those of single observations."""
        found = self._files.list(self.folder, ".parquet")
        parts = [path for path in found if part_number(path) is not None]
        return parts, [path for path in found if path not in parts]

    def _rows(self, path: Path) -> list[Observation]:
        """What lies at `path`; nothing where that is damaged, which is warned of once."""
        try:
            with self._files.open(path) as source:
                table = read_raw(source, path).table
            return _observations(table)
        except FileNotFoundError:  # merged meanwhile
            return []
        except NewerHistoryError as error:
            raise ResultsError(
                f"{self._files.shown(path)!r} is of history version {error}, this kvray reads up to {HISTORY_VERSION}.",
                hint="Use a newer kvray, or choose another folder with --output.",
            ) from error
        except UNREADABLE as error:
            self._warn_of(path, error)
            return []

    def _warn_of(self, path: Path, error: BaseException) -> None:
        if path not in self._warned:
            self._warned.add(path)
            _logger.warning("%r is damaged and is left out: %s.", self._files.shown(path), reason(error))


class NewerHistoryError(Exception):
    """A file of a newer version; its text is the version."""


def observation_json(observation: Observation) -> str:
    """All that `observation` holds, as one line of JSON: for where the history cannot be written."""
    return json.dumps(dataclasses.asdict(observation), default=str)


def _watched(observation: Observation) -> str:
    """What is watched, as its events call it; by the candidate's id where it has none."""
    try:
        return str(json.loads(observation.events)[0]["plan"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return f"{observation.candidate_id} of {observation.model_id} with profile {observation.profile}"


def _table(rows: Iterable[Observation]) -> pa.Table:
    listed = list(rows)
    arrays = [pa.array([_plain(getattr(row, one.name)) for row in listed], one.type) for one in HISTORY_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=HISTORY_SCHEMA)


def _plain(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC)
    if isinstance(value, str):  # a log's undecodable bytes must not cost the row
        return str(value).encode(errors="replace").decode()
    if isinstance(value, Mapping):
        return json.dumps(dict(value), sort_keys=True)
    return list(value) if isinstance(value, tuple) else value


def _observations(table: pa.Table) -> list[Observation]:
    """
    Raises:
        NewerHistoryError: of a newer version.
        ValueError, ArrowException: it is something else.
    """
    version = (table.schema.metadata or {}).get(VERSION_KEY, b"")
    if not version.isdigit() or len(version) > 9:
        raise ValueError("it is not a watch's history")
    if int(version) > HISTORY_VERSION:
        raise NewerHistoryError(version.decode())
    if missing := [name for name in _REQUIRED if name not in table.column_names]:
        raise ValueError(f"columns are missing: {', '.join(missing)}")
    known = [one for one in HISTORY_SCHEMA if one.name in table.column_names]
    columns = {one.name: _values(table.column(one.name), one) for one in known}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [_observation(row) for row in rows]


def _values(column: pa.ChunkedArray, field: pa.Field) -> Sequence[Any]:
    if field.name == "observed_at":  # of instants pyarrow would import pandas to make objects
        return column.cast(field.type).cast(pa.int64()).to_pylist()
    return column.cast(field.type).to_pylist()


def _observation(row: Mapping[str, Any]) -> Observation:
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in row.items() if value is not None
    }
    if missing := [name for name in _REQUIRED if name not in given]:
        raise ValueError(f"a row lacks {', '.join(missing)}")
    given["observed_at"] = _EPOCH + dt.timedelta(microseconds=given["observed_at"])
    given["role"] = ObservationRole(given["role"])
    for name in ("engine_versions", "variables"):
        if name in given:
            given[name] = _texts(given[name], name)
    return Observation(**given)


def _texts(text: str, column: str) -> dict[str, str]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"its {column} are no object")  # noqa: TRY004  (as all damage)
    return {str(name): str(value) for name, value in found.items()}
