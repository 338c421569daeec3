"""What `kvray apply PLAN --print-command` prints starts llama.cpp's own server, which answers as the winner did."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvray.candidate import DeviceType
from kvray.engines.base import ModelRequest
from kvray.engines.llama_cpp import LlamaCppAdapter
from kvray.plan.plan import load_plan_file

pytestmark = pytest.mark.slow

TOOLS = Path(__file__).parents[2] / ".llama-tools" / "bin"
SERVER = shutil.which("llama-server", path=os.pathsep.join([str(TOOLS), os.environ.get("PATH", "")]))
Kvray = Callable[..., "subprocess.CompletedProcess[str]"]
READY_S, ANSWER_S = 60.0, 120.0


@pytest.mark.skipif(SERVER is None, reason="make llama-tools builds llama-server")
@pytest.mark.parametrize("types", ["f16", "q8_0"])
def test_the_printed_command_serves_the_tokens_that_were_measured(
    types: str, kvray: Kvray, demo_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp", reason="the extra llama-cpp is not installed")
    sweep = ("--engine", "llama_cpp", "--context", "96", "--output-len", "24", "--repeats", "1", "--confirm", "0")
    cache = "static" if types == "f16" else "quantized"
    asked = ("--cache", cache, "--attention", "flash", "--set", f"type_k={types}", "--set", f"type_v={types}")
    swept = kvray("tune", demo_model, *sweep, *asked, "--output", tmp_path, "--json")
    assert swept.returncode == 0, swept.stderr
    (plan,) = tmp_path.glob("reports/*/best_plan.json")
    printed = kvray("apply", plan, "--print-command")
    assert printed.returncode == 0, printed.stderr
    name, *words = shlex.split(printed.stdout)
    assert Path(name).name == "llama-server"

    prompt, measured = measured_tokens(plan)
    with running([str(SERVER), *words], tmp_path / "server.log") as url:
        served = ask(
            f"{url}/completion",
            prompt=prompt,
            n_predict=len(measured),
            temperature=0,
            cache_prompt=False,
            ignore_eos=True,
            return_tokens=True,
        )
    assert served["tokens"] == measured
    assert served["timings"]["cache_n"] == 0, "the prompt was read"


def measured_tokens(path: Path) -> tuple[list[int], list[int]]:
    """The prompt of the plan's winner, and what it answers, as a trial asks it."""
    plan = load_plan_file(path)
    winner = plan.winner.candidate
    (cell,) = plan.profile.cells(winner.batch_size, rung=2)
    request = ModelRequest(model_id=plan.model_id)
    model: Any = LlamaCppAdapter().load(request, winner, DeviceType.CPU, plan.profile)
    try:
        model.prepare(cell)
        (prompt,) = model._texts.prompts(cell)
        (answer,) = model.generate(cell.output_tokens).tokens
    finally:
        model.close()
    return list(map(int, prompt)), list(map(int, answer))


@contextmanager
def running(command: list[str], log: Path) -> Iterator[str]:
    """The server's address, from when it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        log.open("w") as file,
        subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=file, stderr=file) as server,
    ):
        try:
            wait_ready(server, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def wait_ready(server: subprocess.Popen[bytes], health: str, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(health, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"the server does not answer:\n{log.read_text()[-2000:]}")


def ask(url: str, **question: object) -> dict[str, Any]:
    request = urllib.request.Request(
        url, data=json.dumps(question).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
        told = json.load(answer)
    assert isinstance(told, dict)
    return told
