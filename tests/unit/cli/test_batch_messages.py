"""What `kvray batch` says at its end."""

from __future__ import annotations

import datetime as dt
import io
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvray.cli import batch as command
from kvray.cli import batch_preview
from kvray.cli.app import run
from kvray.store.batch_manifest import BatchAttempt, BatchManifest, BatchStatus, BatchSweep
from kvray.tuning.batch import BatchSearch
from kvray.tuning.batch_budget import excess_of
from kvray.tuning.batch_words import interruption_of
from kvray.tuning.preview import Rest
from kvray.workload import get_profile

NOW = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)


def attempt(*, took_s: float, budget_s: float | None) -> BatchAttempt:
    ended_at = NOW + dt.timedelta(seconds=took_s)
    return BatchAttempt(started_at=NOW, ended_at=ended_at, kvray_version="0", budget_s=budget_s)


def manifest_of(**statuses: BatchStatus) -> BatchManifest:
    sweeps = tuple(
        BatchSweep(run_id=name, model_id=name, profile=get_profile("ci-micro"), status=status)
        for name, status in statuses.items()
    )
    attempts = (attempt(took_s=1, budget_s=None),)
    return BatchManifest(batch_id="b", created_at=NOW, sweeps=sweeps, attempts=attempts)


def told(**statuses: BatchStatus) -> str:
    manifest = manifest_of(**statuses)
    return str(command._without_winners(manifest, overview="overview.md", resume="kvray batch --resume b"))


@pytest.mark.parametrize(
    ("last", "what", "rest"),
    [
        (BatchStatus.OK, "Interrupted after the last trial; every sweep has ended", "Check the code of the winners"),
        (
            BatchStatus.FAILED,
            "Interrupted after the last trial; every sweep has ended",
            "Check the code of the winners, and measure what failed,",
        ),
        (BatchStatus.INTERRUPTED, "Interrupted; what was measured is kept", "Measure the rest"),
        (BatchStatus.WAITING, "Interrupted; what was measured is kept", "Measure the rest"),
    ],
)
def test_an_interrupted_batch_speaks_of_a_rest_only_where_there_is_one(last: BatchStatus, what: str, rest: str) -> None:
    manifest = manifest_of(a=BatchStatus.OK, b=BatchStatus.NO_WINNER, c=last)
    said = interruption_of(manifest, overview="o.html", resume="kvray batch --resume b")
    assert str(said) == f"{what}, and o.html tells of it. {rest} with: kvray batch --resume b"


def test_what_was_not_measured_is_not_told_as_without_a_winner() -> None:
    assert told(a=BatchStatus.OK, b=BatchStatus.FAILED, c=BatchStatus.WAITING) == (
        "1 of 3 sweeps has no winner: b (failed). 1 of 3 sweeps is not measured yet: c. "
        "overview.md has the reasons. Measure what is missing with: kvray batch --resume b"
    )
    waiting = told(a=BatchStatus.WAITING, b=BatchStatus.INTERRUPTED)
    assert waiting.startswith("2 of 2 sweeps are not measured yet: a, b. ")


def test_where_all_is_measured_nothing_is_said_of_going_on() -> None:
    assert told(a=BatchStatus.NO_WINNER) == ("1 of 1 sweep has no winner: a (no winner). overview.md has the reasons.")


@pytest.mark.parametrize(
    ("took_s", "budget_s", "says"), [(30, None, False), (30, 29, False), (30, 60, False), (30, 1, True)]
)
def test_a_batch_that_took_longer_than_its_budget_says_why(took_s: float, budget_s: float | None, says: bool) -> None:
    why = excess_of(attempt(took_s=took_s, budget_s=budget_s))
    assert (why is not None) is says
    assert why is None or "30 s with a budget of 1 s: a sweep that has begun measures its baseline" in why


def test_a_dry_run_says_once_what_each_sweep_finds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def previews(_: BatchSearch) -> list[Any]:
        for _one in range(3):
            logging.getLogger("kvray.sweep").warning("Ray at %s listens on a network.", "head:6379")
        logging.getLogger("kvray.sweep").warning("Something else.")
        return []

    monkeypatch.setattr(BatchSearch, "previews", previews)
    (tmp_path / "m.yaml").write_text("models: [a, b, c]", encoding="utf-8")
    assert run(["batch", str(tmp_path / "m.yaml"), "--dry-run"], verbose=False) == 0
    assert capsys.readouterr().err.splitlines() == [
        "kvray: warning: Ray at head:6379 listens on a network.",
        "kvray: warning: Something else.",
    ]


def test_a_dry_run_of_what_cannot_be_measured_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("models: [./nowhere]\n", encoding="utf-8")
    code = run(["batch", str(file), "--dry-run", "--offline", "--output", str(tmp_path / "results")], verbose=False)
    said = capsys.readouterr()
    assert (code, (tmp_path / "results").exists()) == (13, False)
    assert "./nowhere · chat-agent: cannot be measured: " in said.out
    assert "1 of 1 sweep cannot be measured." in said.err


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["--retry", "failed"], "--retry can only be used with --resume."),
        (["--resume", "b", "--retry", "bad"], "Unknown status of --retry 'bad'. Allowed: failed, oom, "),
        (["--resume", "b", "--retry", ","], "Unknown status of --retry ','. Allowed: failed, oom, "),
    ],
)
def test_what_cannot_be_retried_is_said_in_one_line(
    typed: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["batch", *typed], verbose=False) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rest", "told"),
    [
        (None, "3 candidates"),
        ({"left": "bc", "measured": 1}, "2 of 3 candidates left,"),
        ({"left": "bc", "measured": 1, "again": ("b",)}, "2 of 3 candidates left, 1 again,"),
        ({"left": "bc", "measured": 1, "is_answered": True}, "nothing new"),
    ],
)
def test_a_dry_run_of_a_resumed_batch_says_what_is_left_of_a_sweep(rest: dict[str, Any] | None, told: str) -> None:
    left = None if rest is None else Rest(run_id="r", **rest)
    preview: Any = SimpleNamespace(space=SimpleNamespace(candidates="abc"), rest=left)
    assert batch_preview._to_measure(preview) == told


def test_a_dry_run_says_how_many_candidates_a_bound_leaves() -> None:
    preview: Any = SimpleNamespace(space=SimpleNamespace(candidates="abc"), rest=None)
    assert batch_preview._to_measure(preview, 2) == "at most 2 of 3 candidates"
    assert batch_preview._to_measure(preview, 3) == "3 candidates"


def test_a_warning_of_every_sweep_is_shown_once_wherever_it_is_shown() -> None:
    shown = (io.StringIO(), io.StringIO())
    logger, handlers = logging.getLogger("kvray"), [logging.StreamHandler(one) for one in shown]
    for handler in handlers:
        logger.addHandler(handler)
    try:
        with batch_preview.each_said_once():
            for word in ("one", "one", "two"):
                logging.getLogger("kvray.sweep").warning(word)
        logging.getLogger("kvray.sweep").warning("one")
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
    assert [one.getvalue().split() for one in shown] == [["one", "two", "one"]] * 2
