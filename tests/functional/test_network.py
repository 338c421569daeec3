"""A sweep that is told to stay offline turns to nobody; a private Ray listens to nobody beyond this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

GUARD = Path(__file__).parent / "loopback_guard"
ONE_CANDIDATE = (
    *("--device", "cpu", "--profile", "ci-micro", "--context", "16", "--output-len", "4", "--repeats", "1"),
    *("--cache", "dynamic", "--attention", "sdpa", "--dtype", "float32", "--compile", "off"),
    *("--search", "grid", "--confirm", "0", "--json"),
)
LOOPBACK = ("127.", "::1", "::ffff:127.")
_TURNED_TO = re.compile(r"(?:connect|sendto|sendmsg)\(.*AF_INET6?[,}]")


def tune(tiny_model: str, output: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "kvray", "tune", tiny_model, *ONE_CANDIDATE, "--output", str(output), *options]


def environment_of(folder: Path) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    path = os.pathsep.join(filter(None, (str(GUARD), os.environ.get("PYTHONPATH"))))
    own = {"HOME": str(folder), "KVRAY_CACHE": str(folder / "cache")}
    return {**clean, **own, "PYTHONPATH": path, "LOOPBACK_GUARD": str(folder / "notes")}


def notes_in(folder: Path, first_word: str) -> list[str]:
    return [line for line in (folder / "notes").read_text().splitlines() if line.startswith(first_word)]


def without_network(command: list[str]) -> list[str] | None:
    """`command` where there is no network but loopback; `None` where we may not take it away."""
    unshare, ip = shutil.which("unshare"), shutil.which("ip")
    if unshare is None or ip is None:
        return None
    inside = [unshare, "--net", "sh", "-c", f'{ip} link set lo up && exec "$@"', "sh"]
    works = subprocess.run([*inside, "true"], capture_output=True, check=False, timeout=240).returncode == 0
    return [*inside, *command] if works else None


def traced(command: list[str], log: Path) -> list[str]:
    """`command` with every socket call of every process noted, Ray's own in C++ among them; as it is without strace."""
    strace = shutil.which("strace")
    if strace is None:
        return command
    traced = [strace, "-f", "--seccomp-bpf", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o", str(log)]
    works = subprocess.run([*traced, "true"], capture_output=True, check=False, timeout=240).returncode == 0
    return [*traced, *command] if works else command


@dataclass(frozen=True)
class Watched:
    """A sweep that has ended."""

    folder: Path
    return_code: int
    output: str
    errors: str
    has_network: bool = True
    listening: frozenset[str] = frozenset()


@pytest.fixture(scope="module")
def offline(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """With --offline, and without a network where that can be had."""
    folder = tmp_path_factory.mktemp("offline")
    command = traced(tune(tiny_model, folder / "results", "--offline"), folder / "strace")
    cut_off = without_network(command)
    done = subprocess.run(
        cut_off or command,
        capture_output=True,
        text=True,
        check=False,
        env=environment_of(folder),
        cwd=folder,
    )
    return Watched(folder, done.returncode, done.stdout, done.stderr, has_network=cut_off is None)


@pytest.fixture(scope="module")
def unasked(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Without a word about the network, which is at hand."""
    folder = tmp_path_factory.mktemp("unasked")
    command = tune(tiny_model, folder / "results", "--no-forecast", "--no-check-snippet")
    listening: set[str] = set()
    with (folder / "stdout").open("w") as output, (folder / "stderr").open("w") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=environment_of(folder), cwd=folder)
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            listening |= listeners(process.pid)
            time.sleep(0.2)
        process.kill()
    texts = [(folder / name).read_text() for name in ("stdout", "stderr")]
    return Watched(folder, process.wait(), texts[0], texts[1], listening=frozenset(listening))


def listeners(pid: int) -> set[str]:
    """`name address` of every listening or receiving socket of `pid` and its descendants."""
    found: set[str] = set()
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return found
    for process in family:
        try:
            for one in process.net_connections(kind="inet"):
                if one.status in (psutil.CONN_LISTEN, psutil.CONN_NONE) and one.laddr:
                    found.add(f"{process.name()} {one.laddr.ip}")
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_an_offline_sweep_runs_where_there_is_no_network(offline: Watched) -> None:
    if offline.has_network:
        pytest.skip("needs unshare, ip and the right to make a network namespace")
    assert offline.return_code == 0, offline.errors
    assert '"ok": 1' in offline.output
    assert '"outcome": "checked"' in offline.output, "the winner's code was not run, or did something else"


@pytest.mark.slow
def test_offline_no_process_of_a_sweep_turns_to_another_machine(offline: Watched) -> None:
    assert offline.return_code == 0, offline.errors
    alive = "\n".join(notes_in(offline.folder, "alive"))
    assert "kvray" in alive
    assert "default_worker.py" in alive, "the guard did not get into Ray's workers"
    assert "forkserver" in alive, "the guard did not get into the fork server"
    assert notes_in(offline.folder, "elsewhere") == []


@pytest.mark.slow
def test_a_private_ray_starts_no_process_that_a_sweep_does_not_use(offline: Watched) -> None:
    started = notes_in(offline.folder, "alive")
    for unused in ("monitor.py", "dashboard.py"):
        assert [line for line in started if f"{unused}'" in line] == []
    assert sum("setup_worker.py'" in line for line in started) == 1, "workers that no trial asked for"


@pytest.mark.slow
def test_offline_neither_does_what_is_not_python(offline: Watched) -> None:
    log = offline.folder / "strace"
    if not log.is_file():
        pytest.skip("needs strace")
    turned_to = [line for line in log.read_text(errors="replace").splitlines() if _TURNED_TO.search(line)]
    assert turned_to, "nothing was traced, not even Ray's own talk"
    here = re.compile(r'"(127\.[\d.]+|::1|::ffff:127\.[\d.]+)"')
    assert [line for line in turned_to if not here.search(line)] == []


@pytest.mark.slow
def test_a_local_model_needs_no_network_even_where_nobody_forbids_it(unasked: Watched) -> None:
    assert unasked.return_code == 0, unasked.errors
    assert notes_in(unasked.folder, "elsewhere") == []


@pytest.mark.slow
def test_every_port_of_a_private_ray_is_on_loopback(unasked: Watched) -> None:
    assert {name.split()[0] for name in unasked.listening} & {"gcs_server", "raylet"}, "Ray was not seen listening"
    assert [one for one in unasked.listening if not one.split()[1].startswith(LOOPBACK)] == []


@pytest.mark.slow
def test_the_token_of_a_private_ray_lies_on_no_disk(unasked: Watched) -> None:
    assert not (unasked.folder / ".ray").exists()


def test_the_guard_sees_what_it_is_there_for(tmp_path: Path) -> None:
    code = (
        "import socket\n"
        "one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "try: one.connect(('192.0.2.1', 9))\n"
        "except OSError: pass\n"
        "one.connect(('127.0.0.1', 9))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240, env=environment_of(tmp_path))
    assert len(notes_in(tmp_path, "elsewhere")) == 1
    assert "('192.0.2.1', 9)" in notes_in(tmp_path, "elsewhere")[0]
