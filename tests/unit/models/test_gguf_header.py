"""What a GGUF file's header shows before anything of it is read: the cause, and the cure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from kvray.engines.base import ModelRequest
from kvray.engines.transformers import TransformersAdapter
from kvray.errors import ModelError

HIDDEN, INNER, WORDS = 32, 64, 8
Change = Callable[[gguf.GGUFWriter], None]


def write(
    path: Path,
    change: Change = lambda writer: None,
    *,
    architecture: str = "llama",
    heads: int = 4,
    weights: bool = True,
) -> Path:
    """A GGUF file of one layer; `change` adds fields."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(heads)
    change(writer)
    shapes = {"token_embd": (WORDS, HIDDEN), "blk.0.ffn_up": (INNER, HIDDEN), "output_norm": (HIDDEN,)}
    for name, shape in shapes.items() if weights else ():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def check(path: Path) -> None:
    TransformersAdapter().check_model(ModelRequest(model_id=str(path)))


def part(number: int) -> Change:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)

    return change


def test_a_whole_model_passes(tmp_path: Path) -> None:
    check(write(tmp_path / "model.gguf"))


@pytest.mark.parametrize("number", [0, 1])
def test_a_part_of_a_split_file_is_to_be_merged_first(number: int, tmp_path: Path) -> None:
    path = write(tmp_path / f"tiny-0000{number + 1}-of-00002.gguf", part(number))
    told = rf"it is part {number + 1} of 2\. Merge them first: llama-gguf-split --merge tiny-00001-of-00002\.gguf"
    with pytest.raises(ModelError, match=told):
        check(path)


def test_a_split_into_one_part_is_whole(tmp_path: Path) -> None:
    check(write(tmp_path / "model.gguf", lambda writer: writer.add_uint16("split.count", 1)))


def test_a_vocabulary_alone_holds_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="it holds no weights, only a vocabulary"):
        check(write(tmp_path / "ggml-vocab-tiny.gguf", weights=False))


def test_what_is_no_language_model_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"it holds no language model \(mmproj\)"):
        check(write(tmp_path / "mmproj.gguf", architecture="clip"))
    with pytest.raises(ModelError, match=r"it holds no language model \('adapter'\)"):
        check(write(tmp_path / "lora.gguf", lambda writer: writer.add_type("adapter")))


def test_a_model_without_attention_has_no_cache_to_choose(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="its architecture mamba has no attention, so there is no KV cache to choose"):
        check(write(tmp_path / "mamba.gguf", architecture="mamba", heads=0))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", r"it is empty\. Download it again\.$"),
        (b"hello", r"it does not begin with GGUF\. Give a GGUF file, or download it again\.$"),
        (b"GGUF\3\0", r"of 4 bytes where 2 are left: it is cut off or damaged\. Download it again\.$"),
    ],
)
def test_what_is_no_whole_header_is_told_with_what_to_do(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=told):
        check(path)


def test_a_download_that_broke_off_is_told_from_the_header(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes()[:-HIDDEN])
    with pytest.raises(ModelError, match=r"it is cut off: its tensors end [\d,]+ bytes behind its header.*Download"):
        check(path)


def test_a_pointer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ModelError, match="it is a git-lfs pointer"):
        check(path)
