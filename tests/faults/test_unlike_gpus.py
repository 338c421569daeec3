"""A cluster that is joined from a machine without a GPU, and whose nodes have (logical) GPUs of two types."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from drivers import FAKE, Driver, recorded
from ray.cluster_utils import Cluster

from kvray.candidate import DeviceType
from kvray.errors import SweepError
from kvray.record import Role, TrialRecord, TrialStatus
from kvray.store.parquet import ResultsStore
from kvray.sweep.remote_device import ask_node
from kvray.testing.fake import FakeAdapter


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A head without a GPU, one GPU of type `H100`, two of type `A100`."""
    running = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    running.add_node(num_cpus=1, num_gpus=1, resources={"accelerator_type:H100": 1})
    running.add_node(num_cpus=2, num_gpus=2, resources={"accelerator_type:A100": 1})
    yield str(running.address)
    running.shutdown()


@pytest.fixture(scope="module")
def sweep(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Results of a sweep that was told of no type, and what it said."""
    folder = tmp_path_factory.mktemp("sweep")
    asked = ("--device", "cuda", "--address", cluster, "--cache", "dynamic,static", "--dtype", "float32")
    rest = ("--attention", "sdpa", "--search", "grid", "--confirm", "1", "--output", folder / "out")
    environment = {"KVRAY_CACHE": str(folder / "cache"), "HOME": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    driver = Driver("fake:ok", *FAKE, *asked, *rest, **environment)
    try:
        assert driver.wait() == 0, driver.lines
    finally:
        driver.end()
    return folder / "out", driver.lines


def records_of(sweep: tuple[Path, list[str]]) -> list[TrialRecord]:
    return [one.record for one in recorded(sweep[0]).values()]


def test_a_sweep_keeps_to_the_type_that_the_cluster_has_most_of_and_names_the_other(
    sweep: tuple[Path, list[str]],
) -> None:
    records = records_of(sweep)
    assert {(one.status, one.device_name) for one in records} == {(TrialStatus.OK, "A100")}
    (told,) = [line for line in sweep[1] if "several types" in line]
    assert "measures on A100 (2 GPUs)" in told
    assert "H100 (1)" in told


def test_the_trials_of_a_confirming_round_run_one_after_another_on_one_gpu(sweep: tuple[Path, list[str]]) -> None:
    """There are two that are alike, and the other one is free meanwhile."""
    confirming = [one for one in records_of(sweep) if one.role is Role.CONFIRM]
    assert len(confirming) == 2
    assert {one.confirm_round for one in confirming} == {1}
    (device,) = {one.device_uuid for one in confirming}
    assert device is not None
    spans = sorted((one.started_at, one.ended_at) for one in confirming)
    assert all(later[0] >= earlier[1] for earlier, later in itertools.pairwise(spans))  # type: ignore[operator]


def test_the_device_of_a_sweep_is_that_of_a_node_that_measures(sweep: tuple[Path, list[str]]) -> None:
    store = ResultsStore(sweep[0])
    manifest = store.read_manifest(store.latest_run_id())
    assert (manifest.device, manifest.device_name) == (DeviceType.CUDA, "A100")
    assert manifest.attempts[-1].fingerprint.device_name == "A100"


def test_a_record_says_on_which_hardware_it_was_measured(sweep: tuple[Path, list[str]]) -> None:
    (digest,) = {one.hardware for one in records_of(sweep)}
    assert digest is not None
    assert len(digest) == 8


def test_a_type_that_is_named_is_the_one_that_is_asked(cluster: str) -> None:
    with ray.init(address=cluster, log_to_driver=False):
        adapters = [FakeAdapter()]
        seen = ask_node(adapters, device=None, gpu_type="h100", check_alive=lambda: None)
        assert (seen.gpu_type, seen.device.device_name, seen.device.gpu_count) == ("H100", "H100", 1)
        assert [axis.name for axis in seen.axes["fake"]] == [axis.name for axis in adapters[0].axes(seen.device)]
        assert set(seen.environments["fake"].engine_versions) == {"numpy", "torch", "transformers"}
        on_cpu = ask_node(adapters, device=DeviceType.CPU, gpu_type=None, check_alive=lambda: None)
        assert dataclasses.astuple(on_cpu.device)[2:] == (0, None)
        with pytest.raises(SweepError, match="no GPUs of type 'L4'"):
            ask_node(adapters, device=DeviceType.CUDA, gpu_type="L4", check_alive=lambda: None)
