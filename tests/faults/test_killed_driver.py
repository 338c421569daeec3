"""A driver killed at any moment: what had ended is kept, nothing lives on, and `--resume` measures exactly the rest."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from drivers import FAKE, Driver, recorded

from kvray.record import TrialResult
from kvray.store.parquet import ResultsStore

SWEEP = ("fake:static/eager=exit,sdpa_math/b=oom", *FAKE, "--search", "grid", "--confirm", "0")
"""Twelve candidates, each measured once; four of them fail."""
ORPHANS_GONE_WITHIN_S = 5.0
MOST_LINES = 55
"""So many does an undisturbed sweep say, nearly."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrialResult]:
    folder = tmp_path_factory.mktemp("undisturbed")
    driver = Driver(*SWEEP, "--output", folder, KVRAY_CACHE=str(folder / "cache"))
    assert driver.wait() == 0, driver.lines
    return recorded(folder)


@dataclass(frozen=True)
class Moment:
    """When to kill: so many seconds after the driver has said so many lines."""

    lines: int
    seconds: float


def moments(count: int) -> Iterator[Moment]:
    """Anywhere in a sweep, its start included; the same ones in every run of the tests."""
    chosen = random.Random(6)
    for _ in range(count):
        lines = chosen.choice((0, chosen.randrange(MOST_LINES), chosen.randrange(MOST_LINES)))
        yield Moment(lines, chosen.uniform(0.0, 0.2 if lines else 5.0))


def kill_at(moment: Moment, folder: Path, *more: str) -> Driver:
    driver = Driver(*SWEEP, "--output", folder, *more, KVRAY_CACHE=str(folder / "cache"))
    while len(driver.lines) < moment.lines and driver.process.poll() is None:
        time.sleep(0.005)
    time.sleep(moment.seconds)
    if driver.process.poll() is None:  # one that has little left to measure may have ended before it said so many
        driver.kill()
    return driver


def ends(results: dict[str, TrialResult]) -> dict[str, tuple[object, ...]]:
    """What must not depend on whether a driver was killed in between."""
    return {
        name: (one.record.candidate, one.record.status, one.record.phase, one.record.message, one.record.rung)
        for name, one in results.items()
    }


def check_kills(count: int, folder: Path, undisturbed: dict[str, TrialResult]) -> None:
    """Kill as many drivers; a sweep that was begun is resumed by the next, and in the end one comes to its end."""
    expected = ends(undisturbed)
    resumed: tuple[str, ...] = ()
    for moment in moments(count):
        before = recorded(folder, resumed[-1]) if resumed else {}
        known = ResultsStore(folder).run_ids()
        driver = kill_at(moment, folder, *resumed)
        assert driver.orphans(ORPHANS_GONE_WITHIN_S) == [], moment
        assert driver.ray_sessions() == [], moment
        begun = [name for name in ResultsStore(folder).run_ids() if name not in known]
        resumed = resumed or (("--resume", begun[0]) if begun else ())
        after = recorded(folder, resumed[-1]) if resumed else {}
        assert {name: after[name] for name in before} == before, f"a record was lost or changed: {moment}"
        assert {name: expected[name] for name in after} == ends(after), moment
        if len(after) == len(expected):
            resumed = ()
    before = recorded(folder, resumed[-1]) if resumed else {}
    driver = Driver(*SWEEP, "--output", folder, *resumed, KVRAY_CACHE=str(folder / "cache"))
    assert driver.wait() == 0, driver.lines
    after = recorded(folder, resumed[-1] if resumed else None)
    assert sum(line.startswith("start ") for line in driver.lines) == len(after) - len(before)
    assert {name: after[name] for name in before} == before
    assert ends(after) == expected


@pytest.mark.slow
def test_a_driver_killed_three_times_loses_nothing(tmp_path: Path, undisturbed: dict[str, TrialResult]) -> None:
    check_kills(3, tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_driver_killed_at_fifty_moments_loses_nothing(tmp_path: Path, undisturbed: dict[str, TrialResult]) -> None:
    check_kills(50, tmp_path, undisturbed)
