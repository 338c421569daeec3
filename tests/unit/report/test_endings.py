"""With which error a sweep ends in which nothing can be ranked."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_sweeps import BASELINE, candidate, ended, manifest

from kvray.analysis import analyse
from kvray.candidate import Candidate
from kvray.errors import AllTrialsFailedError, KvrayError, ModelError
from kvray.record import Phase, TrialResult, TrialStatus
from kvray.store.parquet import ResultsStore
from kvray.tuning.outcome import no_winner
from kvray.tuning.result import TuneResult

OTHER = candidate("static", "eager")
THIRD = candidate("static", "sdpa_math", "bfloat16")


def error_of(tmp_path: Path, *results: TrialResult) -> KvrayError:
    about = manifest(baseline_id=BASELINE.candidate_id)
    return no_winner(
        TuneResult(
            manifest=about,
            results=results,
            analysis=analyse(results, about.profile),
            records=(),
            paths=ResultsStore(tmp_path).paths(about.run_id),
        )
    )


def failed(what: Candidate, message: str) -> TrialResult:
    return ended(what, TrialStatus.ERROR, message, phase=Phase.LOAD)


@pytest.mark.parametrize(
    ("message", "kind", "told"),
    [
        ("ModelError: The weights cannot be read.", ModelError, "The weights cannot be read."),
        ("RuntimeError: no such operator", AllTrialsFailedError, "RuntimeError: no such operator."),
    ],
)
def test_everybodys_error_is_told_once_with_the_code_that_fits(
    message: str, kind: type[KvrayError], told: str, tmp_path: Path
) -> None:
    error = error_of(tmp_path, failed(BASELINE, message), failed(OTHER, message))
    assert type(error) is kind
    assert (
        error.message == f"The baseline and {OTHER.label} ended with the same error, so no candidate causes it: {told}"
    )
    assert error.hint is not None
    assert error.hint.endswith("repeat the command with --resume 20261124-2130-ab12 --retry error.")


def test_of_several_the_others_are_counted(tmp_path: Path) -> None:
    message = "RuntimeError: no"
    error = error_of(tmp_path, failed(OTHER, message), failed(THIRD, message), failed(BASELINE, message))
    assert error.message.startswith("The baseline and 2 other candidates ended with the same error")


def test_unlike_errors_are_told_one_by_one(tmp_path: Path) -> None:
    error = error_of(tmp_path, failed(BASELINE, "RuntimeError: one"), failed(OTHER, "RuntimeError: two"))
    assert type(error) is AllTrialsFailedError
    assert error.message == "No candidate was measured completely: error (2): RuntimeError: one."
