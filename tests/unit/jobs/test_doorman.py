"""What a cluster is asked before a job becomes `kvray` there."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from kvray.cli.app import run
from kvray.cli.submit import _OWN_OPTIONS, app, prepare_arguments
from kvray.errors import InvalidValueError, KvrayError, ModelError, ProfileError
from kvray.jobs.doorman import command_line, mismatch, without_secrets
from kvray.jobs.package import Argument
from kvray.jobs.sender import files_of, stream

SAME = {
    "kvray": version("kvray"),
    "ray": version("ray"),
    "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
}


@pytest.mark.parametrize(
    ("name", "said"),
    [("kvray", "has kvray"), ("ray", "has Ray"), ("python", "has Python")],
)
def test_unlike_versions_are_refused_with_both_named(name: str, said: str) -> None:
    assert mismatch(SAME) is None
    told = mismatch({**SAME, name: "9.9"})
    assert told is not None
    assert said in told
    assert "9.9" in told


def test_files_and_folders_are_named_by_their_places_on_the_cluster(tmp_path: Path) -> None:
    found = command_line([{"text": "--space=", "file": "files/1/s.yaml"}, {"text": "", "home": "out"}], str(tmp_path))
    assert found == [f"--space={tmp_path}/files/1/s.yaml", str(Path.home() / "out")]


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        ("/home/a@b/r?", "/home/a@b/r?"),
        ("s3://bucket/r", "s3://bucket/r"),
        ("s3://KEY:SECRET@bucket/r?endpoint_override=h:9000&scheme=http", "s3://bucket/r"),
    ],
)
def test_the_log_names_the_results_folder_without_credentials(output: str, shown: str) -> None:
    assert without_secrets(output) == shown


def test_what_a_command_names_here_is_sent_with_it(tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("blocks: []")
    arguments, output = prepare_arguments(
        ["tune", "org/name", "--space", str(space), "--output", "./mine"], upload_model=False
    )
    assert Argument(text="--space=", local=space) in arguments
    narrowed, _ = prepare_arguments(["tune", "org/name", "--cache", "static", "--set", "tile=1"], upload_model=False)
    assert {"tune", "org/name", "--cache=static", "--set=tile=1"} <= {one.text for one in narrowed}
    assert output == Argument(home="mine")


def test_a_model_of_this_machine_is_sent_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidValueError, match=r"on this machine \(1 KiB\).*--upload-model"):
        prepare_arguments(["tune", "./model"], upload_model=False)
    arguments, _ = prepare_arguments(["tune", "./model"], upload_model=True)
    assert arguments[1].local == tmp_path / "model"
    with pytest.raises(InvalidValueError, match="stands after tune"):
        prepare_arguments(["tune", "m", "--address", "auto"], upload_model=False)


@pytest.mark.parametrize("option", ["--no-wait", "--pip", "--upload-model", "--extras=all"])
@pytest.mark.parametrize("command", [["tune", "m"], ["batch", "m.yaml"]])
def test_an_option_of_submit_after_the_command_is_told_its_place(option: str, command: list[str]) -> None:
    with pytest.raises(InvalidValueError, match=rf"stands before {command[0]}: kvray submit {option} {command[0]} …"):
        prepare_arguments([*command, option], upload_model=False)


def test_every_option_of_submit_is_known_to_stand_before_the_command() -> None:
    flags = {flag for one in typer.main.get_command(app).params for flag in one.opts if flag.startswith("--")}
    assert flags - {"--address", "--help", "--install-completion", "--show-completion"} == set(_OWN_OPTIONS)


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("--profile", "nope", ProfileError),
        ("--profile", "nope.json", ProfileError),
        ("--space", "nope.yaml", InvalidValueError),
        ("--space", "nope", InvalidValueError),
        ("--budget", "0nope", InvalidValueError),
        ("--dtype", "nope", InvalidValueError),
        ("--cache", "nope", InvalidValueError),
        ("--search", "nope", InvalidValueError),
        ("--model-for", "transformers=./nope", InvalidValueError),
        ("--candidates", "nope.json", InvalidValueError),
    ],
)
def test_what_is_not_here_is_not_sent(option: str, value: str, error: type[KvrayError], tmp_path: Path) -> None:
    with pytest.raises(error, match="nope"):
        prepare_arguments(["tune", "m", option, value], upload_model=False)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["tune", "m", "--budget", "0"], "--budget"),
        (["tune", "m", "--max-trials", "2", "--retry", "oom"], "--retry can only be used with --resume"),
        (["tune", "m", "--max-ttft", "soon"], "--max-ttft"),
        (["tune", "m", "--wait-quiet", "1m"], "--wait-quiet watches this machine"),
        (["tune", "m.yaml"], "is for kvray batch"),
        (["batch", "s3://b/m.yaml", "--budget", "0"], "--budget"),
        (["batch", "s3://b/m.yaml", "--device", "nope"], "nope"),
        (["batch", "--retry", "failed"], "only be used with --resume"),
        (["batch"], "No batch file is given"),
    ],
)
def test_what_the_cluster_would_refuse_is_refused_before_anything_is_sent(command: list[str], told: str) -> None:
    with pytest.raises(InvalidValueError, match=told):
        prepare_arguments(command, upload_model=False)


@pytest.mark.parametrize("model", ["./nope", "../nope", "nope.gguf", "random:nope"])
def test_a_relative_path_that_is_not_here_is_not_left_to_the_cluster(model: str) -> None:
    with pytest.raises(InvalidValueError, match=f"{re.escape(model)}' is not on this machine.*absolute path"):
        prepare_arguments(["tune", model], upload_model=False)
    for there in ("/there/m", "~/m", "org/name", "random:/there/m", "/there/m.gguf"):
        arguments, _ = prepare_arguments(["tune", there, "--gpu-type", "A100"], upload_model=False)
        assert arguments[1] == Argument(text=there)


def test_a_folder_that_is_no_model_is_not_sent(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        prepare_arguments(["tune", str(tmp_path)], upload_model=True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--pip", "--extras", "transformer"], "Did you mean 'transformers'"),
        (["--extras", "full"], "only .* with --pip"),
    ],
)
def test_extras_that_kvray_does_not_have_are_refused(
    options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["submit", "--address", "http://127.0.0.1:1", *options, "tune", "m"], verbose=False) == 2
    assert re.search(told, capsys.readouterr().err)


def test_a_file_that_the_cluster_may_have_is_sent_by_its_path() -> None:
    arguments, _ = prepare_arguments(["tune", "m", "--profile", "/there/p.json"], upload_model=False)
    assert arguments[-1] == Argument(text="--profile=/there/p.json")


def test_a_stream_of_files_can_be_taken_up_anywhere(tmp_path: Path) -> None:
    for name, text in {
        "sweeps/a.json": "12345",
        "reports/a/r.md": "678",
        "reports/b/r.md": "no",
        ".partial/x": "no",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    names = files_of(tmp_path, "a")
    assert names == ["reports/a/r.md", "sweeps/a.json"]
    files: list[dict[str, object]] = [{"name": one, "bytes": (tmp_path / one).stat().st_size} for one in names]
    assert [stream(tmp_path, files, start, 4) for start in (0, 2, 6)] == [b"6781", b"8123", b"45"]
