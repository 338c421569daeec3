"""`kvray submit` and `kvray jobs` with a cluster that was started as Ray's manual says, and that asks for a token."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from cutting_proxy import CuttingProxy
from prometheus_client.parser import text_string_to_metric_families
from ray_cluster import TOKEN, RayCluster

from kvray.record import TrialStatus
from kvray.store.parquet import ResultsStore
from kvray.sweep.metrics import Metric
from kvray.workload import get_profile

SWEEP = ("--engine", "fake", "--profile", "ci-micro", "--attention", "sdpa", "--dtype", "float32", "--search", "grid")
HANGING = ("tune", "fake:static=hang", *SWEEP, "--cache", "dynamic,static", "--confirm", "0", "--no-check-snippet")
TINY_LLAMA = Path(__file__).parent.parent / "assets" / "tiny_llama"
TWO_REAL_CANDIDATES = (
    *("--device", "cpu", "--profile", "ci-micro", "--context", "64", "--output-len", "32", "--repeats", "5"),
    *("--cache", "dynamic,static", "--attention", "sdpa", "--dtype", "float32", "--compile", "off"),
    *("--search", "grid", "--confirm", "0", "--no-check-snippet"),
)

BATCH = """\
defaults: {engine: fake, profiles: [mine/p.json], space: mine/space.yaml, search: grid, confirm_rounds: 0,
           check_snippet: false}
models: ["fake:a", {model: "fake:b", seed: 7}]
"""

FETCH = """\
import sys
from pathlib import Path
from kvray.errors import KvrayError
from kvray.jobs.client import JobServer
from kvray.jobs.fetching import fetch_results

address, folder, results, run_id = sys.argv[1:]
tell = lambda come, total: print(come, "of", total, flush=True)
try:
    fetch_results(
        JobServer(address), Path(folder), results=results, run_id=run_id, node=None, tell=tell, part_bytes=100_000
    )
except KvrayError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    running = RayCluster(tmp_path_factory.mktemp("cluster"), with_dashboard=True)
    yield running
    running.stop()


def kvray(
    cluster: RayCluster, *arguments: str | Path, folder: Path | None = None, **extra: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvray", *map(str, arguments)],
        env={**cluster.environment, "RAY_ADDRESS": cluster.job_server, "COLUMNS": "150", **extra},
        cwd=folder or cluster.home,
        capture_output=True,
        text=True,
        check=False,
    )


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_sweep_is_sent_with_its_files_followed_and_fetched(cluster: RayCluster, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("- cache: [dynamic, static]\n  attention: [sdpa]\n  dtype: [float32]\n")
    (profile := tmp_path / "mine.json").write_text(get_profile("ci-micro").model_dump_json())
    options = ("--engine", "fake", "--search", "grid", "--confirm", "0")
    done = kvray(cluster, "submit", "tune", "fake:x", *options, "--space", space, "--profile", profile)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "best so far: " in done.stdout
    assert "2 trials launched" in done.stdout
    assert "\x1e" not in done.stdout

    job_id = kvray(cluster, "jobs", "list").stdout.split()[0]
    again = kvray(cluster, "jobs", "logs", "--follow", job_id)
    assert (again.returncode, again.stdout) == (0, done.stdout), "from its first line, though it has ended"
    status = kvray(cluster, "jobs", "status", job_id).stdout
    assert "trials:   2 ok" in status

    fetched = kvray(cluster, "jobs", "fetch", job_id, "--output", tmp_path / "home")
    assert fetched.returncode == 0, fetched.stderr
    store, there = ResultsStore(tmp_path / "home"), ResultsStore(cluster.home / "kvray_results")
    run_id = there.latest_run_id()
    assert store.latest_run_id() == run_id
    assert (store.paths(run_id).report_html).read_bytes() == (there.paths(run_id).report_html).read_bytes()


@pytest.mark.slow
def test_a_batch_is_sent_with_its_files_and_fetched_whole(cluster: RayCluster, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "space.yaml").write_text("- cache: [static]\n  attention: [sdpa]\n  dtype: [float32]\n")
    (tmp_path / "mine" / "p.json").write_text(get_profile("ci-micro").model_dump_json())
    (tmp_path / "models.yaml").write_text(BATCH)
    done = kvray(cluster, "submit", "batch", "models.yaml", folder=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "2 of 2: fake:b · " in done.stdout
    assert "\x1e" not in done.stdout

    job_id = kvray(cluster, "jobs", "list").stdout.splitlines()[-1].split()[0]
    status = kvray(cluster, "jobs", "status", job_id).stdout
    assert "2 of 2 sweeps ended\nsweeps:   2 ok\n" in status

    fetched = kvray(cluster, "jobs", "fetch", job_id, "--output", tmp_path / "home")
    assert fetched.returncode == 0, fetched.stderr
    (overview,) = (tmp_path / "home" / "batches").glob("*/overview.html")
    assert f"report: {overview}" in fetched.stdout
    store, there = ResultsStore(tmp_path / "home"), ResultsStore(cluster.home / "kvray_results")
    assert len(store.run_ids()) == 2, "each sweep of the batch, and nobody else's"
    for run_id in store.run_ids():
        assert store.paths(run_id).report_html.read_bytes() == there.paths(run_id).report_html.read_bytes()
        assert {one.record.candidate.cache for one in store.read(run_id)} >= {"static"}


def test_ctrl_c_stops_following_only_and_a_stopped_job_is_written_up(cluster: RayCluster) -> None:
    following = subprocess.Popen(
        [sys.executable, "-m", "kvray", "submit", *HANGING],
        env={**cluster.environment, "RAY_ADDRESS": cluster.job_server, "OMP_NUM_THREADS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert following.stdout is not None
    assert any(line.startswith("start   static") for line in following.stdout)
    following.send_signal(signal.SIGINT)
    _, said = following.communicate(timeout=240)
    last = said.splitlines()[-1]
    assert following.returncode == 130
    assert "goes on. Follow it again with kvray jobs logs --follow --address" in last
    job_id = last.rstrip(".").split()[-1]
    assert "OMP_NUM_THREADS" not in driver_of(job_id).environ(), "Ray sets it, and the user did not"
    running = figures_once(cluster, lambda found: found.get(("kvray_trials", "running")) == 1)
    assert running[("kvray_trials", "ok")] == 1
    assert running[("kvray_sweep_running", None)] == 1
    assert running[("kvray_candidates", None)] == 2
    assert running[("kvray_best_gain_ratio", None)] == 1, "the baseline is all there is"
    assert running[("kvray_trial_seconds", None)] > 0
    assert running[("kvray_gpu_seconds", None)] == 0
    status = kvray(cluster, "jobs", "status", job_id).stdout
    assert "trials:   1 running, 1 ok" in status, "the same figures"
    assert re.search(r"^time: .* · as of \d\d:\d\d:\d\d$", status, re.MULTILINE)

    stopped = kvray(cluster, "jobs", "stop", job_id)
    assert stopped.stdout == f"Job {job_id}: stopped.\n", stopped.stderr
    ended = figures_once(cluster, lambda found: found.get(("kvray_sweep_running", None)) == 0)
    assert (ended[("kvray_trials", "running")], ended[("kvray_trials", "interrupted")]) == (0, 1)
    assert "Interrupted; finished trials" in kvray(cluster, "jobs", "logs", job_id).stdout
    to_go_on = "Measure the rest with: kvray submit --address"
    status = kvray(cluster, "jobs", "status", job_id).stdout
    assert re.search(rf"^go on: .*{to_go_on}", status, re.MULTILINE)
    store = ResultsStore(cluster.home / "kvray_results")
    report = store.paths(store.latest_run_id()).report_markdown.read_text(encoding="utf-8")
    told = re.search(r"^result: +(Incomplete \(.*)$", status, re.MULTILINE)
    assert told is not None, status
    assert told[1] in report.replace("\\", ""), "the verdict of the report"


@pytest.mark.slow
def test_a_job_whose_driver_was_killed_is_fetched_and_resumed_with_the_model_that_was_sent(
    cluster: RayCluster, tmp_path: Path
) -> None:
    shutil.copytree(TINY_LLAMA, tmp_path / "tiny")
    typed = ("tune", "random:tiny", *TWO_REAL_CANDIDATES)
    job_id = kvray(cluster, "submit", "--no-wait", "--upload-model", *typed, folder=tmp_path).stdout.strip()
    wait_until(lambda: "start   dynamic" in cluster.said_of(job_id))
    driver = driver_of(job_id)
    wait_until(lambda: "start   static" in cluster.said_of(job_id))
    driver.kill()
    wait_until(lambda: not driver.is_running())
    wait_until(lambda: "failed" in kvray(cluster, "jobs", "status", job_id).stdout)
    status = kvray(cluster, "jobs", "status", job_id).stdout
    assert "its driver was killed (signal 9). Its records are kept in" in status

    fetched = kvray(cluster, "jobs", "fetch", job_id, "--output", tmp_path / "home")
    assert fetched.returncode == 0, fetched.stderr
    store = ResultsStore(tmp_path / "home")
    (first,) = (one.record for one in store.read(store.latest_run_id()) if one.record.status is TrialStatus.OK)
    assert first.candidate.label == "dynamic/sdpa/float32"

    command = status.partition("Measure the rest with: ")[2].split("\n")[0]
    assert command.startswith(f"kvray submit --address {cluster.job_server} --upload-model tune random:tiny")
    resumed = kvray(cluster, *shlex.split(command)[1:], folder=tmp_path)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert [line for line in resumed.stdout.splitlines() if line.startswith("start")] == ["start   static/sdpa/float32"]
    there = ResultsStore(cluster.home / "kvray_results")
    results, code = there.read(first.run_id), there.paths(first.run_id).optimized_config.read_text(encoding="utf-8")
    assert "MODEL = 'tiny'\n" in code, "as the user named it"
    assert first in [one.record for one in results], "measured once"
    assert [one.record.status for one in results] == [TrialStatus.OK] * 2


@pytest.mark.slow
def test_a_head_that_is_started_anew_has_lost_its_jobs_and_their_rest_is_measured_there(tmp_path: Path) -> None:
    cluster = RayCluster(tmp_path, with_dashboard=True)
    try:
        following = subprocess.Popen(
            [sys.executable, "-m", "kvray", "submit", "tune", "fake:static=slow", *SWEEP, "--cache", "dynamic,static"],
            env={**cluster.environment, "RAY_ADDRESS": cluster.job_server},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert following.stdout is not None
        assert any(line.startswith("start   static") for line in following.stdout)
        cluster.kill_and_start_anew()
        _, said = following.communicate(timeout=240)
        last = said.splitlines()[-1]
        assert following.returncode == 11, said
        assert "was started anew and does not know job raysubmit_" in last
        command = last.partition("Measure the rest with: ")[2]
        resumed = kvray(cluster, *shlex.split(command)[1:])
    finally:
        cluster.stop()
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "start   static" in resumed.stdout
    assert "start   dynamic" not in resumed.stdout, "it was measured before"


def test_a_fetch_that_was_cut_goes_on_and_what_comes_is_whole(cluster: RayCluster, tmp_path: Path) -> None:
    results, proxy = cluster.home / "large", CuttingProxy(int(cluster.job_server.rpartition(":")[2]))
    for name, size in (("sweeps/a.json", 50_000), ("reports/a/report.html", 150_000)):
        (results / name).parent.mkdir(parents=True)
        (results / name).write_bytes(os.urandom(size))
    command = [sys.executable, "-c", FETCH, proxy.address, str(tmp_path / "home"), str(results), "a"]

    cut = subprocess.Popen(command, env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert cut.stdout is not None
    assert cut.stdout.readline() == "100000 of 200000\n"
    proxy.cut_after(20_000)
    rest, said = cut.communicate(timeout=240)
    assert (cut.returncode, rest, said.count("\n")) == (11, "", 1)
    assert "What has come is kept: repeat the command to go on from there." in said
    assert not (tmp_path / "home" / "reports").exists(), "nothing takes its place before it is checked"

    proxy.mend()
    again = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=240, check=False)
    proxy.stop()
    assert again.stdout == "200000 of 200000\n", again.stderr
    names = sorted(path.relative_to(tmp_path / "home").as_posix() for path in (tmp_path / "home").rglob("*.*"))
    assert [one for one in names if not one.startswith(".partial")] == ["reports/a/report.html", "sweeps/a.json"]
    for name in ("reports/a/report.html", "sweeps/a.json"):
        assert (tmp_path / "home" / name).read_bytes() == (results / name).read_bytes()


@pytest.mark.parametrize(
    ("address", "token", "said"),
    [
        (None, "f" * 32, "it does not accept the token in RAY_AUTH_TOKEN"),
        ("http://{head}", TOKEN, "does not speak HTTP. It may be the port at which Ray's own nodes join"),
    ],
)
def test_a_wrong_token_or_address_is_one_line(cluster: RayCluster, address: str | None, token: str, said: str) -> None:
    given = () if address is None else ("--address", address.format(head=cluster.address))
    done = kvray(cluster, "submit", *given, "tune", "fake:x", RAY_AUTH_TOKEN=token, RAY_AUTH_MODE="token")
    assert done.returncode in (2, 11)
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def figures_once(
    cluster: RayCluster, is_so: Callable[[dict[tuple[str, str | None], float]], bool]
) -> dict[tuple[str, str | None], float]:
    """What Prometheus reads of the sweep that is told of last, by metric and status, as soon as `is_so`."""
    deadline = time.monotonic() + 240
    while not is_so(found := figures(cluster)):
        assert time.monotonic() < deadline, found
        time.sleep(0.3)
    return found


def figures(cluster: RayCluster) -> dict[tuple[str, str | None], float]:
    """Metrics of an ended sweep stay for a while, so those of the latest run are taken."""
    found: dict[str, dict[tuple[str, str | None], float]] = {}
    for endpoint in cluster.metrics_endpoints:
        try:
            text = urllib.request.urlopen(endpoint, timeout=10).read().decode()
        except urllib.error.URLError:  # Ray names its autoscaler, too, which does not run here
            continue
        for family in text_string_to_metric_families(text):
            name = family.name.removeprefix("ray_")
            if name.startswith("kvray_"):
                assert family.documentation == Metric(name).help
                for sample in family.samples:
                    assert set(Metric(name).labels) <= set(sample.labels)
                    assert sample.labels["profile"] == "ci-micro"
                    assert sample.labels["engine"] == "fake"
                    found.setdefault(sample.labels["run_id"], {})[name, sample.labels.get("status")] = sample.value
    return found[max(found)] if found else {}


def driver_of(job_id: str) -> psutil.Process:
    """The process that runs the sweep of the job."""
    for process in psutil.process_iter():
        try:
            command, environment = process.cmdline(), process.environ()
        except psutil.Error:
            continue
        if "tune" in command and any(job_id in value for value in environment.values()):
            return process
    raise AssertionError(f"job {job_id} has no driver; {os.getpid()}")
