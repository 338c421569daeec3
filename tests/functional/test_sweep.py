"""Whole sweeps under a real Ray Tune, with the fake engine where misbehaviour is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import psutil
import pytest
import ray
from own_ray import cluster_of

from kvray.candidate import DeviceType
from kvray.config import SearchStrategy, TuneConfig
from kvray.errors import AllTrialsFailedError
from kvray.plan.plan import load_plan_file
from kvray.probes.environment import library_versions
from kvray.record import Role, TrialStatus
from kvray.store.parquet import ResultsStore
from kvray.testing.fake import FakeAdapter
from kvray.tuning.result import TuneResult, read_result
from kvray.tuning.search import TuningSearch
from kvray.workload import create_custom_profile

PROFILE = create_custom_profile(
    "sweep", context_lengths=(64, 128), output_lengths=(4,), weight_ttft=0.4, weight_throughput=0.4, weight_memory=0.2
)


def config_of(model_id: str, folder: Path, **changes: object) -> TuneConfig:
    values: dict[str, object] = {
        "model_id": model_id,
        "profile": PROFILE,
        "device": DeviceType.CPU,
        "engine": "fake",
        "output_dir": folder,
        "timeout_s": 10.0,
    }
    return TuneConfig(**{**values, **changes})


def processes_of_this_test() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> tuple[TuneResult, Path, set[int]]:
    """A sweep in which half of the candidates misbehave, and the processes that were left after it."""
    folder = tmp_path_factory.mktemp("troubled")
    before = processes_of_this_test()
    commands = "fake:static/eager=segv,static/sdpa/b=hang,static/sdpa_math=oom,dynamic/eager/b=exit@load"
    result = TuningSearch(config=config_of(commands, folder)).run()
    return result, folder, processes_of_this_test() - before


def test_every_candidate_ends_in_exactly_one_status(troubled: tuple[TuneResult, Path, set[int]]) -> None:
    result, _, _ = troubled
    searched = [one.record for one in result.results if one.record.role is not Role.CONFIRM]
    assert len(searched) == len({record.candidate_id for record in searched}) == 12
    statuses = {record.candidate.label: record.status for record in searched}
    assert statuses["dynamic/sdpa/float32"] is TrialStatus.OK
    assert statuses["static/eager/float32"] is TrialStatus.CRASHED
    assert statuses["static/eager/bfloat16"] is TrialStatus.CRASHED
    assert statuses["static/sdpa/bfloat16"] is TrialStatus.TIMEOUT
    assert statuses["static/sdpa_math/float32"] is TrialStatus.OOM
    assert statuses["dynamic/eager/bfloat16"] is TrialStatus.CRASHED
    assert set(statuses.values()) <= {*TrialStatus}


def test_failures_do_not_stop_the_sweep_and_a_winner_is_found(troubled: tuple[TuneResult, Path, set[int]]) -> None:
    result, _, _ = troubled
    ranking = result.analysis.ranking
    winner = ranking.winner.record
    assert winner.status is TrialStatus.OK
    assert winner.candidate.label in {"dynamic/sdpa/float32", "dynamic/sdpa/bfloat16", "static/sdpa/float32"}
    assert len(ranking.entries) + len(ranking.unranked) == 12


def test_the_baseline_was_measured_first_and_completely(troubled: tuple[TuneResult, Path, set[int]]) -> None:
    result, _, _ = troubled
    first = min(result.results, key=lambda one: one.record.started_at or one.record.ended_at)  # type: ignore[arg-type,return-value]
    assert first.record.role is Role.BASELINE
    assert first.record.rung == 2


def test_a_crash_keeps_its_phase_message_and_log(troubled: tuple[TuneResult, Path, set[int]]) -> None:
    result, _, _ = troubled
    record = next(one.record for one in result.results if one.record.candidate.label == "dynamic/eager/bfloat16")
    assert (record.phase, record.message) == ("load", "exited with code 7 without a word")
    assert record.log_tail == "last words"


def test_each_trial_had_a_process_of_its_own(troubled: tuple[TuneResult, Path, set[int]]) -> None:
    result, _, _ = troubled
    pids = [one.record.pid for one in result.results if one.record.pid is not None]
    assert len(pids) == len(set(pids)) >= 6


def test_the_environment_of_a_measurement_is_recorded(troubled: tuple[TuneResult, Path, set[int]]) -> None:
    record = troubled[0].analysis.ranking.winner.record
    assert record.niceness == 0, "Ray's own default is 15"
    assert record.cpus is not None
    assert record.device_name
    assert record.kvray_version
    assert record.torch_version
    assert record.versions == dict(record.engine_versions) == library_versions(FakeAdapter.libraries)


def test_nothing_that_the_sweep_started_is_left(troubled: tuple[TuneResult, Path, set[int]]) -> None:
    left = {pid for pid in troubled[2] if psutil.pid_exists(pid)}
    assert {pid for pid in left if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE} == set()
    assert not ray.is_initialized()


def test_the_records_open_in_duckdb(troubled: tuple[TuneResult, Path, set[int]]) -> None:
    _, folder, _ = troubled
    trials, runs = folder / "trials" / "*" / "*.parquet", folder / "runs" / "*" / "*.parquet"
    counted = duckdb.sql(f"SELECT status, count(*) FROM '{trials}' GROUP BY ALL").fetchall()
    assert dict(counted)["crashed"] == 3
    assert duckdb.sql(f"SELECT max(len(itl_ms)) FROM '{runs}'").fetchall() == [(3,)]


def test_plan_snippet_and_reports_lie_beside_the_records(troubled: tuple[TuneResult, Path, set[int]]) -> None:
    result, _, _ = troubled
    paths = result.paths
    assert load_plan_file(paths.best_plan).winner.candidate == result.analysis.ranking.winner.record.candidate
    compile(paths.optimized_config.read_text(), "snippet", "exec")
    assert "static/sdpa_math/float32" in paths.report_markdown.read_text()
    assert "<!doctype html>" in paths.report_html.read_text()[:200].lower()


def test_a_finished_sweep_resumes_to_nothing(troubled: tuple[TuneResult, Path, set[int]]) -> None:
    result, folder, _ = troubled
    again = TuningSearch(config=config_of(result.manifest.model_id, folder, resume=result.manifest.run_id)).run()
    assert again.records_sha256 == result.records_sha256


@pytest.mark.slow  # test_resume shows it by the command line
def test_resuming_measures_exactly_what_is_missing(tmp_path: Path) -> None:
    every_one = {"search": SearchStrategy.GRID, "confirm_rounds": 0}
    whole = TuningSearch(config=config_of("fake:ok", tmp_path, **every_one)).run()
    paths = whole.paths
    keep = whole.results[:5]
    for folder in (paths.trials, paths.runs):
        (folder / "part-0.parquet").unlink()
    store = ResultsStore(tmp_path)
    for one in keep:
        store.append(one)
    config = config_of("fake:ok", tmp_path, resume=whole.manifest.run_id, **every_one)
    again = TuningSearch(config=config).run()
    assert {one.record.trial_id for one in again.results} == {one.record.trial_id for one in whole.results}
    kept = {one.record.trial_id: one.record.pid for one in again.results}
    assert all(kept[one.record.trial_id] == one.record.pid for one in keep)


@pytest.mark.slow
def test_when_every_trial_fails_the_error_says_why_and_the_records_stay(tmp_path: Path) -> None:
    with pytest.raises(AllTrialsFailedError, match=r"No candidate was measured completely: oom \(12\): told to run"):
        TuningSearch(config=config_of("fake:/=oom", tmp_path)).run()
    store = ResultsStore(tmp_path)
    result = read_result(store, store.latest_run_id())
    assert {one.record.status for one in result.results} == {TrialStatus.OOM}
    assert result.paths.report_html.is_file()
    assert not result.paths.best_plan.exists()


@pytest.mark.slow
def test_an_error_that_is_no_candidates_is_paid_for_twice_and_told_once(tmp_path: Path) -> None:
    with pytest.raises(AllTrialsFailedError) as raised:
        TuningSearch(config=config_of("fake:/=raise@load", tmp_path)).run()
    store = ResultsStore(tmp_path)
    result = read_result(store, store.latest_run_id())
    statuses = [one.record.status for one in result.results]
    assert (statuses.count(TrialStatus.ERROR), statuses.count(TrialStatus.SKIPPED)) == (2, 10)
    assert raised.value.message == (
        "The baseline and static/eager/bfloat16 ended with the same error, so no candidate causes it: "
        "RuntimeError: told to raise."
    )
    assert str(raised.value.hint).endswith(f"with --resume {result.manifest.run_id} --retry error.")
    assert {one.record.message for one in result.results if one.record.status is TrialStatus.SKIPPED} == {
        "the same error ended every trial before it"
    }


@pytest.fixture
def two_gpu_cluster() -> Iterator[str]:
    """Two nodes with one logical GPU each: Ray schedules and pins as with real ones."""
    cluster = cluster_of(num_cpus=1, num_gpus=1)
    cluster.add_node(num_cpus=1, num_gpus=1)
    yield str(cluster.address)
    cluster.shutdown()


@pytest.mark.slow  # test_gpus_per_trial and test_joined_cluster show the same from processes of their own
def test_a_sweep_runs_on_a_cluster_with_every_trial_pinned_to_one_gpu(two_gpu_cluster: str, tmp_path: Path) -> None:
    config = config_of("fake:ok", tmp_path, device=DeviceType.CUDA, address=two_gpu_cluster)
    result = TuningSearch(config=config).run()
    assert [one.record.status for one in result.results].count(TrialStatus.OK) >= 3
    pinned = {one.record.cache_layers for one in result.results if one.record.cache_layers}
    assert pinned == {"FakeLayer×1 on GPU 0"}, "each node has one GPU, number 0"
