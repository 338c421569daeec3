"""`kvray tune --address` with a cluster that was started as Ray's manual says, and that asks for a token by default."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from drivers import FAKE, recorded
from hostile_folder import HostileFolder, run
from ray_cluster import RayCluster

from kvray.record import TrialStatus
from kvray.store.batch_store import BatchStore
from kvray.store.parquet import ResultsStore

JOIN = "from pathlib import Path; from kvray.sweep.session import RaySession\n" + (
    "with RaySession(address={address!r}, scratch=Path({scratch!r})) as ray: print(len(ray.nodes()))"
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    running = RayCluster(tmp_path_factory.mktemp("cluster"))
    yield running
    running.stop()


def test_a_cluster_is_joined_with_nothing_set_and_its_workers_import_nothing_from_the_working_folder(
    cluster: RayCluster, tmp_path: Path
) -> None:
    hostile, results = HostileFolder(tmp_path), tmp_path / "results"
    sweep = ("tune", "fake:x", *FAKE, "--attention", "sdpa", "--cache", "dynamic,static", "--dtype", "float32")
    rest = ("--search", "grid", "--confirm", "0", "--address", cluster.address, "--output", results)
    done = run(
        hostile, sys.executable, "-m", "kvray", *sweep, *rest, environment={**cluster.environment, "PYTHONPATH": ""}
    )
    assert (done.returncode, hostile.imported) == (0, ""), done.stderr
    assert [one.record.status for one in recorded(results).values()] == [TrialStatus.OK] * 2
    assert not ResultsStore(results).paths(ResultsStore(results).latest_run_id()).sweep_log.exists(), "Ray said nothing"


def test_a_cluster_is_found_by_itself(cluster: RayCluster, tmp_path: Path) -> None:
    program = JOIN.format(address="auto", scratch=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "1\n", done.stderr


def test_a_type_of_gpu_is_not_looked_for_on_a_cpu_in_its_place(cluster: RayCluster, tmp_path: Path) -> None:
    where = ("--address", cluster.address, "--output", str(tmp_path / "results"))
    done = subprocess.run(
        [sys.executable, "-m", "kvray", "tune", "fake:x", "--engine", "fake", "--gpu-type", "A100", *where],
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "The sweep needs 1 GPU, Ray offers 0." in done.stderr


OF_ANOTHER_RAY = """
import json, pathlib, ray
from ray._common.usage import usage_lib
from ray._private.authentication import authentication_token_setup as setup
from kvray.errors import SweepError
from kvray.sweep.joining import prepare_to_join
setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
client = ray._raylet.GcsClient(address={address!r})
noted = usage_lib.get_cluster_metadata(client)
def note(one):
    client.internal_kv_put(usage_lib.usage_constant.CLUSTER_METADATA_KEY, json.dumps(one).encode(), True, b"cluster")
note({{**noted, "ray_version": "2.9.9"}})
try:
    prepare_to_join({address!r})
except SweepError as error:
    print(error)
finally:
    note(noted)
"""
"""Changes what the head has noted of itself, and asks to join."""


def test_a_cluster_of_another_ray_is_refused_before_it_is_joined(cluster: RayCluster) -> None:
    program = OF_ANOTHER_RAY.format(address=cluster.address)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith(
        f"The Ray cluster at '{cluster.address}' cannot be joined: it has Ray 2.9.9 and Python "
    ), done.stderr


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "it asks for a token, and there is none here."),
        pytest.param(
            {"RAY_AUTH_TOKEN": "f" * 32}, "it does not accept the token in RAY_AUTH_TOKEN.", marks=pytest.mark.slow
        ),
    ],
)
def test_without_its_token_one_line_says_so_and_what_ray_says_is_in_the_log(
    cluster: RayCluster, tmp_path: Path, wrong: dict[str, str], said: str
) -> None:
    command = ("tune", "fake:x", *FAKE, "--address", cluster.address, "--output", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "kvray", *command],
        env={**cluster.environment, "KVRAY_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path), **wrong},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 11
    assert done.stderr.startswith(f"kvray: The Ray cluster at '{cluster.address}' cannot be joined: {said}")
    assert done.stderr.count("\n") == 1
    (log,) = tmp_path.glob("reports/*/sweep.log")
    assert "InvalidAuthToken" in log.read_text()


NEVER = dt.datetime.min.replace(tzinfo=dt.UTC)
BATCH = """\
defaults: {engine: fake, profiles: [ci-micro], context_lengths: [16], output_lengths: [4], repeats: 1,
           caches: [dynamic], dtypes: [float32], attentions: [sdpa], search: grid, confirm_rounds: 0}
models: ["fake:ok", "fake:=oom", "fake:=nonsense"]
"""


@pytest.mark.slow
def test_a_batch_measures_on_a_joined_cluster_and_retries_there_what_failed(
    cluster: RayCluster, tmp_path: Path
) -> None:
    (tmp_path / "models.yaml").write_text(BATCH, encoding="utf-8")
    store = BatchStore(tmp_path / "results")

    def batch(*arguments: str) -> tuple[str, dict[str, dt.datetime]]:
        """The batch's id, and by model when its last trial began."""
        done = subprocess.run(
            [sys.executable, "-m", "kvray", "batch", *arguments, "--output", "results", "--address", cluster.address],
            env={**cluster.environment, "KVRAY_CACHE": str(tmp_path / "cache")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 13, done.stderr
        (batch_id,) = store.batch_ids()
        sweeps = store.read_manifest(batch_id).sweeps
        assert [one.status.value for one in sweeps] == ["ok", "no winner", "failed"], done.stderr
        found = {one.model_id: ResultsStore(tmp_path / "results").read(one.run_id) for one in sweeps[:2]}
        assert all(len(results) == 1 for results in found.values())
        return batch_id, {name: max(one.record.started_at or NEVER for one in of) for name, of in found.items()}

    batch_id, first = batch("models.yaml")
    assert batch("--resume", batch_id) == (batch_id, first)
    _, again = batch("--resume", batch_id, "--retry", "failed")
    assert again["fake:ok"] == first["fake:ok"]
    assert again["fake:=oom"] > first["fake:=oom"]
