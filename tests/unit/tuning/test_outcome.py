"""The errors that end a sweep."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from kvray.errors import SweepError
from kvray.store.keeper import RecordKeeper
from kvray.store.manifest import SweepManifest
from kvray.store.parquet import ResultsStore
from kvray.tuning.outcome import broken_off
from kvray.workload import get_profile


class HeadLostError(SweepError):
    """An error with an exit code of its own."""

    exit_code = 99


def test_an_error_that_ends_a_sweep_keeps_its_class_and_so_its_exit_code(tmp_path: Path) -> None:
    manifest = SweepManifest(
        kvray_version="0.1.0",
        run_id="20260101-120000-abcd",
        created_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        model_id="m",
        model_revision="r",
        architecture="A",
        engine="fake",
        device="cpu",
        device_name="CPU",
        profile=get_profile("ci-micro"),
        baseline_id="b",
        memory_note="none",
    )
    told = broken_off(HeadLostError("The head is gone."), RecordKeeper(ResultsStore(tmp_path), manifest))
    assert type(told) is HeadLostError
    assert told.exit_code == 99
    assert str(told).startswith("The head is gone. The trials that had finished are kept in ")
    assert "--resume 20260101-120000-abcd" in str(told)
