"""Every command on results in an object store: a real S3 API (moto's server), its endpoint by environment alone."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kvray_logger import logger_as_before
from moto.server import ThreadedMotoServer
from own_ray import own_ray
from pyarrow.fs import FileSelector, FileSystem

from kvray.cli.app import run
from kvray.errors import OutputError, ResultsError
from kvray.files.documents import read_document
from kvray.files.remote import open_uri

Here = Callable[..., str]
SMALL = ("--engine", "fake", "--device", "cpu", "--context", "16", "--output-len", "4", "--repeats", "1")
NARROW = ("--cache", "dynamic", "--dtype", "float32", "--confirm", "0", "--search", "grid")
BATCH = """\
defaults: {engine: fake, profiles: [ci-micro], context_lengths: [16], output_lengths: [4], repeats: 1,
           caches: [dynamic], dtypes: [float32], attentions: [sdpa], search: grid, confirm_rounds: 0}
models: ["fake:ok", "fake:=nonsense"]
"""


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    """For all sweeps of this file; each would start its own otherwise, which takes seconds."""
    with own_ray():
        yield


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An S3 URI without any option; `AWS_ENDPOINT_URL` and the credentials are in the environment."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "key")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
        made = f"s3://key:s3cret@team?endpoint_override={host}:{port}&scheme=http&allow_bucket_creation=true"
        FileSystem.from_uri(made)[0].create_dir("team")
        yield "s3://team/kv"
    server.stop()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Here]:
    """Run a line in this process; it must end as asked. Returns what it printed on both streams."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def end(*arguments: str, code: int = 0) -> str:
        ended = run([str(argument) for argument in arguments], verbose=False)
        out, err = capfd.readouterr()
        assert ended == code, f"{out}\n{err}"
        return f"{out}\n{err}"

    with logger_as_before():
        yield end


@pytest.mark.slow
def test_a_sweep_is_measured_resumed_ranked_reported_compared_and_applied_in_a_bucket(
    bucket: str, here: Here, tmp_path: Path
) -> None:
    told = here("tune", "fake:ok", *SMALL, *NARROW, "--max-trials", "1", "--output", bucket)
    run_id = re.search(r"s3://team/kv/reports/([\w-]+)/best_plan.json", told)
    assert run_id is not None, told
    again = ("tune", "fake:ok", *SMALL, *NARROW, "--output", bucket, "--resume", run_id[1])
    dry = " ".join(here(*again, "--dry-run").split())
    assert re.search(rf"going on with sweep {run_id[1]}: 1 of (\d+) candidates measured before", dry)
    resumed = here(*again)
    assert "start   dynamic/sdpa/float32\n" not in resumed, "the baseline is not measured again"
    ranked = json.loads(here("rank", bucket, "--json").partition("\n\n")[0])
    assert ranked["run_id"] == run_id[1]
    assert f"s3://team/kv/reports/{run_id[1]}/report.html" in here("report", bucket, "--run", run_id[1])

    (tmp_path / "models.yaml").write_text(BATCH, encoding="utf-8")
    batch = here("batch", "models.yaml", "--output", bucket, code=13)
    batch_id = re.search(r"batch (\S+): s3://team/kv/batches/\1/overview.html", batch)
    assert batch_id is not None, batch
    assert f"s3://team/kv/batches/{batch_id[1]}/overview.md has the reasons" in batch
    resumed = here("batch", "--resume", batch_id[1], "--output", bucket, code=13)
    assert "fake:ok" not in resumed.partition(batch_id[1])[0], "what is measured is not begun again"
    sweep = re.search(r"sweep ([\w-]+)-01", batch)
    assert sweep is not None, batch
    assert "sdpa" in here("compare", f"{bucket}#{run_id[1]}", f"{bucket}#{sweep[1]}-01")

    plan = f"{bucket}/reports/{run_id[1]}/best_plan.json"
    shown = here("apply", plan, "--print-snippet")
    reports = f"{bucket}/reports/{run_id[1]}"
    server = f"endpoint_override={os.environ['AWS_ENDPOINT_URL'].removeprefix('http://')}&scheme=http"
    with pytest.MonkeyPatch.context() as environment:
        for place in (f"{bucket}#{run_id[1]}", f"{bucket}/#{run_id[1]}", reports):
            assert here("apply", place, "--print-snippet") == shown
        environment.delenv("AWS_ENDPOINT_URL")
        for place in (f"{plan}?{server}", f"{bucket}?{server}#{run_id[1]}", f"{reports}?{server}"):
            assert here("apply", place, "--print-snippet") == shown
        assert "A and B are the same run" in here("compare", f"{plan}?{server}", f"{bucket}?{server}#{run_id[1]}")
    assert f"snippet  {bucket}/winner.py" in here("apply", plan, "--out", f"{bucket}/winner.py")
    assert read_document(f"{bucket}/winner.py", most_bytes=10**6) == here("apply", plan, "--print-snippet")[:-1]
    refused = here("apply", plan, "--out", "s3://nowhere/winner.py", code=OutputError.exit_code)
    assert "Cannot write 's3://nowhere/winner.py': there is no such bucket" in refused


def test_a_file_that_cannot_be_put_into_a_bucket_is_refused_before_anything_is_measured(
    bucket: str, here: Here
) -> None:
    code = OutputError.exit_code
    refused = here("suite", "run", "--engine", "none", "--output", "s3://nowhere/suite.json", code=code)
    assert "--output: 's3://nowhere/suite.json' cannot be written, because there is no such bucket" in refused
    refused = here("suite", "check", "x.json", "--json", f"{bucket}/a.json", "--junit", "s3://team", code=code)
    assert "--junit: 's3://team' cannot be written, because it names no file" in refused
    tried = here("check", "no-baseline.json", "--json", f"{bucket}/check.json", code=ResultsError.exit_code)
    assert "no-baseline.json" in tried
    filesystem, folder = open_uri(bucket)
    kept = filesystem.get_file_info(FileSelector(folder, allow_not_found=True))
    assert [one.base_name for one in kept if one.base_name.startswith(".kvray-")] == []
