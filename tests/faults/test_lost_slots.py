"""Slots and nodes that die under a sweep, and nodes that join it: real processes of a real Ray."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from command_lines import command_line
from drivers import FAKE, Driver, recorded
from own_ray import cluster_of
from ray.cluster_utils import Cluster

from kvray.record import TrialResult, TrialStatus
from kvray.store.parquet import ResultsStore

Tune = Callable[..., Driver]
GRID = (*FAKE, "--search", "grid", "--confirm", "0", "--cache", "dynamic")
"""Six candidates, each measured once."""
SLOT_TITLES = ("ray::Slot", "ray::ResourceTrainable")
"""What Ray calls a slot's process while it waits, and while it works."""


@pytest.fixture
def tune(tmp_path: Path) -> Iterator[Tune]:
    """Start `kvray tune` with its results in `tmp_path / "out"`, as a user who has a token for some other Ray."""
    started: list[Driver] = []
    token = tmp_path / "home" / ".ray" / "auth_token"
    token.parent.mkdir(parents=True)
    token.write_text("0123456789abcdef0123456789abcdef")
    environment = {"KVRAY_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path / "home")}

    def start(*arguments: str) -> Driver:
        started.append(Driver(*arguments, "--output", tmp_path / "out", **environment))
        return started[-1]

    yield start
    for driver in started:
        driver.end()


def slots_of(driver: Driver) -> list[psutil.Process]:
    return slots_below(psutil.Process(driver.process.pid))


def slots_below(process: psutil.Process) -> list[psutil.Process]:
    below = process.children(recursive=True)
    return [one for one in below if " ".join(command_line(one)).startswith(SLOT_TITLES)]


def kill_slots(processes: list[psutil.Process]) -> None:
    assert processes, "no slot runs"
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)


def statuses(results: dict[str, TrialResult]) -> dict[str, TrialStatus]:
    return {one.record.candidate.label: one.record.status for one in results.values()}


def test_a_trial_whose_slot_is_killed_runs_again_and_no_other_is_touched(tune: Tune, tmp_path: Path) -> None:
    sweep = tune("fake:sdpa_math/f=slow", *GRID)
    sweep.wait_for("start   dynamic/sdpa_math/float32")
    before = recorded(tmp_path / "out")
    kill_slots(slots_of(sweep))
    sweep.wait_for("lost    dynamic/sdpa_math/float32 · its slot or node died; it runs again")
    assert sweep.wait() == 0, sweep.lines
    after = recorded(tmp_path / "out")
    assert set(statuses(after).values()) == {TrialStatus.OK}
    assert len(after) == 6
    assert {name: after[name] for name in before} == before
    assert sum(line.startswith("start ") for line in sweep.lines) == 7


@pytest.mark.slow  # what is launched again is in tests/unit/sweep/test_rounds.py
def test_a_slot_that_dies_in_a_confirming_round_costs_one_trial_another_attempt(tune: Tune, tmp_path: Path) -> None:
    space = ("--cache", "dynamic", "--attention", "sdpa", "--dtype", "float32,bfloat16", "--search", "grid")
    sweep = tune("fake:bfloat16=slow", *FAKE, *space, "--confirm", "1")
    sweep.wait_for("again   dynamic/sdpa/bfloat16")
    kill_slots(slots_of(sweep))
    sweep.wait_for("lost    dynamic/sdpa/bfloat16")
    assert sweep.wait() == 0, sweep.lines
    records = [one.record for one in recorded(tmp_path / "out").values()]
    assert {one.status for one in records} == {TrialStatus.OK}
    assert sorted((one.candidate.label, one.confirm_round or 0) for one in records) == [
        ("dynamic/sdpa/bfloat16", 0),
        ("dynamic/sdpa/bfloat16", 1),
        ("dynamic/sdpa/float32", 0),
        ("dynamic/sdpa/float32", 1),
    ]


@pytest.mark.slow
def test_a_trial_whose_slot_dies_every_time_has_crashed_after_three_attempts(tune: Tune, tmp_path: Path) -> None:
    sweep = tune("fake:sdpa_math/f=hang", *GRID)
    for _ in range(3):
        sweep.wait_for("start   dynamic/sdpa_math/float32")
        kill_slots(slots_of(sweep))
    assert sweep.wait() == 0, sweep.lines
    after = recorded(tmp_path / "out")
    (crashed,) = (one.record for one in after.values() if one.record.status is not TrialStatus.OK)
    assert (crashed.candidate.label, crashed.status) == ("dynamic/sdpa_math/float32", TrialStatus.CRASHED)
    assert crashed.message == "the slot that ran it died, 3 times"
    assert len(after) == 6


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """One node with a logical GPU: Ray schedules and pins as with a real one."""
    running = cluster_of(num_cpus=2, num_gpus=1)
    yield running
    running.shutdown()


def on_gpus(cluster: Cluster) -> tuple[str, ...]:
    return (*GRID, "--device", "cuda", "--address", str(cluster.address))


@pytest.mark.slow  # a killed slot takes the same path
def test_a_node_that_leaves_costs_its_trial_another_attempt(tune: Tune, cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=2, num_gpus=1)
    cluster.wait_for_nodes()
    sweep = tune("fake:/=slow", *on_gpus(cluster))
    sweep.wait_for("start ", times=2)
    cluster.remove_node(node, allow_graceful=False)
    sweep.wait_for("lost ")
    assert sweep.wait() == 0, sweep.lines
    after = recorded(tmp_path / "out")
    assert len(after) == 6
    assert set(statuses(after).values()) == {TrialStatus.OK}


@pytest.mark.slow
def test_a_node_that_joins_takes_trials(tune: Tune, cluster: Cluster) -> None:
    sweep = tune("fake:eager=hang", *on_gpus(cluster))
    sweep.wait_for("start   dynamic/eager/float32")
    cluster.add_node(num_cpus=2, num_gpus=1)
    sweep.wait_for("ok      dynamic/sdpa_math/float32")  # while the other hangs
    sweep.process.send_signal(signal.SIGINT)
    assert sweep.wait() == 130, sweep.lines


@pytest.mark.slow
def test_slots_asked_for_are_not_exceeded_by_a_node_that_joins(tune: Tune, cluster: Cluster, tmp_path: Path) -> None:
    sweep = tune("fake:ok", *on_gpus(cluster), "--slots", "1")
    sweep.wait_for("start ")
    cluster.add_node(num_cpus=2, num_gpus=1)
    time.sleep(0.1)
    assert sweep.wait() == 0, sweep.lines
    spans = sorted((one.record.started_at, one.record.ended_at) for one in recorded(tmp_path / "out").values())
    assert all(later[0] >= earlier[1] for earlier, later in itertools.pairwise(spans))  # type: ignore[operator]


@pytest.mark.slow
def test_the_only_node_with_room_may_leave_and_another_come(tune: Tune, tmp_path: Path) -> None:
    cluster = cluster_of(num_cpus=2)
    try:
        node = cluster.add_node(num_cpus=2, num_gpus=1)
        cluster.wait_for_nodes()
        sweep = tune("fake:/=slow", *on_gpus(cluster))
        sweep.wait_for("start ", times=2)
        cluster.remove_node(node, allow_graceful=False)
        sweep.wait_for("kvray: warning: No node is left that has room for a trial; waiting 10 minutes for one.")
        cluster.add_node(num_cpus=2, num_gpus=1)
        assert sweep.wait() == 0, sweep.lines
    finally:
        cluster.shutdown()
    assert list(statuses(recorded(tmp_path / "out")).values()) == [TrialStatus.OK] * 6


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="takes root")
def test_a_slot_gives_way_to_nobody_on_a_cluster_whose_workers_do(tune: Tune) -> None:
    cluster = cluster_of(num_cpus=2, _system_config={})  # Ray's own is niceness 15
    try:
        sweep = tune("fake:eager=hang", *GRID, "--address", str(cluster.address))
        sweep.wait_for("start   dynamic/eager/float32")
        slots = slots_below(psutil.Process())
        assert slots
        assert {one.nice() for one in slots} == {0}
    finally:
        cluster.shutdown()


def check_broken_off(sweep: Driver, folder: Path) -> None:
    """Ray broke down in the second trial: the first is kept, and the last line says how to go on."""
    assert sweep.wait() == 11, sweep.lines
    (run_id,) = ResultsStore(folder).run_ids()
    assert sweep.lines[-1].startswith("kvray: Ray broke down")
    assert sweep.lines[-1].endswith(f"Repeat the command with --resume {run_id} to measure the rest.")
    ended = statuses(recorded(folder))
    # Where Ray's C++ ends the driver at once, the trial under way leaves nothing.
    assert ended.pop("dynamic/eager/float32", TrialStatus.INTERRUPTED) is TrialStatus.INTERRUPTED
    assert ended == {"dynamic/sdpa/float32": TrialStatus.OK}


@pytest.mark.slow  # what is felt of a cluster is in tests/unit/sweep/test_liveness.py
@pytest.mark.parametrize("server", ["raylet", "gcs_server"])
def test_a_cluster_that_breaks_down_ends_the_sweep_with_what_to_do(
    server: str, tune: Tune, cluster: Cluster, tmp_path: Path
) -> None:
    sweep = tune("fake:eager=slow", *on_gpus(cluster))
    sweep.wait_for("start   dynamic/eager/float32")
    kill = cluster.head_node.kill_raylet if server == "raylet" else cluster.head_node.kill_gcs_server
    kill(check_alive=False)
    check_broken_off(sweep, tmp_path / "out")


@pytest.mark.parametrize("server", ["raylet", pytest.param("gcs_server", marks=pytest.mark.slow)])
def test_a_ray_that_breaks_down_ends_the_sweep_with_what_to_do(server: str, tune: Tune, tmp_path: Path) -> None:
    sweep = tune("fake:eager=slow", *GRID)
    sweep.wait_for("start   dynamic/eager/float32")
    (process,) = (one for one in psutil.Process(sweep.process.pid).children() if one.name() == server)
    process.kill()
    check_broken_off(sweep, tmp_path / "out")
    assert sweep.orphans(5.0) == []
    (kept,) = sweep.ray_sessions()
    assert f"Ray's logs are kept in {kept}." in sweep.lines[-1]
    shutil.rmtree(kept)
