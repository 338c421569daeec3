"""A space from a YAML file, and what is said of a bad one."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvray.candidate import (
    AttentionBackend,
    AttentionChoice,
    CacheChoice,
    CacheStrategy,
    CompileMode,
    DeviceType,
    DType,
)
from kvray.engines.base import DeviceFacts
from kvray.engines.transformers import TransformersAdapter
from kvray.errors import InvalidValueError
from kvray.space.search_space import SpaceBlock
from kvray.space.space_file import load_space

AXES = TransformersAdapter().axes(DeviceFacts(device=DeviceType.CPU, device_name="a CPU"))
OTHERWISE = SpaceBlock(
    caches=(CacheChoice(CacheStrategy.DYNAMIC),),
    attentions=(AttentionChoice(AttentionBackend.SDPA),),
    dtypes=(DType.FLOAT32,),
    batch_sizes=(1, 4),
)


def load(tmp_path: Path, text: str) -> tuple[SpaceBlock, ...]:
    path = tmp_path / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return load_space(path, axes=AXES, otherwise=OTHERWISE)


def test_each_block_is_a_product_and_what_it_leaves_out_is_the_default(tmp_path: Path) -> None:
    first, second = load(
        tmp_path,
        """
        - cache: [static, "quantized(backend=hqq,nbits=4)", static]
          attention: [sdpa_flash, kernels-community/flash-attn2]
          compile: [off, default]
        - prefill_chunk: [none, 512]
          weights_limit_mib: [8000]
          batch_size: [2]
          dtype: [bfloat16]
        """,
    )
    assert [str(choice) for choice in first.caches] == ["static", "quantized(backend=hqq,nbits=4)"]
    assert [str(choice) for choice in first.attentions] == ["sdpa_flash", "kernels-community/flash-attn2"]
    assert first.compiles == (CompileMode.OFF, CompileMode.DEFAULT), "off is a word here, not a truth value"
    assert (first.dtypes, first.batch_sizes) == ((DType.FLOAT32,), (1, 4))
    assert second.values_of("prefill_chunk") == (None, 512)
    assert (second.values_of("weights_limit_mib"), second.batch_sizes, second.dtypes) == (
        (8000,),
        (2,),
        (DType.BFLOAT16,),
    )
    assert second.caches == OTHERWISE.caches


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("cache: [static]", "is not a list of blocks"),
        ("", "is not a list of blocks"),
        ("[]", "is not a list of blocks"),
        ("- [static]", "is not a list of blocks"),
        ("- {", r"is not valid YAML: expected the node content, but found .*, in line 1, column 4"),
        ("- cache: static", "Block 1 of .*: cache is not a list of values"),
        ("- cache: []", "cache is not a list of values"),
        ("- cache: [[static]]", "cache is not a list of values"),
        ("- cash: [static]", "Block 1 of .*: there is no axis 'cash'. There are cache, attention"),
        ("- cache: [elastic]", "'elastic'"),
        ("- cache: [window(a=1,b=2)]", "Block 1 of .*is not of the form name or name.*needs quotes"),
        ("- prefill_chunk: [some]", "'some' is neither a positive whole number nor none"),
        ("- batch_size: [none]", "batch_size 'none' is not a positive whole number"),
        ("- cache: [!!python/object/apply:os.system [echo]]", "cache is not a list of values"),
    ],
)
def test_a_bad_file_is_refused_with_what_is_wrong(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=complaint):
        load(tmp_path, text)


@pytest.mark.timeout(20)  # parsing all of them takes minutes
def test_a_small_file_that_stands_for_millions_of_values_is_refused(tmp_path: Path) -> None:
    block = f"- &b\n  prefill_chunk: [{','.join(map(str, range(1, 5001)))}]\n"
    with pytest.raises(InvalidValueError, match=r"has 45,005,000 values\. A space may have 20,000 candidates"):
        load(tmp_path, block + "- *b\n" * 9000)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"Cannot read space file .*nowhere\.yaml': No such file"):
        load_space(tmp_path / "nowhere.yaml", axes=AXES, otherwise=OTHERWISE)
