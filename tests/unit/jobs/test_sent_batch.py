"""What of a batch goes to a cluster, and how the batch is followed there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from kvray.cli.job_events import JobLog
from kvray.cli.submit import prepare_arguments
from kvray.errors import InvalidValueError, ModelError
from kvray.jobs.doorman import JOB, MARK, SENT_MODELS, command_line, driver_environment
from kvray.jobs.package import Argument, write_package
from kvray.jobs.sender import files_of
from kvray.jobs.sent_model import (
    is_sent_model_note,
    repeating_command,
    sent_model_name,
    sent_model_note,
    typed_arguments,
    typed_text,
)
from kvray.tuning.batch_words import reason_of
from kvray.workload import get_profile

BATCH = """\
defaults: {profiles: [chat-agent, mine.json], limits: {max_ttft_ms: off}}
models: [{model: org/name, space: s.yaml}, {model: "random:tiny", candidates: c.json}, ./tiny, {model: b, space: full}]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models.yaml").write_text(BATCH, encoding="utf-8")
    (tmp_path / "mine.json").write_text(get_profile("ci-micro").model_dump_json(), encoding="utf-8")
    for name in ("s.yaml", "c.json", "full"):
        (tmp_path / name).write_text("[]", encoding="utf-8")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_batch_file_takes_along_what_it_names_and_names_it_by_its_place_there(folder: Path) -> None:
    arguments, output = prepare_arguments(["batch", "models.yaml", "--slots", "2", "--exclusive"], upload_model=True)
    (sent := folder / "sent-package").mkdir()
    write_package(sent, arguments, output=output, columns=80, with_wheel=False)

    written = json.loads((sent / "job.json").read_text(encoding="utf-8"))["arguments"]
    assert [one["text"] for one in written] == ["batch", "", "--slots=2", "--exclusive"]
    file = yaml.safe_load((sent / written[1]["file"]).read_text(encoding="utf-8"))
    defaults, (first, second, third, last) = file["defaults"], file["models"]
    assert (defaults["profiles"][0], defaults["limits"]) == ("chat-agent", {"max_ttft_ms": "off"})
    assert (sent / defaults["profiles"][1]).read_bytes() == (folder / "mine.json").read_bytes()
    assert (first["model"], (sent / first["space"]).is_file()) == ("org/name", True)
    assert (second["model"], (sent / second["candidates"]).is_file()) == (f"random:{third}", True)
    assert (sent / third / "config.json").is_file()
    assert last == {"model": "b", "space": "full"}
    job = json.loads((sent / "job.json").read_text(encoding="utf-8"))
    told = json.loads(driver_environment(job, "/there")[SENT_MODELS])
    there = f"/there/{written[1]['file']}"
    assert told == {second["model"]: "random:tiny", third: "./tiny", there: str(folder / "models.yaml")}


def test_a_model_that_was_sent_is_told_with_its_path_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, output = prepare_arguments(["tune", "random:./tiny"], upload_model=True)
    (sent := folder / "sent-package").mkdir()
    write_package(sent, arguments, output=output, columns=80, with_wheel=False)
    job = json.loads((sent / "job.json").read_text(encoding="utf-8"))
    model_id = command_line(job["arguments"], "/there")[1]
    assert sent_model_note(model_id) is None, "outside of the job"

    monkeypatch.setenv(SENT_MODELS, driver_environment(job, "/there")[SENT_MODELS])
    note = sent_model_note(model_id)
    assert note is not None
    assert is_sent_model_note(note)
    assert ": random:./tiny. What ran" in note
    assert "/there" not in note
    assert sent_model_note("org/name") is None


def test_the_file_of_one_engine_is_sent_beside_a_hub_id(folder: Path) -> None:
    asked = ["tune", "org/name", "--engine", "fake,second", "--model-for", "second=./tiny", "--model-for=fake=org/b"]
    arguments, output = prepare_arguments(asked, upload_model=True)
    (sent := folder / "sent-package").mkdir()
    write_package(sent, arguments, output=output, columns=80, with_wheel=False)
    job = json.loads((sent / "job.json").read_text(encoding="utf-8"))
    there = command_line(job["arguments"], "/there")
    (place,) = (one for one in there if one.startswith("--model-for=second="))
    assert (sent / place.removeprefix("--model-for=second=/there/") / "config.json").is_file()
    assert [one for one in there if one in ("org/name", "--model-for=fake=org/b")] == [
        "org/name",
        "--model-for=fake=org/b",
    ]
    told = json.loads(driver_environment(job, "/there")[SENT_MODELS])
    assert told == {place.removeprefix("--model-for=second="): "./tiny"}

    with pytest.raises(InvalidValueError, match=r"'gone' is neither a folder nor a file of this machine"):
        prepare_arguments(["tune", "org/name", "--model-for", "transformers=./gone"], upload_model=True)
    with pytest.raises(InvalidValueError, match=r"'\./tiny' is on this machine .*--upload-model"):
        prepare_arguments(["tune", "org/name", "--model-for", "transformers=./tiny"], upload_model=False)


def test_the_files_of_engines_in_a_batch_are_sent(folder: Path) -> None:
    text = "models: [{model: org/name, engine: 'fake,second', models_for: {second: ./tiny, fake: org/b}}]"
    (folder / "models.yaml").write_text(text, encoding="utf-8")
    (_, sent), _ = prepare_arguments(["batch", "models.yaml"], upload_model=True)
    assert sent.content is not None
    (model,) = yaml.safe_load(sent.content)["models"]
    place = model["models_for"]["second"]
    assert (model["models_for"]["fake"], sent.beside[place]) == ("org/b", folder / "tiny")
    assert sent.models == {place: "./tiny"}


def test_a_model_that_was_sent_has_the_same_name_in_each_job(monkeypatch: pytest.MonkeyPatch) -> None:
    models = ["/tmp/pkg_1/files/1/tiny", "random:/tmp/pkg_2/files/1/tiny", "sent/0/tiny.gguf"]
    monkeypatch.setenv(SENT_MODELS, json.dumps(dict.fromkeys([*models, "/tmp/pkg_3/files/1/tiny"], "./tiny")))
    names = ["tiny, sent with the job", "random:tiny, sent with the job", "tiny.gguf, sent with the job"]
    assert [sent_model_name(one) for one in models] == names
    assert sent_model_name("/tmp/pkg_3/files/1/tiny") == names[0]
    assert sent_model_name("org/name") is None


def test_a_local_model_of_a_batch_is_sent_only_when_asked(folder: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"'random:tiny' is on this machine .*--upload-model"):
        prepare_arguments(["batch", "models.yaml"], upload_model=False)
    with pytest.raises(InvalidValueError, match="Run kvray batch --init"):
        prepare_arguments(["batch", "--init"], upload_model=False)
    (folder / "models.yaml").write_text("models: [a, {modle: b}]", encoding="utf-8")
    with pytest.raises(InvalidValueError, match="line 1: there is no key 'modle'"):
        prepare_arguments(["batch", "models.yaml"], upload_model=False)


def test_a_model_named_by_two_dots_has_its_folders_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "tiny" / "inside").mkdir()
    monkeypatch.chdir(folder / "tiny" / "inside")
    assert prepare_arguments(["tune", ".."], upload_model=True)[0][1] == Argument(
        local=folder / "tiny", models={"": ".."}
    )


def test_a_log_tells_how_its_batch_stands() -> None:
    told = {"batch_id": "batch-1", "statuses": {"ok": 1, "measuring": 1, "waiting": 2}, "now": "m · p"}
    log = JobLog()
    assert log.feed(f"{MARK}{json.dumps({'batch': told, 'lines': 0})}\nsaid\n") == [("said", False)]
    assert log.batch is not None
    assert (log.results_id, log.batch.progress) == ("batch-1", "1 of 4 sweeps ended")
    assert log.batch.by_status == "2 waiting, 1 measuring, 1 ok"
    log.freeze()
    assert log.batch.by_status == "2 waiting, 1 interrupted, 1 ok"
    assert log.batch.progress == "1 of 4 sweeps ended"


def test_the_results_of_a_batch_are_its_overview_and_its_sweeps(tmp_path: Path) -> None:
    mine = ["batches/b.json", "batches/b/overview.md", "reports/b1/r.md", "sweeps/b1.json", "trials/run_id=b2/x"]
    for name in (*mine, "batches/c.json", "batches/c/overview.md", "sweeps/b.json2", "reports/b3/r.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("", encoding="utf-8")
    (tmp_path / "batches/b.json").write_text(json.dumps({"sweeps": [{"run_id": "b1"}, {"run_id": "b2"}]}))
    assert files_of(tmp_path, "b") == mine


def test_what_lies_behind_a_uri_is_left_to_the_cluster_to_read() -> None:
    line = ["tune", "m", "--profile", "s3://b/mine.yaml", "--space", "s3://b/space.yaml", "--output", "s3://b/kv"]
    arguments, output = prepare_arguments(line, upload_model=False)
    told = [one.text for one in arguments]
    assert told == ["tune", "m", "--profile=s3://b/mine.yaml", "--space=s3://b/space.yaml"]
    assert output.text == "s3://b/kv"
    batch, _ = prepare_arguments(
        ["batch", "s3://b/models.yaml", "--resume", "b", "--retry", "failed"], upload_model=False
    )
    assert [one.text for one in batch] == ["batch", "s3://b/models.yaml", "--resume=b", "--retry=failed"]


def test_a_command_of_a_job_is_repeated_as_the_user_typed_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ["tune", "random:./tiny", "--profile", "mine.json", "--dtype", "float32"]
    arguments, output = prepare_arguments(typed, upload_model=True)
    (sent := folder / "sent-package").mkdir()
    write_package(sent, arguments, output=output, columns=80, with_wheel=False)
    job = json.loads((sent / "job.json").read_text(encoding="utf-8"))
    _, *there = command_line(job["arguments"], "/there")
    ran = ["--output=/home/me/kvray_results", "--address=10.0.0.1:6379", *there]
    assert typed_arguments(ran) == tuple(ran), "outside of a job"
    assert repeating_command(sends_model=False) == "kvray tune"

    for variable, value in driver_environment(job, "/there").items():
        if variable in (SENT_MODELS, JOB):
            monkeypatch.setenv(variable, value)
    assert set(typed_arguments(ran)) == {
        "--output=/home/me/kvray_results",
        "random:./tiny",
        f"--profile={folder / 'mine.json'}",
        "--dtype=float32",
    }
    assert repeating_command(sends_model=True) == "kvray submit --upload-model tune"
    assert repeating_command("batch", sends_model=False) == "kvray submit batch"


def test_messages_name_the_paths_that_the_user_gave(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    models = {"random:/there/files/1/tiny": "random:./tiny", "sent/0/broken": "./broken", "sent/0/broken-too": "other"}
    monkeypatch.setenv(SENT_MODELS, json.dumps(models))
    assert typed_text("Model 'random:/there/files/1/tiny' is odd.") == "Model 'random:./tiny' is odd."
    assert typed_text(f"'{tmp_path}/sent/0/broken' has no config.json.") == "'./broken' has no config.json."
    assert typed_text("Model 'sent/0/broken-too' and 'org/name'.") == "Model 'other' and 'org/name'."
    assert reason_of(ModelError("Model 'sent/0/broken' is broken.")) == "Model './broken' is broken."
