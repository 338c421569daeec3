"""Trials of one GPU and of two on the nodes of a real Ray, of which one is told of too long and another one dies."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from drivers import SMALL, recorded
from own_ray import cluster_of
from ray.cluster_utils import Cluster
from rich.console import Console
from typing_extensions import override

from kvray.candidate import DeviceType
from kvray.cli.progress import LineProgress
from kvray.config import SearchStrategy, TuneConfig
from kvray.record import TrialStatus
from kvray.sweep import driver
from kvray.sweep.admission import Admission
from kvray.sweep.session import living_nodes
from kvray.sweep.trial_task import TrialTask
from kvray.testing.fake import FakeAdapter
from kvray.trial.spec import TrialSpec
from kvray.tuning.search import TuningSearch

SPACE = """
- {cache: [dynamic], dtype: [float32], attention: [sdpa, eager], parallelism: [1, 2]}
- {cache: [dynamic], dtype: [bfloat16], attention: [sdpa, eager], parallelism: [1]}
"""
GHOST = "0" * 56
"""Sorts before every node of Ray's, so that the first trial is given to it."""


class NodeKiller(LineProgress):
    """Takes a node away while trials of two GPUs hold both."""

    def __init__(self, cluster: Cluster, victim: object) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.started: Counter[str] = Counter()
        self.lost: list[str] = []
        self._large: set[str] = set()
        self._cluster = cluster
        self._victim = victim

    @override
    def trial_started(self, spec: TrialSpec) -> None:
        super().trial_started(spec)
        self.started[spec.trial_id] += 1
        if spec.candidate.parallelism == 2:
            self._large.add(spec.trial_id)
        if len(self._large) == 2 and self._victim is not None:
            self._cluster.remove_node(self._victim)
            self._victim = None

    @override
    def trial_lost(self, spec: TrialSpec) -> None:
        super().trial_lost(spec)
        self.lost.append(spec.trial_id)


@pytest.mark.slow
def test_large_trials_get_a_node_each_and_run_again_when_theirs_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "cache"))
    looks: list[int] = []

    def nodes_and_a_ghost() -> dict[str, Mapping[str, float]]:
        """For the first seconds a node is told of that has died meanwhile."""
        looks.append(1)
        there = living_nodes()
        return {**there, GHOST: {"CPU": 2.0, "GPU": 2.0}} if len(looks) < 3 else there

    monkeypatch.setattr(driver, "living_nodes", nodes_and_a_ghost)
    stranded: list[str] = []
    is_stranded = Admission.is_stranded

    def noted(admission: Admission, task: TrialTask) -> bool:
        answer = is_stranded(admission, task)
        if answer:
            stranded.append(task.spec.trial_id)
        return answer

    monkeypatch.setattr(Admission, "is_stranded", noted)
    (tmp_path / "space.yaml").write_text(SPACE)
    cluster = cluster_of(num_cpus=1, num_gpus=0)
    try:
        _, victim = (cluster.add_node(num_cpus=2, num_gpus=2) for _ in range(2))
        config = TuneConfig(
            model_id="fake:gpus:2=slow",
            profile=SMALL,
            device=DeviceType.CUDA,
            engine="fake",
            address=str(cluster.address),
            output_dir=tmp_path / "out",
            space=str(tmp_path / "space.yaml"),
            search=SearchStrategy.GRID,
            confirm_rounds=0,
            check_snippet=False,
        )
        observer = NodeKiller(cluster, victim)
        with observer:
            TuningSearch(config=config, adapter=FakeAdapter(), observer=observer).run()
    finally:
        cluster.shutdown()
    records = [one.record for one in recorded(tmp_path / "out").values()]
    assert len(records) == 6
    assert {one.status for one in records} == {TrialStatus.OK}
    large = [one for one in records if one.candidate.parallelism == 2]
    assert len(large) == 2
    assert all(len((one.device_uuid or "").split(",")) == one.candidate.parallelism for one in records)
    assert stranded, "the first trial could not start on a node that is no more"
    assert observer.lost, "what ran on the node"
    assert set(observer.lost) & {one.trial_id for one in large}
    assert observer.started == Counter({one.trial_id: 1 for one in records}) + Counter(observer.lost)
