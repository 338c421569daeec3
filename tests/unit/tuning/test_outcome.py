"""The errors that end a sweep."""

from __future__ import annotations

from pathlib import Path

from manifests import plain_manifest

from kvray.errors import SweepError
from kvray.store.keeper import RecordKeeper
from kvray.store.parquet import ResultsStore
from kvray.tuning.outcome import broken_off


class HeadLostError(SweepError):
    """An error with an exit code of its own."""

    exit_code = 99


def test_an_error_that_ends_a_sweep_keeps_its_class_and_so_its_exit_code(tmp_path: Path) -> None:
    manifest = plain_manifest()
    told = broken_off(HeadLostError("The head is gone."), RecordKeeper(ResultsStore(tmp_path), manifest))
    assert type(told) is HeadLostError
    assert told.exit_code == 99
    assert str(told).startswith("The head is gone. The trials that had finished are kept in ")
    assert "--resume 20260101-120000-abcd" in str(told)
