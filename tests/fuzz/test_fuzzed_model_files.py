"""A model's files: config.json, tokenizer, weights and their index, generation settings, GGUF. Code lies beside them
and must never run."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import gguf
import pytest
import torch
from hostile_values import CANARY, damaged, edited, rarely, texts
from hypothesis import strategies as st
from promises import CELL, Place, fuzzes
from transformers import AutoConfig
from transformers_samples import VOCABULARY, make_candidate, save_tiny_model, write_tiny_gguf

from kvray.engines.base import ModelRequest
from kvray.engines.hugging_face.gguf import converted_gguf
from kvray.engines.hugging_face.model_folder import weights_path
from kvray.engines.hugging_face.shapes import layer_kinds
from kvray.engines.hugging_face.texts import ModelTexts
from kvray.engines.hugging_face.tokenizer import choose_texts, load_tokenizer
from kvray.engines.transformers import description
from kvray.engines.transformers.arguments import call_arguments
from kvray.engines.transformers.inspection import inspect_weights
from kvray.engines.transformers.loading import load_model
from kvray.engines.transformers.translation import translated_errors
from kvray.errors import KvrayError
from kvray.models.source import parse_model_id
from kvray.workload import Cell

TYPES = ("llama", "qwen2", "gemma2", "gpt2", "mixtral", "deepseek_v3", "bamba", "falcon", "gpt_oss", "phi3", "mistral")
OWN = {"AutoConfig": "configuration_own.Config", "AutoModelForCausalLM": "modeling_own.Model"}
CODE = f"open({CANARY!r}, 'w').close()\nraise RuntimeError('code of the model ran')\n"
CONFIGS = [AutoConfig.for_model(name).to_dict() for name in TYPES]
CONFIGS += [{**CONFIGS[0], "auto_map": OWN}, {"model_type": "own", "auto_map": OWN}]
SETTINGS = {"bos_token_id": 0, "eos_token_id": [1], "temperature": 0.7, "cache_implementation": None}
VALUES = (
    0,
    1,
    3,
    10_000,
    10**6,
    2**31,
    2**32 - 1,
    -1,
    -1.0,
    float("nan"),
    float("inf"),
    True,
    ["x"],
    [1, 2],
    VOCABULARY[:3],
)
INDEX_NAMES = ("part.safetensors", "../model/part.safetensors", "/etc/passwd", "pytorch_model.bin", "modeling_own.py")


@functools.cache
def whole() -> dict[str, bytes]:
    """The files of a small model, and `tiny.gguf`."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [*save_tiny_model(Path(folder, "model")).iterdir(), write_tiny_gguf(Path(folder, "tiny.gguf"))]
        return {path.name: path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def model(place: Place) -> Place:
    """A folder `model`, and code beside its files."""
    (place.input / "model").mkdir()
    for name in ("configuration_own", "modeling_own", "tokenization_own", "sitecustomize"):
        (place.input / "model" / f"{name}.py").write_text(CODE, encoding="utf-8")
    whole()
    return place


def damage(place: Place, changed: Mapping[str, bytes | None]) -> Path:
    """The folder of a model that has these files instead of its own, or lacks them."""
    folder = place.input / "model"
    for path in (*folder.glob("*.json"), *folder.glob("*.safetensors")):
        path.unlink()
    for name, content in {**whole(), **changed}.items():
        if content is not None:
            (folder / name).write_bytes(content)
    return folder


@fuzzes(
    "configs",
    content=st.sampled_from(CONFIGS).flatmap(edited),
    prefix=st.sampled_from(("random:", "random:", "random:", "")),
    space=st.sampled_from(("default", "default", "default", "full")),
    outlined=rarely(6),
)
def test_a_config_is_described_or_refused(
    content: bytes, prefix: str, space: str, outlined: bool, model: Place
) -> bool:
    folder = damage(model, {"config.json": content})
    code, _ = model.cli("tune", f"{prefix}{folder}", *CELL, "--space", space)
    if outlined:
        request = ModelRequest(model_id=f"{prefix}{folder}")
        with contextlib.suppress(KvrayError), model.watched(KvrayError):  # what `kvray forecast` does apart
            config = description.read_config(request, folder)
            with description.config_errors(request):
                kinds = layer_kinds(config.get_text_config(decoder=True))
                json.dumps(asdict(description.info_of_config(parse_model_id(request.model_id), config, kinds)))
    return code == 0


@st.composite
def tokenizer_files(draw: st.DrawFn) -> dict[str, bytes]:
    name = draw(st.sampled_from(("tokenizer.json", "tokenizer.json", "tokenizer_config.json")))
    sample = json.loads(whole()[name])
    if name == "tokenizer_config.json":
        own = {
            "auto_map": {"AutoTokenizer": [None, "tokenization_own.Tokenizer"]},
            "tokenizer_class": draw(st.sampled_from(("tokenization_own.Tokenizer", "LlamaTokenizer")) | texts),
            "chat_template": draw(texts),
        }
        sample |= {key: own[key] for key in draw(st.sets(st.sampled_from(sorted(own)), max_size=2))}
    return {name: draw(edited(sample))}


@fuzzes("tokenizers", changed=tokenizer_files())
def test_a_tokenizer_makes_prompts_or_is_refused(changed: dict[str, bytes], model: Place) -> bool:
    folder = damage(model, changed)
    request = ModelRequest(model_id=str(folder))
    with contextlib.suppress(KvrayError), model.watched(KvrayError):
        tokenizer = load_tokenizer(request, folder)
        texts = choose_texts(request, tokenizer, len(VOCABULARY)).texts
        with translated_errors():
            ModelTexts(texts, range(len(VOCABULARY))).prompts(Cell(16, 4, 1))
        return True
    return False


@st.composite
def weight_files(draw: st.DrawFn) -> dict[str, bytes | None]:
    content = whole()["model.safetensors"]
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    match draw(st.integers(0, 3)):
        case 0:
            return {"model.safetensors": draw(damaged(content))}
        case 1:
            text = draw(edited(header))
            length = draw(st.sampled_from((0, 2**63, 2**64 - 1, 10**8, 7))) if draw(rarely(2)) else len(text)
            return {"model.safetensors": struct.pack("<Q", length) + text + content[end:]}
        case 2:
            places = st.sampled_from(INDEX_NAMES[: 5 if draw(rarely(4)) else 1])
            files = {name: draw(places) for name in header if name != "__metadata__"}
            index = {"metadata": {"total_size": len(content) - end}, "weight_map": files}
            parts = {"part.safetensors": content, "model.safetensors.index.json": draw(edited(index))}
            return {"model.safetensors": None, **parts}
    return {"generation_config.json": draw(edited(SETTINGS))}


@fuzzes("weights", changed=weight_files())
def test_weights_are_loaded_or_refused(changed: dict[str, bytes | None], model: Place) -> bool:
    request = ModelRequest(model_id=str(damage(model, changed)))
    with contextlib.suppress(KvrayError), model.watched(KvrayError):
        folder = weights_path(request)
        description.describe(request)
        inspect_weights(request)
        with translated_errors():
            load_model(request, folder, call_arguments(make_candidate()), torch.device("cpu"))
        return True
    return False


@functools.cache
def gguf_places() -> list[list[tuple[int, int]]]:
    """Of every field and every tensor of the GGUF header: where its names, lengths, types and values stand, and their
    bytes."""
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(whole()["tiny.gguf"])
        file.flush()
        reader = gguf.GGUFReader(file.name)
        fields = [*reader.fields.values(), *(tensor.field for tensor in reader.tensors)]
        sizes = [[part.nbytes for part in field.parts] for field in fields]
        return [
            [(field.offset + sum(own[:number]), size) for number, size in enumerate(own)]
            for field, own in zip(fields, sizes, strict=True)
        ]


@st.composite
def gguf_files(draw: st.DrawFn) -> bytes:
    """With parts of the header changed, of another architecture, or damaged."""
    content, end = whole()["tiny.gguf"], sum(gguf_places()[-1][-1])
    if draw(rarely(8)):
        return draw(damaged(content[:end])) + content[end:]
    if draw(rarely(4)):
        content = content.replace(b"llama", draw(st.sampled_from((b"qwen2", b"gemma", b"phi3\0", b"\xff" * 5))))
    for _ in range(draw(st.integers(1, 3))):
        place, size = draw(st.sampled_from(draw(st.sampled_from(gguf_places()))))
        numbers = st.sampled_from((0, 1, 3, 10_000, 2**31, 2**32 - 1, 2**63, 2**64 - 1))
        value = draw(numbers.map(lambda number: number.to_bytes(8, "little")) | st.binary(min_size=size, max_size=size))
        content = content[:place] + value[:size] + content[place + min(size, len(value)) :]
    return content


@fuzzes("gguf", content=gguf_files())
def test_a_gguf_file_is_converted_or_refused(content: bytes, model: Place) -> bool:
    path = model.input / "tiny.gguf"
    path.write_bytes(content)
    shutil.rmtree(model.cache / "gguf", ignore_errors=True)
    shutil.rmtree(model.cache / "hashes", ignore_errors=True)
    with contextlib.suppress(KvrayError), model.watched(KvrayError):
        converted_gguf(path)
        return True
    return False
