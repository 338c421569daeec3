"""A hub of the test's own on this machine, and the real client: every failure is one clear error within seconds."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from transformers_samples import change_config, save_tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MOST_QUESTIONS = 2
"""To one address of a hub that refuses: a try, and one to learn why. A file that fails is asked for seven times."""

Answer = tuple[int, dict[str, str], bytes]
DESCRIBE = """
from kvray.engines.base import ModelRequest
from kvray.engines.transformers import TransformersAdapter
from kvray.models import hub
from kvray.errors import ModelError
hub.ANSWER_TIMEOUT_S = 0.5
try:
    print("described", TransformersAdapter().describe_model(ModelRequest(model_id="org/model")))
except ModelError as error:
    print("refused", error)
"""
USE = """
from kvray.engines.base import DeviceFacts, ModelRequest
from kvray.engines.transformers import TransformersAdapter
from kvray.models import hub
from kvray.candidate import DeviceType
from kvray.workload import Cell, get_profile
hub.ANSWER_TIMEOUT_S = 0.5
request, adapter = ModelRequest(model_id="org/model"), TransformersAdapter()
info = adapter.describe_model(request)
print(info.model_id, info.revision, info.architecture, info.max_context, info.native_dtype)
adapter.fetch_weights(request)
print("fetched")
import os, urllib.error, urllib.request
if "HF_HUB_OFFLINE" not in os.environ:
    try:
        urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/mark")
    except urllib.error.HTTPError as error:
        assert error.code == 500
candidate = adapter.baseline(info, DeviceFacts(device=DeviceType.CPU, device_name="CPU"), batch_size=1)
model = adapter.load(request, candidate, DeviceType.CPU, get_profile("ci-micro"))
model.prepare(Cell(24, 4, 1))
print(model.generate(4).tokens)
assert adapter.describe_model(request) == info
adapter.fetch_weights(request)
"""

APPLY = """
import sys
from pathlib import Path
from kvray import load_plan
sys.path.insert(0, {folder!r})
import optimized_config
model, tokenizer = optimized_config.load()
print("applied")
session = load_plan(Path({folder!r}) / "best_plan.json").load()
session.generate("one two", max_new_tokens=2)
print("planned")
"""


@dataclass
class Hub:
    """A running server; `answer` may be exchanged at any time."""

    answer: Callable[[str], Answer]
    asked: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.asked.append(self.path)
            status, headers, body = hub.answer(urlsplit(self.path).path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815  (the library's name)

        def log_message(self, *arguments: object) -> None:
            """Silence."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield hub
    server.shutdown()
    server.server_close()


def serving(folder: Path) -> Callable[[str], Answer]:
    """Answers as the hub does for a repository `org/model` with the files of `folder`."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    entries = [
        {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for name, content in files.items()
    ]
    about = {"id": "org/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}

    def answer(path: str) -> Answer:
        if path.startswith("/api/"):
            return (
                200,
                {"Content-Type": "application/json"},
                json.dumps(entries if "/tree/" in path else about).encode(),
            )
        name = path.rpartition("/")[2]
        if name not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        etag = hashlib.sha1(files[name]).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, files[name]

    return answer


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in shards beside a second copy of its weights, as many repositories have. Its config names no dtype."""
    folder = save_tiny_model(tmp_path_factory.mktemp("repository"), max_shard_size="100KB", dtype=torch.float16)
    change_config(folder, "dtype")
    for name in ("consolidated.safetensors", "pytorch_model.bin", "model.fp16.safetensors"):
        (folder / name).write_bytes(b"never asked for")
    return folder


def run(
    code: str, hub_url: str, home: Path, *, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=cwd,
        env={**clean, "HF_ENDPOINT": hub_url, "HF_HOME": str(home), "KVRAY_CACHE": str(home / "kvray"), **environment},
    )
    assert done.returncode == 0, done.stderr
    return done


def refusal(hub: Hub, home: Path, **environment: str) -> str:
    """The one line of the `ModelError` that describing the model ends in. No address is asked again and again."""
    output = run(DESCRIBE, hub.url, home, cwd=None, **environment).stdout
    assert max(Counter(hub.asked).values(), default=0) <= MOST_QUESTIONS, hub.asked
    assert output.startswith("refused ")
    assert output.count("\n") == 1
    return output


@pytest.mark.parametrize(
    ("answer", "cause", "next_step"),
    [
        ((403, {"X-Error-Code": "GatedRepo"}, b"{}"), "is gated", "Accept them on the model's page and log in"),
        ((401, {"X-Error-Code": "GatedRepo"}, b"{}"), "is gated", "`hf auth login`"),
        (
            (404, {"X-Error-Code": "RepoNotFound"}, b"{}"),
            "does not exist on the hub",
            "Check the spelling",
        ),
        ((401, {"X-Error-Code": "RepoNotFound"}, b"{}"), "does not exist on the hub, or is private", "`hf auth login`"),
        ((401, {}, b"{}"), "The hub refuses model 'org/model' (Client error '401", "`hf auth login`"),
        ((500, {}, b"oops"), "the hub fails (Server error '500", "Try again later"),
        ((503, {}, b""), "the hub fails (Server error '503", "Try again later"),
        ((429, {}, b""), "the hub fails (429 Too Many", "Try again later"),
        ((200, {"Content-Type": "text/html"}, b"<html>Log in"), "what answers is not a hub", "Check HF_ENDPOINT"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else None,
)
def test_what_the_hub_answers_becomes_one_error_with_a_next_step(
    answer: Answer, cause: str, next_step: str, tmp_path: Path
) -> None:
    with running(Hub(lambda path: answer)) as hub:
        message = refusal(hub, tmp_path)
    assert cause in message
    assert next_step in message


def test_a_gate_before_the_files_only_is_told_as_a_gate(repository: Path, tmp_path: Path) -> None:
    good = serving(repository)

    def answer(path: str) -> Answer:
        return good(path) if path.startswith("/api/") else (403, {"X-Error-Code": "GatedRepo"}, b"")

    with running(Hub(answer)) as hub:
        assert "is gated" in refusal(hub, tmp_path)


def test_a_silent_hub_does_not_hang_a_sweep(tmp_path: Path) -> None:
    forever = threading.Event()

    def answer(path: str) -> Answer:
        forever.wait(30)
        return 200, {}, b""

    with running(Hub(answer)) as hub:
        message = refusal(hub, tmp_path)
        forever.set()
    assert "the hub cannot be reached (" in message
    assert "timed out" in message.lower() or "timeout" in message.lower()


def test_a_hub_that_is_down_is_named_as_the_cause(tmp_path: Path) -> None:
    with running(Hub(lambda path: (200, {}, b""))) as hub:
        pass
    message = refusal(hub, tmp_path)
    assert "There is no folder 'org/model' here. Model 'org/model' is not in the local hub cache and the hub" in message
    assert "the hub cannot be reached" in message
    assert "give a local folder" in message


@pytest.mark.parametrize("is_here", [True, False])
def test_a_folder_that_was_misspelt_is_told_as_one(is_here: bool, tmp_path: Path) -> None:
    if is_here:
        (tmp_path / "org").mkdir()
    with running(Hub(lambda path: (404, {"X-Error-Code": "RepoNotFound"}, b"{}"))) as hub:
        message = run(DESCRIBE, hub.url, tmp_path / "home", cwd=tmp_path).stdout
    assert "Model 'org/model' does not exist on the hub, or is private." in message
    assert ("There is no folder 'org/model' here." in message) is is_here


def test_offline_mode_is_named_as_the_cause(tmp_path: Path) -> None:
    with running(Hub(lambda path: (200, {}, b""))) as hub:
        message = refusal(hub, tmp_path, HF_HUB_OFFLINE="1")
        assert hub.asked == []
    assert "--offline or HF_HUB_OFFLINE forbids to download it. Unset HF_HUB_OFFLINE" in message


def test_an_offline_request_asks_the_hub_nothing_whatever_the_environment_says(tmp_path: Path) -> None:
    with running(Hub(lambda path: (200, {}, b""))) as hub:
        code = DESCRIBE.replace('"org/model"', '"org/model", offline=True')
        assert "is not in the local hub cache, and --offline or" in run(code, hub.url, tmp_path).stdout
        assert hub.asked == []


def test_an_impossible_id_is_refused_without_a_question(tmp_path: Path) -> None:
    with running(Hub(lambda path: (200, {}, b""))) as hub:
        code = DESCRIBE.replace("org/model", 'x\\"); import os; ..')
        assert "is not a valid hub id. Use the form org/name." in run(code, hub.url, tmp_path).stdout
        assert hub.asked == []


@pytest.mark.slow  # its steps are tested beside it
def test_a_model_is_described_fetched_loaded_and_found_again_without_the_hub(repository: Path, tmp_path: Path) -> None:
    good = serving(repository)
    hub = Hub(lambda path: good(path) if "/mark" not in hub.asked else (500, {}, b""))
    with running(hub):
        first = run(USE, hub.url, tmp_path).stdout
    offline = run(USE, hub.url, tmp_path, HF_HUB_OFFLINE="1").stdout

    before, after = hub.asked[: hub.asked.index("/mark")], hub.asked[hub.asked.index("/mark") + 1 :]
    assert first.startswith(f"org/model {COMMIT} LlamaForCausalLM 2048 float16\nfetched\n((")
    assert first == offline
    assert after == ["/api/models/org/model"] * 2, "loading, which is timed, asked the hub, or a refusal was retried"
    names = {path.rpartition("/")[2] for path in before if "/resolve/" in path}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} <= names
    assert not names & {"consolidated.safetensors", "pytorch_model.bin", "model.fp16.safetensors"}


def test_pickled_weights_are_not_even_downloaded(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    code = USE.replace("adapter.fetch_weights(request)", FETCH_OR_SAY_WHY)
    with running(Hub(serving(folder))) as hub:
        output = run(code, hub.url, tmp_path / "home").stdout
    assert "has no model.safetensors: it holds pickled weights, and kvray loads safetensors weights only" in output
    assert not any("pytorch_model.bin" in path for path in hub.asked)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            "tiny-Q4_K_M.gguf",
            "it holds GGUF files (tiny-Q4_K_M.gguf). `hf download org/model tiny-Q4_K_M.gguf` prints the path to give.",
        ),
        ("adapter_model.safetensors", "it is an adapter, which only changes another model. Merge it into its base"),
    ],
)
def test_a_repository_of_something_else_is_named_before_it_is_downloaded(
    file: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / file).touch()
    with running(Hub(serving(tmp_path / "repository"))) as hub:
        output = run(DESCRIBE, hub.url, tmp_path / "home").stdout
    assert f"refused Model 'org/model' has no config.json: {message}" in output
    assert not any(file in path for path in hub.asked)


USE_PICKLED = USE.replace('model_id="org/model"', 'model_id="org/model", allow_pickle=True')


@pytest.mark.slow
def test_pickled_weights_are_downloaded_where_they_are_allowed_and_there_are_no_others(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    def hub_of(folder: Path) -> Hub:
        good = serving(folder)
        return Hub(lambda path: (500, {}, b"") if path == "/mark" else good(path))

    folder = save_tiny_model(tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    with running(hub_of(folder)) as hub:
        both = run(USE_PICKLED, hub.url, tmp_path / "a")
        assert not any("pytorch_model.bin" in path for path in hub.asked)
    (folder / "model.safetensors").unlink()
    with running(hub_of(folder)) as hub:
        pickled = run(USE_PICKLED, hub.url, tmp_path / "b")
        assert any("pytorch_model.bin" in path for path in hub.asked)
    assert pickled.stdout == both.stdout


FETCH_OR_SAY_WHY = """
from kvray.errors import ModelError
try:
    adapter.fetch_weights(request)
except ModelError as error:
    print(error)
    raise SystemExit(0)
"""


@pytest.mark.slow
def test_foreign_code_on_the_hub_is_refused_unless_trusted(tmp_path: Path) -> None:
    config: dict[str, Any] = {"model_type": "of_its_own", "auto_map": {"AutoConfig": "configuration.Config"}}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "configuration.py").write_text("raise RuntimeError('foreign code ran')")
    with running(Hub(serving(tmp_path / "model"))) as hub:
        message = refusal(hub, tmp_path / "home")
        trusting = DESCRIBE.replace('"org/model"', '"org/model", trust_remote_code=True')
        assert "foreign code ran" in run(trusting, hub.url, tmp_path / "home").stdout
    assert "foreign code ran" not in message
    assert "brings its own Python code. If you trust its author, pass --trust-remote-code." in message


NEXT_COMMIT = COMMIT[::-1]


def moving(first: Path, second: Path, hub: Hub) -> Callable[[str], Answer]:
    """A hub on which `second` is pushed over `first` as soon as somebody has read the first one's config."""
    answers = {COMMIT: serving(first), NEXT_COMMIT: serving(second)}

    def answer(path: str) -> Answer:
        was_read = any(f"/resolve/{COMMIT}/config.json" in asked for asked in hub.asked[:-1])
        commit = next((one for one in answers if one in path), NEXT_COMMIT if was_read else COMMIT)
        status, headers, body = answers[commit](path)
        return status, {**headers, "X-Repo-Commit": commit}, body.replace(COMMIT.encode(), commit.encode())

    return answer


@pytest.mark.slow  # a whole sweep against a hub; the parts are tested beside it
def test_a_push_in_the_middle_of_a_sweep_changes_nothing_of_what_is_measured(tmp_path: Path) -> None:
    first = save_tiny_model(tmp_path / "first")
    second = save_tiny_model(tmp_path / "second", max_shard_size="100KB")
    line = "tune org/model --device cpu --profile ci-micro --context 16 --output-len 4 --repeats 1 --no-forecast"
    line += " --no-check-snippet"
    line += " --cache dynamic --attention sdpa --dtype float32 --compile off --search grid --confirm 0 --output results"
    code = f"import sys\nfrom kvray.cli.app import main\nmain({line.split()!r})"
    hub = Hub(lambda path: (500, {}, b""))
    with running(hub):
        hub.answer = moving(first, second, hub)
        run(code, hub.url, tmp_path, cwd=tmp_path)
        weights = [path for path in hub.asked if "/resolve/" in path and ".safetensors" in path]
        newest = run(DESCRIBE, hub.url, tmp_path).stdout
        asked = len(hub.asked)
        (snippet,) = (tmp_path / "results").glob("reports/*/optimized_config.py")
        applied = run(APPLY.format(folder=str(snippet.parent)), hub.url, tmp_path).stdout
    (manifest,) = (tmp_path / "results" / "sweeps").iterdir()
    assert json.loads(manifest.read_text())["model_revision"] == COMMIT
    assert weights
    assert all(f"/resolve/{COMMIT}/model.safetensors" in path for path in weights)
    assert NEXT_COMMIT in newest, "nothing was pushed"
    assert applied.split() == ["applied", "planned"]
    assert f"REVISION = {COMMIT!r}" in snippet.read_text()
    assert not [path for path in hub.asked[asked:] if NEXT_COMMIT in path or "/main" in path], "the newest was applied"
