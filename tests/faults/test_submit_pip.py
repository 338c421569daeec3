"""`kvray submit --pip`: a cluster whose Python has Ray and all that kvray needs, but no kvray."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray_cluster import RayCluster

OPTIONS = (
    *("--engine", "fake", "--profile", "ci-micro", "--attention", "sdpa", "--dtype", "float32", "--cache", "static"),
    *("--confirm", "0", "--no-check-snippet"),
)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RayCluster]:
    running = RayCluster(tmp_path, with_dashboard=True, python=python_without_kvray(tmp_path / "environment"))
    yield running
    running.stop()


def python_without_kvray(folder: Path) -> str:
    """Of a new environment with everything that is installed beside Ray except kvray."""
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for installed in Path(ray.__file__).parent.parent.iterdir():
        if "kvray" not in installed.name:
            (packages / installed.name).symlink_to(installed)
    return str(folder / "bin" / "python")


@pytest.mark.slow
def test_a_cluster_without_kvray_installs_the_one_that_was_sent(cluster: RayCluster) -> None:
    refused = submit(cluster)
    assert refused.returncode == 11, refused.stderr + refused.stdout
    assert "The cluster has no kvray. Install it on every node, or let the job bring it: kvray submit --pip." in (
        refused.stdout
    )
    done = submit(cluster, "--pip")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "trials launched" in done.stdout


def submit(cluster: RayCluster, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvray", "submit", *options, "tune", "fake:x", *OPTIONS],
        env={**cluster.environment, "RAY_ADDRESS": cluster.job_server, "COLUMNS": "150"},
        cwd=cluster.home,
        capture_output=True,
        text=True,
        check=False,
    )
