"""A cluster that is joined from a machine without a GPU, and whose nodes have (logical) GPUs of two types."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
from drivers import FAKE, SMALL, Driver, recorded
from own_ray import cluster_of

from kvray.candidate import DeviceType
from kvray.cli.preview import print_preview
from kvray.config import TuneConfig
from kvray.errors import SweepError
from kvray.plan.plan import load_plan_file
from kvray.record import Role, TrialRecord, TrialStatus
from kvray.store.batch_manifest import BatchStatus
from kvray.store.parquet import ResultsStore
from kvray.sweep.joining import prepare_to_join
from kvray.sweep.loopback import forget_token, recall_auth_mode
from kvray.sweep.remote_device import ask_nodes
from kvray.testing.fake import FakeAdapter
from kvray.tuning.batch import BatchSearch
from kvray.tuning.batch_file import AskedSweep
from kvray.tuning.batch_options import BatchOptions
from kvray.tuning.result import TuneResult, read_result
from kvray.tuning.search import TuningSearch

pytestmark = pytest.mark.slow  # tests/unit/sweep/test_lanes.py holds whose trial is next on which type


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A head without a GPU, one GPU of type `H100`, two of type `A100`."""
    running = cluster_of(num_cpus=1, num_gpus=0)
    running.add_node(num_cpus=1, num_gpus=1, resources={"accelerator_type:H100": 1})
    running.add_node(num_cpus=2, num_gpus=2, resources={"accelerator_type:A100": 1})
    yield str(running.address)
    running.shutdown()


@dataclass(frozen=True, kw_only=True)
class Said:
    """What two runs of one sweep left: the first kept to one type and was told to launch one candidate."""

    folder: Path
    before: dict[str, TrialRecord]
    lines: list[str]

    @property
    def records(self) -> dict[str, TrialRecord]:
        return records_of(self.folder)

    @property
    def result(self) -> TuneResult:
        store = ResultsStore(self.folder)
        return read_result(store, store.latest_run_id())


def records_of(folder: Path) -> dict[str, TrialRecord]:
    return {key: one.record for key, one in recorded(folder).items()}


@pytest.fixture(scope="module")
def sweep(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Said:
    folder = tmp_path_factory.mktemp("sweep")
    asked = ("--device", "cuda", "--address", cluster, "--cache", "dynamic,static", "--dtype", "float32")
    rest = ("--attention", "sdpa", "--search", "grid", "--confirm", "1", "--output", folder / "out")
    environment = {"KVRAY_CACHE": str(folder / "cache"), "HOME": str(folder), "CUDA_VISIBLE_DEVICES": ""}

    def run(*further: str) -> list[str]:
        driver = Driver("fake:ok", *FAKE, *asked, *rest, *further, **environment)
        try:
            assert driver.wait() == 0, driver.lines
        finally:
            driver.end()
        return driver.lines

    run("--gpu-type", "a100", "--max-trials", "1")
    before = records_of(folder / "out")
    lines = run("--resume", ResultsStore(folder / "out").latest_run_id())
    return Said(folder=folder / "out", before=before, lines=lines)


def launched(records: Mapping[str, TrialRecord], gpu_type: str) -> dict[str, TrialRecord]:
    return {key: one for key, one in records.items() if one.gpu_type == gpu_type and one.status.was_launched}


def test_a_sweep_measures_every_candidate_on_every_type_that_is_there(sweep: Said) -> None:
    for name in ("A100", "H100"):
        own = launched(sweep.records, name)
        assert {(one.status, one.device_name) for one in own.values()} == {(TrialStatus.OK, name)}
        searched = [one.candidate_id for one in own.values() if one.role is not Role.CONFIRM]
        assert len(searched) == len(set(searched)) == 2


@pytest.mark.parametrize("name", ["A100", "H100"])
def test_the_trials_of_a_confirming_round_run_one_after_another_on_one_gpu(sweep: Said, name: str) -> None:
    """There are two A100 that are alike, and the other one is free meanwhile."""
    confirming = [one for one in launched(sweep.records, name).values() if one.role is Role.CONFIRM]
    assert len(confirming) == 2
    assert {one.confirm_round for one in confirming} == {1}
    (device,) = {one.device_uuid for one in confirming}
    assert device is not None
    spans = sorted((one.started_at, one.ended_at) for one in confirming)
    assert all(later[0] >= earlier[1] for earlier, later in itertools.pairwise(spans))  # type: ignore[operator]


def test_what_one_type_has_recorded_is_kept_and_not_taken_as_measured_for_another(sweep: Said) -> None:
    before = launched(sweep.before, "A100")
    assert before
    assert not launched(sweep.before, "H100")
    assert {key: sweep.records[key].started_at for key in before} == {
        key: one.started_at for key, one in before.items()
    }


def test_each_type_has_a_ranking_a_plan_and_a_report_of_its_own_and_no_round_mixes_them(sweep: Said) -> None:
    first = sweep.result
    (other,) = first.other_hardware
    assert [one.device_name for one in (first, other)] == ["A100", "H100"], "the cluster has more of the first"
    for one in (first, other):
        assert {trial.record.gpu_type for trial in one.results} == {one.device_name}
        assert len(one.analysis.ranking.entries) == 2
        assert load_plan_file(one.paths.best_plan).fingerprint.device_name == one.device_name
        assert one.paths.report_html.is_file()
        assert [trial for trial in one.results if trial.record.role is Role.CONFIRM]


def test_the_lines_tell_on_which_type_a_trial_runs_and_the_best_of_each(sweep: Said) -> None:
    assert any(line.startswith("start") and line.endswith(" on H100") for line in sweep.lines), sweep.lines
    assert [line for line in sweep.lines if "A100 + H100 (cuda)" in line]
    last = [line for line in sweep.lines if "best so far: " in line][-1]
    assert " on A100 · TTFT" in last
    assert " on H100 · TTFT" in last


def test_the_device_of_a_sweep_is_that_of_a_node_that_measures(sweep: Said) -> None:
    store = ResultsStore(sweep.folder)
    manifest = store.read_manifest(store.latest_run_id())
    assert (manifest.device, manifest.device_name) == (DeviceType.CUDA, "A100")
    assert manifest.attempts[-1].fingerprint.device_name == "A100"
    assert [one.gpu_type for one in manifest.gpu_types] == ["A100", "H100"]


def test_a_record_says_on_which_hardware_it_was_measured(sweep: Said) -> None:
    digests = {(one.gpu_type, one.hardware) for one in sweep.records.values() if one.status.was_launched}
    assert len(digests) == 2
    assert all(len(digest or "") == 8 for _, digest in digests)


def test_a_dry_run_shows_what_is_measured_on_each_type(
    cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = TuneConfig(
        model_id="fake:ok", profile="ci-micro", engine="fake", address=cluster, output_dir=str(tmp_path / "out")
    )
    preview = TuningSearch(config=given).preview()
    print_preview(preview, given, as_json=False)
    said = capsys.readouterr().out
    assert [said.count(f"fake:ok (Fake) on {name} (cuda)") for name in ("A100", "H100")] == [1, 1]
    print_preview(preview, given, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert [told["device"], *(one["device"] for one in told["other_gpu_types"])] == ["A100", "H100"]


def test_a_type_that_is_named_is_the_one_that_is_asked(cluster: str) -> None:
    with ray.init(address=cluster, log_to_driver=False):
        adapters = [FakeAdapter()]
        (seen,) = ask_nodes(adapters, device=None, gpu_type="h100", check_alive=lambda: None)
        assert (seen.gpu_type, seen.device.device_name, seen.device.gpu_count) == ("H100", "H100", 1)
        assert [axis.name for axis in seen.axes["fake"]] == [axis.name for axis in adapters[0].axes(seen.device)]
        assert set(seen.environments["fake"].engine_versions) == {"numpy", "torch", "transformers"}
        (on_cpu,) = ask_nodes(adapters, device=DeviceType.CPU, gpu_type=None, check_alive=lambda: None)
        assert (on_cpu.device.gpu_count, on_cpu.device.compute_capability) == (0, None)
        with pytest.raises(SweepError, match="no GPUs of type 'L4'"):
            ask_nodes(adapters, device=DeviceType.CUDA, gpu_type="L4", check_alive=lambda: None)


def test_no_token_is_sent_to_a_cluster_that_asks_for_none(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has RAY_AUTH_MODE set, or has it from a Ray of his program's own, would lose every slot otherwise."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 32)
    try:
        assert prepare_to_join(cluster) in (cluster, None)
        assert os.environ["RAY_AUTH_MODE"] == "disabled"
        assert ray._raylet.get_authentication_mode() == ray._raylet.AuthenticationMode.DISABLED
    finally:
        recall_auth_mode(None)
        forget_token()


def test_each_model_of_a_batch_is_measured_on_every_type(cluster: str, tmp_path: Path) -> None:
    settings = {"engine": "fake", "search": "grid", "confirm_rounds": 0, "dtypes": ["float32"], "caches": ["dynamic"]}
    asked = [AskedSweep(model_id=name, profile=SMALL, settings=settings) for name in ("fake:ok", "fake:eager=oom")]
    options = BatchOptions(output_dir=str(tmp_path), device=DeviceType.CUDA, address=cluster)
    ended = BatchSearch(asked, options).run()
    assert [one.status for one in ended.sweeps] == [BatchStatus.OK] * 2
    for sweep in ended.sweeps:
        records = recorded(tmp_path, sweep.run_id).values()
        statuses = {
            name: sorted((one.record.candidate_id, one.record.status) for one in records if one.record.gpu_type == name)
            for name in ("A100", "H100")
        }
        assert statuses["A100"]
        assert statuses["A100"] == statuses["H100"]
        result = read_result(ResultsStore(tmp_path), sweep.run_id)
        assert [one.device_name for one in (result, *result.other_hardware)] == ["A100", "H100"]
