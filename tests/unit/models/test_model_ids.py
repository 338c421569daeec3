"""What a model id means, and what a folder must hold: all of it without the library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvray.engines.base import ModelRequest
from kvray.engines.hugging_face.gguf import is_converted
from kvray.engines.hugging_face.model_folder import fetched_path, weights_path
from kvray.errors import ModelError
from kvray.models.hashes import file_sha256
from kvray.models.source import SourceKind, absolute_id, is_absent_path, parse_model_id
from kvray.models.weight_files import WEIGHTS_INDEX


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What looks like a complete model until something reads it."""
    path = tmp_path / "model"
    path.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (path / name).write_text("{}")
    return path


@pytest.mark.parametrize("model_id", ["org/name", "gpt2", "Org-1/na.me_2", "org/name-GGUF"])
def test_a_name_that_is_not_on_disk_is_a_hub_id(model_id: str) -> None:
    source = parse_model_id(model_id)
    assert (source.kind, source.path, source.portable_id) == (SourceKind.HUB, None, model_id)
    with pytest.raises(ModelError, match="has no local path"):
        _ = source.local_path


def test_a_hub_id_may_begin_like_a_file_of_this_folder() -> None:
    Path("org").write_text("a file")
    assert parse_model_id("org/name").kind is SourceKind.HUB


@pytest.mark.parametrize(
    "model_id", ["./gone", "/gone", "~/gone", "gone.gguf", "random:gone", "~nobody-of-this-name/x"]
)
def test_a_path_that_is_not_there_is_told_from_a_hub_id(model_id: str) -> None:
    assert is_absent_path(model_id)


@pytest.mark.parametrize("model_id", ["org/name", "gpt2", "./here", "here", "here.gguf", "random:here"])
def test_a_path_that_is_there_and_a_hub_id_are_not_absent(model_id: str) -> None:
    Path("here").mkdir()
    Path("here.gguf").touch()
    assert not is_absent_path(model_id)


def test_a_folder_wins_over_a_hub_id_of_the_same_name() -> None:
    Path("org/name").mkdir(parents=True)
    Path("org/name/config.json").touch()
    source = parse_model_id("org/name")
    assert source.kind is SourceKind.FOLDER
    assert source.portable_id == str(Path("org/name").resolve())


def test_every_local_kind_has_an_absolute_portable_id(folder: Path) -> None:
    Path("a.gguf").touch()
    Path("B.GGUF").touch()
    found = {model_id: parse_model_id(model_id) for model_id in ("model", "./model", "a.gguf", "B.GGUF")}
    assert {model_id: source.kind for model_id, source in found.items()} == {
        "model": SourceKind.FOLDER,
        "./model": SourceKind.FOLDER,
        "a.gguf": SourceKind.GGUF,
        "B.GGUF": SourceKind.GGUF,
    }
    assert all(Path(source.portable_id).is_absolute() for source in found.values())


@pytest.mark.parametrize("model_id", ["random:model", "random:model/config.json", "random:./model"])
def test_random_takes_a_folder_or_its_config(folder: Path, model_id: str) -> None:
    source = parse_model_id(model_id)
    assert (source.kind, source.portable_id) == (SourceKind.RANDOM, f"random:{folder}")


def test_a_home_folder_is_resolved(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_model_id("~/model").portable_id == str(folder)
    assert parse_model_id("random:~/model").portable_id == f"random:{folder}"


@pytest.mark.parametrize(
    ("model_id", "message"),
    [
        ("nowhere.gguf", r"GGUF file 'nowhere.gguf' does not exist"),
        (".", r"Folder '\.' has no config\.json"),
        ("./nowhere", r"neither a folder nor a \.gguf file nor a hub id.*Use org/name"),
        ("/nowhere/at/all", "neither a folder"),
        ("~/nowhere-at-all", "neither a folder"),
        ("a/b/c", "neither a folder"),
        ("weights.bin", "neither a folder"),
        ("~nobody-has-this-name/model", "cannot be looked up"),
        ("x" * 5000, "cannot be looked up"),
        ("a\0b", "cannot be looked up"),
        ("random:nowhere", r"'nowhere/config.json' does not exist. Give a folder or a config.json"),
        ("random:", "does not exist"),
        ("random:weights.json", r"must be called config\.json, not 'weights\.json'"),
        ("random:weights.json/config.json", "does not exist"),
    ],
)
def test_what_is_no_model_is_a_model_error(model_id: str, message: str) -> None:
    Path("weights.bin").touch()
    Path("weights.json").touch()
    with pytest.raises(ModelError, match=message):
        parse_model_id(model_id)


def test_a_complete_folder_is_taken_as_it_is(folder: Path) -> None:
    assert weights_path(ModelRequest(model_id="model")) == folder
    assert fetched_path(ModelRequest(model_id="model")) == folder


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no model\.safetensors.*no pickled ones.*save_pretrained"):
        weights_path(ModelRequest(model_id="model"))


def test_safetensors_that_from_pretrained_does_not_read_are_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        weights_path(ModelRequest(model_id="model"))


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / WEIGHTS_INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"lacks 1 of its 2 files of weights: model-2\.safetensors"):
        weights_path(ModelRequest(model_id="model"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}'])
def test_a_broken_index_is_a_model_error(folder: Path, text: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / WEIGHTS_INDEX).write_text(text)
    with pytest.raises(ModelError, match="not an index of weights"):
        weights_path(ModelRequest(model_id="model"))


def test_random_weights_need_neither(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors").unlink()
    assert weights_path(ModelRequest(model_id="random:model")) == folder


def test_a_half_made_conversion_does_not_count(tmp_path: Path) -> None:
    gguf = tmp_path / "a.gguf"
    gguf.write_bytes(b"GGUF")
    key = file_sha256(gguf)[:16]
    staging = tmp_path / "cache" / "gguf" / f".{key}-x1"
    staging.mkdir(parents=True)
    (staging / "config.json").touch()
    assert not is_converted(gguf)
    staging.rename(staging.with_name(key))
    assert is_converted(gguf)


@pytest.mark.parametrize(
    ("model_id", "absolute"),
    [
        ("org/name", "org/name"),
        ("fake:ok", "fake:ok"),
        ("./gone", "{here}/gone"),
        ("there", "{here}/there"),
        ("gone.gguf", "{here}/gone.gguf"),
        ("random:there", "random:{here}/there"),
        ("~/model", "{here}/model"),
        ("/a/model", "/a/model"),
        ("~no-such-user/model", "~no-such-user/model"),
    ],
)
def test_another_machine_is_given_a_path_that_does_not_depend_on_the_working_folder(
    model_id: str, absolute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute_id(model_id) == absolute.format(here=tmp_path)
