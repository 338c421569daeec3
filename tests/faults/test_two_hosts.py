"""A sweep on two hosts whose link is cut and mended: real network namespaces, real Ray nodes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from drivers import FAKE, Driver, recorded
from two_hosts import HEAD, OTHER, RAY_ADDRESS, TwoHosts, missing

from kvray.record import TrialRecord, TrialStatus
from kvray.store.parquet import ResultsStore

SWEEP = (
    *(*FAKE, "--device", "cuda", "--search", "grid", "--confirm", "0", "--attention", "sdpa,eager,sdpa_math"),
    *("--address", RAY_ADDRESS, "--no-check-snippet"),
)
SIX = ("fake:/=slow", "--cache", "dynamic")
TWELVE = ("fake:/=slow,/=slow,/=slow", "--cache", "dynamic,static")


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    if why := missing():
        pytest.skip(why)
    running = TwoHosts()
    yield running
    running.stop()


@pytest.fixture
def tune(hosts: TwoHosts, tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    """Start the sweep on a host, with its results in `tmp_path / "out"`."""
    started: list[Driver] = []
    environment = {"KVRAY_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)}

    def start(host: str, *arguments: str) -> Driver:
        started.append(Driver(*arguments, *SWEEP, "--output", tmp_path / "out", before=hosts.on(host), **environment))
        return started[-1]

    yield start
    hosts.mend()
    for driver in started:
        driver.end()


def check_complete(sweep: Driver, folder: Path, candidates: int) -> list[TrialRecord]:
    """Nothing is lost, nothing was measured twice, and there is a ranking."""
    assert sweep.wait() == 0, sweep.lines
    records = [one.record for one in recorded(folder).values()]
    assert Counter(one.status for one in records) == {TrialStatus.OK: candidates}
    assert len({one.candidate_id for one in records}) == candidates
    store = ResultsStore(folder)
    assert store.paths(store.latest_run_id()).best_plan.is_file()
    return records


@pytest.mark.slow
def test_a_link_that_is_cut_for_a_moment_costs_nothing(
    hosts: TwoHosts, tune: Callable[..., Driver], tmp_path: Path
) -> None:
    sweep = tune(OTHER, *SIX)
    sweep.wait_for("start ", times=3)
    hosts.cut()
    time.sleep(2.0)
    hosts.mend()
    records = check_complete(sweep, tmp_path / "out", 6)
    assert {one.host for one in records} == {HEAD, OTHER}
    assert starts(sweep) == 6, "none ran again"


@pytest.mark.slow
def test_trials_of_a_host_that_is_cut_off_run_again_and_the_host_is_used_when_it_comes_back(
    hosts: TwoHosts, tune: Callable[..., Driver], tmp_path: Path
) -> None:
    sweep = tune(HEAD, *TWELVE)
    sweep.wait_for("start ", times=2)
    hosts.cut()
    sweep.wait_for("lost ")
    hosts.mend()
    hosts.kill_node(OTHER)  # Ray does not take back a node that it has given up
    hosts.start_node(OTHER)
    records = check_complete(sweep, tmp_path / "out", 12)
    assert starts(sweep) == 13
    assert {one.host for one in records} == {HEAD, OTHER}


@pytest.mark.slow
def test_a_driver_that_is_cut_off_from_the_head_ends_and_the_sweep_goes_on_from_there(
    hosts: TwoHosts, tune: Callable[..., Driver], tmp_path: Path
) -> None:
    sweep = tune(OTHER, *SIX)
    sweep.wait_for("ok ")
    hosts.cut()
    assert sweep.wait() == 11, sweep.lines
    run_id = check_says_how_to_go_on(sweep, tmp_path / "out")
    kept = [one.record for one in recorded(tmp_path / "out").values() if one.record.status is TrialStatus.OK]
    hosts.mend()
    hosts.kill_node(OTHER)  # Ray does not take back a node that it has given up
    hosts.start_node(OTHER)
    check_rest_is_measured(tune(HEAD, *SIX, "--resume", run_id), tmp_path / "out", kept, 6)


@pytest.mark.slow
def test_a_head_that_is_started_anew_ends_the_sweep_which_goes_on_on_the_new_one(
    hosts: TwoHosts, tune: Callable[..., Driver], tmp_path: Path
) -> None:
    sweep = tune(OTHER, *TWELVE)
    sweep.wait_for("ok ")
    hosts.kill_node(HEAD)
    hosts.start_node(HEAD)
    assert sweep.wait() == 11, sweep.lines
    run_id = check_says_how_to_go_on(sweep, tmp_path / "out")
    assert "was started anew and does not know this sweep" in sweep.lines[-1]
    kept = [one.record for one in recorded(tmp_path / "out").values() if one.record.status is TrialStatus.OK]
    hosts.kill_node(OTHER)  # its Ray knows the old head only
    hosts.start_node(OTHER)
    check_rest_is_measured(tune(OTHER, *TWELVE, "--resume", run_id), tmp_path / "out", kept, 12)


def check_says_how_to_go_on(sweep: Driver, folder: Path) -> str:
    """In the last line; returns the sweep's id."""
    run_id = ResultsStore(folder).latest_run_id()
    assert sweep.lines[-1].startswith("kvray: Ray broke down: its head at 10.213.0.1:6379"), sweep.lines
    assert sweep.lines[-1].endswith(f"Repeat the command with --resume {run_id} to measure the rest.")
    return run_id


def check_rest_is_measured(resumed: Driver, folder: Path, kept: list[TrialRecord], candidates: int) -> None:
    """And nothing of what was `kept`."""
    records = check_complete(resumed, folder, candidates)
    assert starts(resumed) == candidates - len(kept)
    assert all(one in records for one in kept)


def starts(sweep: Driver) -> int:
    return sum(line.startswith("start ") for line in sweep.lines)
