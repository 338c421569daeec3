"""What libraries in C write to descriptor 2 goes to a log, while the program's own lines go on to be seen."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from kvray.cli.streams import patient
from kvray.standard_error import c_libraries_write_to, say


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """As the command line has it: on a copy of descriptor 2, which is the test's here."""
    monkeypatch.setattr(sys, "stderr", patient(os.fdopen(2, "w", closefd=False), apart=True))


def test_descriptor_2_goes_to_the_log_and_own_lines_do_not(
    apart: None, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with c_libraries_write_to(log):
        os.write(2, b"[1 W] gcs_client.cc: words\n")
        sys.stderr.write("own\n")
        say("last")
    os.write(2, b"after\n")
    assert log.read_text() == "[1 W] gcs_client.cc: words\n"
    assert capfd.readouterr().err == "own\nlast\nafter\n"


def test_a_program_that_writes_to_descriptor_2_itself_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stderr", os.fdopen(2, "w", closefd=False))
    with c_libraries_write_to(tmp_path / "log"):
        say("own")
    assert capfd.readouterr().err == "own\n"


def test_a_log_that_cannot_be_opened_costs_nothing_but_the_words(
    apart: None, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with c_libraries_write_to(tmp_path / "missing" / "log"):
        os.write(2, b"words\n")
    assert capfd.readouterr().err == "words\n"
