"""`BatchStore`: the files of batches in a results folder: manifest, overview and table. Sweeps have `ResultsStore`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvray.store.batch_manifest import BatchManifest
from kvray.store.batch_table import BatchRow, batch_table
from kvray.store.encoding import many_rows
from kvray.store.files import ResultsFiles
from kvray.store.manifest_file import ManifestKind
from kvray.store.paths import BATCHES, check_id

BATCH_MANIFEST = ManifestKind(what="batch", model=BatchManifest, id_field="batch_id", version_field="batch_version")


@dataclass(frozen=True)
class BatchPaths:
    """Where the files of one batch lie.

    Raises:
        InvalidValueError: `batch_id` cannot name files.
    """

    root: Path
    batch_id: str

    def __post_init__(self) -> None:
        check_id(self.batch_id, what="batch id")

    @property
    def folder(self) -> Path:
        """Folder of what is derived, and the log."""
        return self.root / BATCHES / self.batch_id

    @property
    def manifest(self) -> Path:
        """The batch's manifest (JSON)."""
        return self.root / BATCHES / f"{self.batch_id}.json"

    @property
    def overview_html(self) -> Path:
        """The overview as one HTML page."""
        return self.folder / "overview.html"

    @property
    def overview_markdown(self) -> Path:
        """The overview as Markdown."""
        return self.folder / "overview.md"

    @property
    def table(self) -> Path:
        """The overview as a table (Parquet), one row a sweep."""
        return self.folder / "batch.parquet"

    @property
    def log(self) -> Path:
        """What libraries and processes said during the batch."""
        return self.folder / "batch.log"


class BatchStore:
    """Batches under `root`: a local path, or a `pyarrow.fs` URI. Constructing it touches nothing.

    Methods may raise `InvalidValueError` for an id that cannot name a file, `OutputError` where something cannot be
    written, and `ResultsError` where something cannot be read.
    """

    def __init__(self, root: str | Path) -> None:
        self._files = ResultsFiles(root)

    def paths(self, batch_id: str) -> BatchPaths:
        """Where the files of `batch_id` lie."""
        return BatchPaths(self._files.root, batch_id)

    def shown(self, path: Path) -> str:
        """A file of a batch as a user can give it to another command."""
        return self._files.shown(path)

    def batch_ids(self) -> list[str]:
        """The batches that have a manifest, by name."""
        return [path.stem for path in self._files.list(self._files.root / BATCHES, ".json")]

    def write_manifest(self, manifest: BatchManifest) -> None:
        """Replace what is known of the batch."""
        self._files.write(self.paths(manifest.batch_id).manifest, (manifest.model_dump_json(indent=2) + "\n").encode())

    def read_manifest(self, batch_id: str) -> BatchManifest:
        """What the batch `batch_id` is made of.

        Raises:
            ResultsError: there is none, or it is malformed or of a newer version.
        """
        try:
            data = self._files.read(self.paths(batch_id).manifest)
        except FileNotFoundError:
            raise BATCH_MANIFEST.missing(batch_id, self._files.display_name, self.batch_ids()) from None
        return BATCH_MANIFEST.parse(data, batch_id)

    def write_overview(self, batch_id: str, *, html: str, markdown: str, rows: Sequence[BatchRow]) -> None:
        """Put the overview beside the manifest, in place of an earlier one."""
        paths = self.paths(batch_id)
        self._files.write(paths.table, many_rows(batch_table(rows)))
        self._files.write(paths.overview_markdown, markdown.encode())
        self._files.write(paths.overview_html, html.encode())

    def write_log(self, batch_id: str, text: str) -> None:
        """Keep what libraries and processes said."""
        self._files.write(self.paths(batch_id).log, text.encode())
