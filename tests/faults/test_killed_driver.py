"""A driver killed at any moment: what had ended is kept, nothing lives on, and `--resume` measures exactly the rest."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from drivers import FAKE, Driver, recorded

from kvray.record import TrialResult
from kvray.store.parquet import ResultsStore

SWEEP = ("fake:static/eager=exit,sdpa_math/b=oom", *FAKE, "--search", "grid", "--confirm", "0")
"""Twelve candidates, each measured once; four of them fail."""
ORPHANS_GONE_WITHIN_S = 5.0
LONGEST_S = 7.0
"""From the start of an undisturbed sweep to its end, about."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrialResult]:
    folder = tmp_path_factory.mktemp("undisturbed")
    driver = Driver(*SWEEP, "--output", folder, KVRAY_CACHE=str(folder / "cache"))
    assert driver.wait() == 0, driver.lines
    return recorded(folder)


def kill_after(seconds: float, folder: Path, *more: str) -> Driver:
    driver = Driver(*SWEEP, "--output", folder, *more, KVRAY_CACHE=str(folder / "cache"))
    time.sleep(seconds)
    driver.kill()
    return driver


def ends(results: dict[str, TrialResult]) -> dict[str, tuple[object, ...]]:
    """What must not depend on whether a driver was killed in between."""
    return {
        name: (one.record.candidate, one.record.status, one.record.phase, one.record.message, one.record.rung)
        for name, one in results.items()
    }


def moments(count: int) -> Iterator[float]:
    """Anywhere in the sweep, its start included; the same ones in every run of the tests."""
    chosen = random.Random(6)
    return (chosen.uniform(0.0, LONGEST_S) for _ in range(count))


def check_kills(count: int, folder: Path, undisturbed: dict[str, TrialResult]) -> int:
    """Kill as many drivers; a sweep that was begun is resumed by the next, until one comes to its end. Returns how many
    sweeps came to their end before they could be killed or were resumed to it."""
    completed = 0
    resumed: list[str] = []
    for moment in moments(count):
        store = ResultsStore(folder)
        before = recorded(folder, resumed[0]) if resumed else {}
        driver = kill_after(moment, folder, *(("--resume", *resumed) if resumed else ()))
        assert driver.orphans(ORPHANS_GONE_WITHIN_S) == [], f"killed after {moment:.2f} s"
        run_ids = store.run_ids()
        if not resumed and len(run_ids) > completed:
            resumed = run_ids[-1:]
        after = recorded(folder, resumed[0]) if resumed else {}
        assert {name: after[name] for name in before} == before, "a record was lost or changed"
        expected = ends(undisturbed)
        assert {name: expected[name] for name in after} == ends(after)
        if len(after) == len(expected):
            completed += 1
            resumed = []
    if resumed:
        before = recorded(folder, resumed[0])
        driver = Driver(*SWEEP, "--output", folder, "--resume", *resumed, KVRAY_CACHE=str(folder / "cache"))
        assert driver.wait() == 0, driver.lines
        after = recorded(folder, resumed[0])
        assert sum(line.startswith("start ") for line in driver.lines) == len(after) - len(before)
        assert {name: after[name] for name in before} == before
        assert ends(after) == ends(undisturbed)
        completed += 1
    return completed


def test_a_driver_killed_three_times_loses_nothing(tmp_path: Path, undisturbed: dict[str, TrialResult]) -> None:
    assert check_kills(3, tmp_path, undisturbed) >= 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_driver_killed_at_fifty_moments_loses_nothing(tmp_path: Path, undisturbed: dict[str, TrialResult]) -> None:
    assert check_kills(50, tmp_path, undisturbed) >= 1
