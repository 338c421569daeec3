"""A sweep is started where the model is not: only the nodes that measure have it, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from drivers import SMALL, recorded
from homebound_engine import HOME, HomeboundAdapter
from own_ray import cluster_of
from ray.cluster_utils import Cluster

from kvray.candidate import DeviceType
from kvray.config import SearchStrategy, TuneConfig
from kvray.errors import ModelError
from kvray.record import TrialStatus
from kvray.store.parquet import ResultsStore
from kvray.tuning.search import TuningSearch


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, list[Path]]]:
    """A head without the model, and two nodes that have it."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    running = cluster_of(num_cpus=1, num_gpus=0)
    for folder in folders:
        (folder / "name").write_text("Homebound")
        (folder / "revision").write_text("7")
        running.add_node(num_cpus=1, num_gpus=1, env_vars={HOME: str(folder)})
    yield running, folders
    running.shutdown()


def config(cluster: Cluster, folder: Path, **values: object) -> TuneConfig:
    return TuneConfig(
        profile=SMALL,
        device=DeviceType.CUDA,
        engine="fake",
        address=str(cluster.address),
        output_dir=folder / "out",
        caches=("dynamic",),
        attentions=("sdpa", "eager"),
        dtypes=("float32",),
        search=SearchStrategy.GRID,
        confirm_rounds=0,
        check_snippet=False,
        **{"model_id": "fake:ok", **values},
    )


@pytest.mark.slow
def test_the_model_is_described_and_its_weights_are_fetched_on_every_node_before_the_first_trial(
    cluster: tuple[Cluster, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "cache"))
    running, folders = cluster
    given = config(running, tmp_path)
    adapter = HomeboundAdapter()
    with pytest.raises(ModelError, match="not on this machine"):
        TuningSearch(config=given.model_copy(update={"address": None, "device": DeviceType.CPU}), adapter=adapter).run()
    TuningSearch(config=given, adapter=adapter).run()
    records = [one.record for one in recorded(tmp_path / "out").values()]
    assert len(records) == 2
    assert {(one.status, one.message) for one in records} == {(TrialStatus.OK, None)}
    manifest = ResultsStore(tmp_path / "out").read_manifest(records[0].run_id)
    assert (manifest.architecture, manifest.model_revision) == ("Homebound", "7")
    fetched = [(folder / "fetched").read_text().split() for folder in folders]
    assert [revision for _, revision in fetched] == ["7", "7"]
    assert len({pid for pid, _ in fetched}) == 2


def test_what_a_node_says_of_a_model_that_it_cannot_take_is_the_sweeps_own_error(
    cluster: tuple[Cluster, list[Path]], tmp_path: Path
) -> None:
    given = config(cluster[0], tmp_path, model_id="another")
    with pytest.raises(ModelError, match="another"):
        TuningSearch(config=given, adapter=HomeboundAdapter()).preview()
