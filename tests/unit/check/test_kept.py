"""A disk that fails during a check costs nothing that was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from checked import RUN, checked, trial

from kvray.check.check_file import read_check
from kvray.check.kept import KeptRecords, write_or_rescue
from kvray.errors import OutputError
from kvray.record import TrialResult
from kvray.store.parquet import ResultsStore, TrialFiles


class FailingStore(ResultsStore):
    """Refuses to write as long as it is told to."""

    is_full = True

    def append(self, result: TrialResult) -> TrialFiles:
        if self.is_full:
            raise OutputError("Cannot write: No space left on device.")
        return super().append(result)


def test_what_could_not_be_written_is_written_with_the_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = FailingStore(tmp_path)
    records = KeptRecords(store)
    records.keep(trial(1, ttft_ms=5.0))
    records.keep(trial(2, ttft_ms=5.0))
    assert caplog.text.count("No space left") == 1, "once"
    store.is_full = False
    records.keep(trial(3, ttft_ms=5.0))
    assert records.finish(RUN) is None
    assert len(store.read(RUN)) == 3


def test_what_is_never_written_is_told_and_the_result_has_it(tmp_path: Path) -> None:
    records = KeptRecords(FailingStore(tmp_path / "out"))
    records.keep(trial(1, ttft_ms=5.0))
    told = write_or_rescue(checked(), str(tmp_path / "check.json"), records.finish(RUN))
    assert told is not None
    assert "1 record could not be written: Cannot write: No space left" in str(told)
    assert read_check(tmp_path / "check.json") == checked()


def test_a_result_that_cannot_be_written_goes_to_a_second_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").touch()
    told = write_or_rescue(checked(), str(tmp_path / "file" / "check.json"), None)
    assert told is not None
    (kept,) = (tmp_path / "cache" / "rescued").iterdir()
    assert str(kept) in str(told)
    assert read_check(kept) == checked()
    (tmp_path / "cache").rename(tmp_path / "gone")
    (tmp_path / "cache").touch()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "file"))
    assert "It is lost" in str(write_or_rescue(checked(), str(tmp_path / "file" / "check.json"), None))
