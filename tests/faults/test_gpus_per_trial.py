"""Trials of one GPU and of several on one machine, under a real Ray with logical GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from drivers import FAKE, Driver, recorded
from own_ray import cluster_of

from kvray.analysis.evidence import rounds_by_device
from kvray.record import Role, TrialRecord, TrialStatus
from kvray.store.parquet import ResultsStore

MIXED_SIZES = """
- {cache: [dynamic], dtype: [float32], attention: [sdpa, eager], parallelism: [1]}
- {cache: [dynamic], dtype: [float32], attention: [sdpa], parallelism: [4, 8]}
- {cache: [dynamic], dtype: [float32, bfloat16], attention: [sdpa_math], parallelism: [1]}
- {cache: [dynamic], dtype: [bfloat16], attention: [sdpa, eager], parallelism: [2]}
"""
"""Seven that fit, in this order: small ones come before and after the one that needs all GPUs."""


@pytest.fixture(scope="module")
def four_gpus() -> Iterator[str]:
    """One machine with four logical GPUs."""
    cluster = cluster_of(num_cpus=4, num_gpus=4)
    yield str(cluster.address)
    cluster.shutdown()


@pytest.fixture(scope="module")
def records(four_gpus: str, tmp_path_factory: pytest.TempPathFactory) -> list[TrialRecord]:
    """What a sweep of mixed sizes has left."""
    return measured_in(tmp_path_factory.mktemp("sweep"), four_gpus, MIXED_SIZES, "--confirm", "1")


def measured_in(folder: Path, address: str, blocks: str, *options: str) -> list[TrialRecord]:
    """The records of a sweep over the candidates of `blocks`; its results are in `folder / "out"`."""
    space, home = folder / "space.yaml", folder / "home"
    space.write_text(blocks)
    home.mkdir()
    asked = ("--device", "cuda", "--address", address, "--space", space, "--search", "grid")
    environment = {"KVRAY_CACHE": str(folder / "cache"), "HOME": str(home)}
    sweep = Driver("fake:ok", *FAKE, *asked, *options, "--output", folder / "out", **environment)
    try:
        assert sweep.wait() == 0, sweep.lines
    finally:
        sweep.end()
    return [one.record for one in recorded(folder / "out").values()]


@pytest.mark.slow
def test_trials_of_one_two_and_four_gpus_share_a_machine(records: list[TrialRecord]) -> None:
    rejected = [(one.candidate.label, one.message) for one in records if one.status is TrialStatus.REJECTED]
    assert rejected == [("dynamic/sdpa/float32+gpus:8", "needs 8 GPUs, no machine has more than 4 (parallelism)")]
    measured = [one for one in records if one.status is not TrialStatus.REJECTED and one.role is not Role.CONFIRM]
    assert [one.status for one in measured] == [TrialStatus.OK] * 7
    assert all(_visible_gpus(one) == one.parallelism for one in measured)
    assert max(_gpus_held(measured)) == 4, "four at once, and never more"
    by_label = {one.candidate.label: one.started_at for one in measured}
    large = by_label.pop("dynamic/sdpa/float32+gpus:4")
    before = {label for label, started_at in by_label.items() if started_at < large}  # type: ignore[operator]
    assert before == {"dynamic/sdpa/float32", "dynamic/eager/float32"}, "nobody overtakes one that needs all GPUs"


@pytest.mark.slow
def test_a_round_of_small_and_large_candidates_runs_on_the_gpus_of_the_largest(records: list[TrialRecord]) -> None:
    confirming = [one for one in records if one.role is Role.CONFIRM]
    assert len(confirming) > 1
    assert all(_visible_gpus(one) == one.parallelism for one in confirming)
    held = [frozenset((one.device_uuid or "").split(",")) for one in confirming]
    assert [len(one) for one in held] == [one.parallelism for one in confirming]
    assert all(one <= max(held, key=len) for one in held)
    assert set(rounds_by_device([1] * len(held), [one.device_uuid for one in confirming])) == {1}


@pytest.mark.slow  # how the machine is divided is in tests/unit/sweep/test_slot_plan.py
def test_an_exclusive_trial_leaves_the_other_gpus_of_its_machine_idle(four_gpus: str, tmp_path: Path) -> None:
    few = "- {cache: [dynamic, static], dtype: [float32], attention: [sdpa], parallelism: [1, 2]}"
    records = measured_in(tmp_path, four_gpus, few, "--confirm", "0", "--exclusive")
    assert [one.status for one in records] == [TrialStatus.OK] * 4
    assert _gpus_held(records) == [one.parallelism for one in records], "one trial at a time"
    assert all(_visible_gpus(one) == one.parallelism for one in records)
    store = ResultsStore(tmp_path / "out")
    assert store.read_manifest(store.latest_run_id()).exclusive


def _visible_gpus(record: TrialRecord) -> int:
    """How many the trial's process saw in CUDA_VISIBLE_DEVICES."""
    layers = record.cache_layers or ""
    return len(set(layers.removeprefix("FakeLayer×1 on GPU ").split(",")))


def _gpus_held(records: Sequence[TrialRecord]) -> list[int]:
    """GPUs of all trials that ran at the moment at which each of them began."""
    spans = [(one.started_at, one.ended_at, one.parallelism) for one in records]
    return [sum(gpus for start, end, gpus in spans if start <= begun < end) for begun, _, _ in spans]  # type: ignore[operator,misc]
