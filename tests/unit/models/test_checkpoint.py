"""What a checkpoint's files show by themselves, before any library is imported: the cause, and the cure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from kvray.engines.base import ModelRequest
from kvray.engines.hugging_face.model_folder import weights_path
from kvray.engines.transformers import TransformersAdapter
from kvray.errors import ModelError
from kvray.models.headers import StoredTensor, read_header
from kvray.models.weight_files import WEIGHTS_INDEX, weight_files

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1100048384\n"
WEIGHTS = save({"a": np.zeros((2, 3), np.float16), "b": np.zeros((4,), np.float32)})
PAGE = b"<!DOCTYPE html>\n<html><body>Access to model is restricted</body></html>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose files hold together."""
    path = tmp_path / "model"
    path.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (path / name).write_text("{}")
    (path / "model.safetensors").write_bytes(WEIGHTS)
    return path


def check(model_id: object, *, allow_pickle: bool = False) -> None:
    TransformersAdapter().check_model(ModelRequest(model_id=str(model_id), allow_pickle=allow_pickle))


def write(folder: Path, files: Mapping[str, bytes | str]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def test_whole_weights_pass_and_are_known_by_their_header(folder: Path) -> None:
    check(folder)
    assert read_header(folder / "model.safetensors") == {
        "a": StoredTensor(dtype="F16", shape=(2, 3)),
        "b": StoredTensor(dtype="F32", shape=(4,)),
    }


def test_weights_of_any_length_take_no_time(folder: Path) -> None:
    """A sparse file: reading it whole would take minutes."""
    bytes_each = 1 << 39
    header = json.dumps({"a": {"dtype": "U8", "shape": [bytes_each], "data_offsets": [0, bytes_each]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + bytes_each)
    check(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer_is_named_with_its_cure(name: str, folder: Path) -> None:
    write(folder, {name: POINTER})
    with pytest.raises(ModelError, match=rf"{name} is a git-lfs pointer, not what .*git lfs pull"):
        check(folder)


def test_a_tokenizer_alone_in_its_file_may_be_a_pointer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    write(folder, {"tokenizer.model": POINTER})
    with pytest.raises(ModelError, match=r"tokenizer\.model is a git-lfs pointer"):
        check(folder)


def test_pointers_that_from_pretrained_does_not_read_are_no_obstacle(folder: Path) -> None:
    others = ("tokenizer.model", "pytorch_model.bin", "consolidated.safetensors", "training_args.bin", WEIGHTS_INDEX)
    write(folder, dict.fromkeys((*others, "model-00001-of-00002.safetensors"), POINTER))
    check(folder)


def test_a_pickle_may_be_a_pointer_too(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    write(folder, {"pytorch_model.bin": POINTER})
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a git-lfs pointer"):
        check(folder, allow_pickle=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (WEIGHTS[:5], "is cut off in its header"),
        (WEIGHTS[:20], "is cut off in its header"),
        (WEIGHTS[:-1], r"is cut off: it has [\d,]+ bytes, and [\d,]+ by its header"),
        (WEIGHTS + b"\0", "does not end where its tensors end"),
        (PAGE, "is a web page"),
        (b"PK\3\4" + b"\0" * 100, "is a pickle of PyTorch, whatever its name says"),
        (b"\xff" * 4096, "does not begin like a safetensors file"),
        ((2).to_bytes(8, "little") + b"[]", "is damaged"),
    ],
)
def test_a_damaged_file_of_weights_is_named_with_what_is_wrong(content: bytes, message: str, folder: Path) -> None:
    write(folder, {"model.safetensors": content})
    with pytest.raises(
        ModelError, match=rf"model\.safetensors' cannot be loaded: the file {message}.*Download or copy"
    ):
        check(folder)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (PAGE, "is a web page"), (b"PK\3\4" + b"\0" * 100, "is cut off")]
)
def test_a_damaged_pickle_is_named_without_being_unpickled(content: bytes, message: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    write(folder, {"pytorch_model.bin": content})
    with pytest.raises(ModelError, match=rf"pytorch_model\.bin' cannot be loaded: the file {message}"):
        check(folder, allow_pickle=True)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"adapter_config.json": "{}", "adapter_model.safetensors": WEIGHTS}, r"an adapter.*merge_and_unload"),
        (
            {"model-00001-of-00002.safetensors": WEIGHTS, "model-00002-of-00002.safetensors": WEIGHTS},
            r"shards of weights \(model-00001.*\) without model\.safetensors\.index\.json",
        ),
        ({"pytorch_model.bin": "PK"}, r"kvray loads safetensors weights only, no pickled ones\..*--allow-pickle"),
        ({"pytorch_model-00001-of-00002.bin": "PK"}, r"no pickled ones"),
        ({"consolidated.safetensors": WEIGHTS, "params.json": "{}"}, r"their maker's own format \(consol.*convert it"),
        ({"consolidated.00.pth": "PK"}, r"their maker's own format"),
        (
            {"onnx/model.onnx": "", "onnx/model.onnx_data": ""},
            r"an export to ONNX \(onnx/model\.onnx, .*original model",
        ),
        ({"tf_model.h5": ""}, r"TensorFlow or Flax.*from_tf=True"),
        ({"flax_model.msgpack": ""}, r"TensorFlow or Flax"),
        ({"weights.npz": ""}, r"weights of MLX"),
        ({"tiny-Q4_K_M.gguf": "", "mmproj-tiny.gguf": ""}, r"GGUF files \(tiny-Q4.*itself: .*/tiny-Q4_K_M\.gguf"),
        ({"model.fp16.safetensors": WEIGHTS}, r"other files \(model\.fp16\.safetensors\).*rename"),
        ({}, r"holds no weights at all.*random:FOLDER"),
    ],
)
def test_what_lies_in_the_place_of_weights_is_named(files: dict[str, bytes | str], message: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    write(folder, files)
    for look in (check, lambda path: weights_path(ModelRequest(model_id=str(path)))):
        with pytest.raises(ModelError, match=rf"has no model\.safetensors: it .*{message}"):
            look(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"adapter_config.json": "{}", "adapter_model.safetensors": WEIGHTS}, r"an adapter.*merge_and_unload"),
        ({"a-00001-of-00002.gguf": "", "b.gguf": ""}, r"GGUF files .*Give the file itself: .*/b\.gguf"),
        ({"consolidated.safetensors": WEIGHTS, "params.json": "{}"}, r"their maker's own format"),
        ({"model_index.json": "{}", "unet/config.json": "{}"}, r"a pipeline of diffusers"),
        ({"checkpoint-20/config.json": "{}"}, r"'checkpoint-20' in it has one\. Give '.*/checkpoint-20'"),
        ({"onnx/model.onnx": ""}, r"an export to ONNX"),
        ({"notes.txt": ""}, r"so it is not a Transformers model"),
    ],
)
def test_what_lies_in_the_place_of_a_model_is_named(
    files: dict[str, bytes | str], message: str, tmp_path: Path
) -> None:
    write(tmp_path, files)
    with pytest.raises(ModelError, match=rf"has no config\.json.*{message}"):
        check(tmp_path)


def test_a_hub_cache_leads_to_its_snapshot(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--o--m" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").touch()
    with pytest.raises(ModelError, match=rf"Give '{snapshot}'"):
        check(tmp_path / "models--o--m")


def test_a_gguf_file_in_the_hub_cache_is_named_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--org--Tiny-GGUF"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    (snapshot / "tiny.gguf").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelError, match=rf"holds GGUF files \(tiny\.gguf\)\. Give the file itself: {snapshot}/tiny\.gguf"
    ):
        TransformersAdapter().describe_model(ModelRequest(model_id="org/Tiny-GGUF", offline=True))


def test_shards_that_the_index_names_and_that_are_not_there_are_listed(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{number}-of-00007.safetensors" for number in range(1, 8)]
    write(folder, {WEIGHTS_INDEX: json.dumps({"weight_map": {name: name for name in names}}), names[0]: WEIGHTS})
    with pytest.raises(ModelError, match=rf"lacks 6 of its 7 files of weights: {names[1]}, .* and 3 more\. Download"):
        check(folder)


def test_a_link_to_what_is_gone_is_said_to_be_one(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../blobs/gone")
    with pytest.raises(ModelError, match=r"model\.safetensors links to what is not there"):
        check(folder)


def test_the_config_may_name_the_weights_itself(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "own.safetensors")
    write(folder, {"config.json": json.dumps({"transformers_weights": "own.safetensors"})})
    assert weight_files(folder, allow_pickle=False) == ("own.safetensors",)
    check(folder)


@pytest.mark.parametrize("name", ["../own.safetensors", "own.bin", 3, "/etc/passwd"])
def test_a_config_leads_to_safetensors_in_the_folder_alone(name: object, folder: Path) -> None:
    write(folder, {"config.json": json.dumps({"transformers_weights": name})})
    with pytest.raises(ModelError, match=r"which is no \.safetensors file beside it"):
        check(folder)
