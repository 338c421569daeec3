"""Model files that are hostile or broken: one `ModelError`, soon, and nothing of them is run or unpickled."""

from __future__ import annotations

import contextlib
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers_samples import make_candidate, save_tiny_model, write_tiny_gguf

from kvray.engines.base import ModelRequest
from kvray.engines.hugging_face.gguf import converted_gguf
from kvray.engines.hugging_face.model_folder import weights_path
from kvray.engines.hugging_face.tokenizer import load_tokenizer
from kvray.engines.transformers import TransformersAdapter
from kvray.engines.transformers.arguments import call_arguments
from kvray.engines.transformers.loading import load_model
from kvray.errors import KvrayError, ModelError
from kvray.models.gguf_header import check_gguf_file

bounded = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LLAMA: dict[str, Any] = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


class Touch:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model")


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return write_tiny_gguf(tmp_path / "tiny.gguf")


def describe(model_id: object) -> object:
    return TransformersAdapter().describe_model(ModelRequest(model_id=str(model_id)))


def request(folder: Path) -> ModelRequest:
    return ModelRequest(model_id=str(folder))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (json.dumps({**LLAMA, "num_hidden_layers": 10**9}), "num_hidden_layers is 1000000000; 10,000 is the most"),
        (json.dumps({**LLAMA, "text_config": {"n_layer": 10**12}}), "n_layer is 1000000000000; 10,000 is the most"),
        (json.dumps({**LLAMA, "hidden_size": 10**400}), r"hidden_size is beyond 10\^30"),
        (json.dumps({**LLAMA, "vocab_size": float("nan")}), "cannot be read"),
        (json.dumps({**LLAMA, "architectures": {"a": 1}}), "cannot be read"),
        ('{"model_type": ' + "1" * 5000 + "}", "cannot be read"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "cannot be read"),
        ("[" * 100_000, "cannot be read"),
    ],
    ids=["layers", "nested layers", "huge", "nan", "wrong type", "digits", "deep object", "deep list"],
)
def test_a_config_of_absurd_sizes_is_a_model_error_at_once(config: str, message: str, folder: Path) -> None:
    (folder / "config.json").write_text(config)
    with pytest.raises(ModelError, match=message):
        describe(f"random:{folder}")


@bounded
@given(
    name=st.sampled_from(sorted(LLAMA)), value=st.none() | st.integers() | st.floats() | st.text() | st.lists(st.none())
)
def test_whatever_a_config_says_it_is_described_or_refused(name: str, value: object, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**LLAMA, name: value}))
    with contextlib.suppress(KvrayError):
        describe(f"random:{folder}")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[" * 100_000),
        ("tokenizer.json", '{"model": {"type": "BPE"}}'),
        ("tokenizer_config.json", '{"bos_token": 1}'),
        ("tokenizer_config.json", '{"model_max_length": {}}'),
        ("tokenizer_config.json", '{"model_max_length": ' + "1" * 5000 + "}"),
    ],
)
def test_a_broken_tokenizer_is_a_model_error(file: str, content: str, folder: Path) -> None:
    (folder / file).write_text(content)
    with pytest.raises(ModelError, match=r"The tokenizer of model .* cannot be read: "):
        load_tokenizer(request(folder), folder)


def test_a_tokenizer_of_its_own_code_is_not_run(folder: Path) -> None:
    ran = folder / "ran"
    (folder / "tokenization_own.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    with pytest.raises(
        ModelError, match=r"is Python code of its own\. If you trust its author, pass --trust-remote-code"
    ):
        load_tokenizer(request(folder), folder)
    assert not ran.exists()


@pytest.mark.parametrize(
    "name", ["weights.bin", "../secret.safetensors", "/etc/passwd", "a\0.safetensors", "x" * 5000, "."]
)
def test_an_index_leads_to_safetensors_in_the_folder_alone(name: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "weights.bin").write_bytes(pickle.dumps(Touch(folder / "unpickled")))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    with pytest.raises(ModelError, match=r"which is no \.safetensors file beside it"):
        weights_path(request(folder))
    assert not (folder / "unpickled").exists()


@pytest.mark.parametrize("settings", ["[]", '{"eos_token_id": {}}', '"text"', "{"])
def test_broken_generation_settings_are_told_or_passed_over(settings: str, folder: Path) -> None:
    (folder / "generation_config.json").write_text(settings)
    with contextlib.suppress(ModelError):
        load_model(request(folder), folder, call_arguments(make_candidate()), torch.device("cpu"))


def patched(gguf: Path, old: bytes, new: bytes) -> None:
    content = gguf.read_bytes()
    assert old in content
    gguf.write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"GGUF", b"FUGG", "it does not begin with GGUF"),
        (b"GGUF\x03", b"GGUF\x09", "its version 9 is neither 2 nor 3"),
        (b"llama.block_count", b"llama.black_count", "its block_count None does not go with its 12 tensors"),
        (
            b"llama.embedding_length",
            b"llama.embedding_lengte",
            "its embedding_length None is not that of its embedding",
        ),
        (b"blk.0.ffn_up", b"blk.0.ffn_xp", "it lacks 1 tensor of the model, model.layers.0.mlp.up_proj.weight"),
        (
            b"tokenizer.ggml.merges" + struct.pack("<IIQ", 9, 8, 2),
            b"tokenizer.ggml.merges" + struct.pack("<IIQ", 9, 8, 2**60),
            "its header speaks of 9,223,372,036,854,775,808 bytes where",
        ),
    ],
)
def test_a_gguf_file_whose_header_does_not_describe_it_is_refused(
    old: bytes, new: bytes, message: str, gguf: Path
) -> None:
    patched(gguf, old, new)
    with pytest.raises(ModelError, match=f"cannot be converted: {message}"):
        converted_gguf(gguf)
    assert not list((gguf.parent / "cache" / "gguf").glob("*/config.json"))


def test_an_architecture_that_the_library_does_not_read_is_named_before_the_file_is_hashed(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`general.architecture` and the prefix of its fields."""
    gguf.write_bytes(gguf.read_bytes().replace(b"llama", b"grokk"))
    monkeypatch.setattr("kvray.engines.hugging_face.gguf.file_sha256", lambda path: pytest.fail("hashed"))
    with pytest.raises(
        ModelError, match=r"Transformers [\d.]+ does not read its architecture \(.*grokk.*original model"
    ):
        converted_gguf(gguf)


@bounded
@given(place=st.integers(0, 4000), value=st.binary(min_size=1, max_size=8))
def test_whatever_stands_in_a_gguf_header_is_read_or_refused(place: int, value: bytes, gguf: Path) -> None:
    content = gguf.read_bytes()
    changed = gguf.with_name("changed.gguf")
    changed.write_bytes(content[:place] + value + content[place + len(value) :])
    with contextlib.suppress(ModelError):
        check_gguf_file(changed)
