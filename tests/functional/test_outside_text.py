"""A sweep whose model has a hostile name and whose environment and arguments are full of secrets, from end to end:
names show as text and name no files; secrets are in nothing that it leaves or prints."""

from __future__ import annotations

import html.parser
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from pyarrow.fs import FileSelector, FileSystem, FileType

from kvray.engines.prompts import prompt_text

CHROMIUM = shutil.which("chromium")
NAME = "<script>alert(1)</script>"
MODEL = f"fake:{NAME},static/sdpa/=leak"
PROFILE = '<img src=x onerror="alert(2)">../`|*'
SECRETS = {
    "HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
    "DB_PASSWORD": "correct horse battery",
    "HTTPS_PROXY": "http://alice:proxy-pass-word@127.0.0.1:9",
    "HF_ENDPOINT": "http://bob:endpoint-pass-word@127.0.0.1:9",
}
KEY, KEY_SECRET = "url-key-of-mine", "url%2Fsecret%2Bof-mine"
WORDS = (
    *(SECRETS[name] for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD")),
    *("proxy-pass-word", "endpoint-pass-word", "endpoint_override", KEY, KEY_SECRET, "url/secret+of-mine"),
)


@dataclass(frozen=True)
class Swept:
    """A sweep and everything that is left of it, by its name in the results folder."""

    folder: Path
    shown: str
    errors: str

    def text(self, name: str) -> str:
        (path,) = self.folder.glob(f"reports/*/{name}")
        return path.read_text(encoding="utf-8")


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **SECRETS, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "150"}
    command = [sys.executable, "-m", "kvray", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        cwd=folder,
        env={**environment, "KVRAY_CACHE": str(folder / "cache")},
    )


@pytest.fixture(scope="module")
def uri() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    uri = f"s3://{KEY}:{KEY_SECRET}@bucket/team?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    filesystem, _ = FileSystem.from_uri(f"{uri}&allow_bucket_creation=true")
    filesystem.create_dir("bucket")
    yield uri
    server.stop()


@pytest.fixture(scope="module")
def swept(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = tmp_path_factory.mktemp("outside-text")
    built_in = json.loads(run("profiles", "ci-micro", folder=folder).stdout)
    sizes = {"context_lengths": [16], "output_lengths": [4], "repeats": 1}
    (folder / "own.json").write_text(json.dumps({**built_in, **sizes, "name": PROFILE}))
    line = ("tune", MODEL, "--engine", "fake", "--device", "cpu", "--profile", "own.json", "--dtype", "float32")
    done = run(
        *line, "--attention", "sdpa,sdpa_math", "--search", "grid", "--confirm", "0", "--output", uri, folder=folder
    )
    assert done.returncode == 0, done.stderr
    filesystem, root = FileSystem.from_uri(uri)
    for info in filesystem.get_file_info(FileSelector(root, recursive=True)):
        if info.type == FileType.File:
            copy = folder / "results" / Path(info.path).relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            with filesystem.open_input_stream(info.path) as stream:
                copy.write_bytes(stream.read())
    return Swept(folder / "results", done.stdout, done.stderr)


def contents(folder: Path) -> Iterator[tuple[str, str]]:
    """Every file below `folder` as text, Parquet row by row."""
    for path in folder.rglob("*"):
        if path.suffix == ".parquet":
            yield path.name, str(pq.read_table(path).to_pylist())
        elif path.is_file():
            yield path.name, path.read_text(encoding="utf-8", errors="replace")


# Secrets


def test_no_secret_is_in_anything_that_a_sweep_leaves(swept: Swept) -> None:
    found = [(name, word) for name, text in contents(swept.folder) for word in WORDS if word in text]
    assert found == []
    assert {"report.html", "report.md", "best_plan.json", "optimized_config.py"} <= {
        path.name for path in swept.folder.rglob("*")
    }


def test_no_secret_is_in_what_a_sweep_prints(swept: Swept) -> None:
    assert [word for word in WORDS if word in swept.shown + swept.errors] == []


def test_what_the_leaking_trial_said_is_kept_without_its_secrets(swept: Swept) -> None:
    tables = list(swept.folder.glob("trials/*/*.parquet"))
    (leaked,) = [row for path in tables for row in pq.read_table(path).to_pylist() if row["status"] == "error"]
    assert leaked["message"] == "RuntimeError: refused with token ***"
    for name in SECRETS:
        assert f"'{name}': " in leaked["log_tail"]
    assert "'http://127.0.0.1:9'" in leaked["log_tail"]


def test_the_command_that_repeats_the_sweep_is_shown_without_its_secrets(swept: Swept) -> None:
    (manifest,) = swept.folder.glob("sweeps/*.json")
    arguments = json.loads(manifest.read_text())["arguments"]
    assert arguments[arguments.index("--output") + 1] == "s3://bucket/team"
    assert "s3://bucket/team" in swept.text("report.md")


def test_no_prompt_is_in_anything_that_a_sweep_leaves(swept: Swept) -> None:
    start = prompt_text()[:24]
    assert [name for name, text in contents(swept.folder) if start in text] == []


@pytest.mark.parametrize("verbose", [(), ("--verbose",)])
def test_an_error_tells_no_secret_not_even_with_its_traceback(tmp_path: Path, verbose: tuple[str, ...]) -> None:
    output = f"nowhere://{KEY}:{KEY_SECRET}@bucket/team?token={SECRETS['HF_TOKEN']}"
    done = run(*verbose, "tune", "fake:ok", "--engine", "fake", "--device", "cpu", "--output", output, folder=tmp_path)
    assert done.returncode == 2
    assert ("Traceback" in done.stderr) == bool(verbose)
    assert done.stderr.splitlines()[-1].startswith("kvray: Results folder 'nowhere://bucket/team' cannot be opened")
    assert [word for word in WORDS if word in done.stdout + done.stderr] == []


def test_a_hub_that_cannot_be_reached_is_named_without_its_password(tmp_path: Path) -> None:
    environment = {**os.environ, **SECRETS, "HF_HOME": str(tmp_path), "KVRAY_CACHE": str(tmp_path / "kvray")}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-m", "kvray", "--verbose", "tune", "org/model", "--device", "cpu", "--dry-run"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 4
    assert "the hub cannot be reached" in done.stderr
    assert [word for word in WORDS if word in done.stdout + done.stderr] == []


# Names


class Page(html.parser.HTMLParser):
    """What a browser would take for scripts, pictures and text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.scripts: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.handlers: list[str] = []
        self.policy = ""
        self.said = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        given = dict(attrs)
        if tag == "script":
            self.scripts.append(given)
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given.get("content") or ""

    def handle_data(self, data: str) -> None:
        self.said += data


def test_hostile_names_are_text_in_the_page(swept: Swept) -> None:
    page = Page(swept.text("report.html"))
    assert NAME in page.said
    assert PROFILE in " ".join(page.said.split())
    assert "img" not in page.tags
    assert page.handlers == []
    assert len(page.scripts) == 3, "plotly, the page's own, and the data of the charts"
    assert not any("src" in script for script in page.scripts)


def test_the_page_has_a_strict_policy(swept: Swept) -> None:
    policy = Page(swept.text("report.html")).policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert re.fullmatch(r"('sha256-[\w+/=]+' ?)+", rules["script-src"])
    assert "http" not in policy


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")
def test_a_browser_runs_none_of_it(swept: Swept, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    (path,) = swept.folder.glob("reports/*/report.html")
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    switches += " disable-component-update disable-sync virtual-time-budget=5000 enable-logging=stderr dump-dom"
    done = subprocess.run(
        [CHROMIUM, *(f"--{one}" for one in switches.split()), f"--user-data-dir={tmp_path / 'profile'}", str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert [line for line in done.stderr.splitlines() if ":CONSOLE" in line] == []
    dom = Page(done.stdout)
    assert 'class="main-svg"' in done.stdout, "the page's own scripts did not run"
    assert NAME in dom.said
    assert (dom.handlers, len(dom.scripts)) == ([], 3)


def test_hostile_names_are_text_in_markdown_and_on_the_terminal(swept: Swept) -> None:
    markdown = swept.text("report.md")
    outside_fences = re.sub(r"^( *)(`{3,})text$.*?^\1\2$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside_fences
    assert "<img" not in outside_fences
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in outside_fences
    assert NAME in swept.shown


def test_the_code_holds_the_name_as_one_string(swept: Swept) -> None:
    code = swept.text("optimized_config.py")
    compile(code, "optimized_config.py", "exec")
    assert repr(MODEL) in code


def test_no_outside_string_names_a_file(swept: Swept) -> None:
    names = {part for path in swept.folder.rglob("*") for part in path.relative_to(swept.folder).parts}
    known = r"trials|runs|sweeps|reports|report\.(html|md)|best_plan\.json|optimized_config\.py|sweep\.log|"
    ids = (
        r"ranking\.parquet|"
        r"part-0\.parquet|not_launched\.parquet|(run_id=)?\d{8}-\d{6}-[0-9a-f]{4}(\.json)?|\d{4}-[0-9a-f]{12}\.parquet"
    )
    assert [name for name in names if not re.fullmatch(known + ids, name)] == []


@pytest.mark.parametrize("run_id", ["../../x", "/etc/passwd", "a/b", "..", "run\x00", "%2e%2e", "~"])
def test_a_run_id_from_outside_reaches_no_file(tmp_path: Path, run_id: str) -> None:
    from kvray.errors import InvalidValueError
    from kvray.store.parquet import ResultsStore

    with pytest.raises(InvalidValueError, match="Invalid run id"):
        ResultsStore(tmp_path).read_manifest(run_id)
