"""The command line of `llama-server` and the code that say what was measured."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

import pytest
from llama_cpp_samples import candidate

from kvray.candidate import AttentionBackend, Candidate, DeviceType
from kvray.engines.base import ModelRequest
from kvray.engines.llama_cpp.adapter import LlamaCppAdapter
from kvray.engines.llama_cpp.settings import CACHE_TYPES
from kvray.workload import Cell

ADAPTER = LlamaCppAdapter()
REQUEST = ModelRequest(model_id="/models/m.gguf")
CELLS = (Cell(100, 16, 1), Cell(512, 32, 1))


def words(one: Candidate, cells: Sequence[Cell] = CELLS, device: DeviceType = DeviceType.CPU) -> list[str]:
    return list(ADAPTER.serving_command(REQUEST, candidate=one, device=device, cells=cells) or ())


def after(said: list[str], option: str) -> str:
    return said[said.index(option) + 1]


def source(one: Candidate, cells: Sequence[Cell] = CELLS, device: DeviceType = DeviceType.CPU) -> str:
    return ADAPTER.render_snippet(REQUEST, loader=None, candidate=one, device=device, cells=cells)


def test_every_default_that_the_server_would_choose_itself_is_written_out() -> None:
    said = words(candidate(threads=3))
    assert said[:3] == ["llama-server", "--model", "/models/m.gguf"]
    expected = {
        "--ctx-size": "768",
        "--parallel": "1",
        "--batch-size": "768",
        "--ubatch-size": "512",
        "--cache-type-k": "f16",
        "--cache-type-v": "f16",
        "--flash-attn": "on",
        "--threads": "3",
        "--threads-batch": "3",
        "--poll": "50",
        "--fit": "off",
        "--device": "none",
    }
    assert {option: after(said, option) for option in expected} == expected
    assert {"--no-kv-unified", "--repack"} <= set(said)
    assert "--swa-full" not in said


def test_threads_that_were_left_open_are_those_of_the_trials() -> None:
    measured = ADAPTER.with_measured_threads(candidate(), 5)
    said = words(measured)
    assert (after(said, "--threads"), after(said, "--threads-batch")) == ("5", "5")
    asked = candidate(threads=2)
    assert ADAPTER.with_measured_threads(asked, 5) == asked


def test_what_is_set_is_said() -> None:
    one = candidate(
        attention=AttentionBackend.EAGER,
        batch_size=2,
        type_k="q8_0",
        n_ubatch=64,
        threads_batch=7,
        poll=0,
        swa_full=True,
        repack=False,
        kv_unified=True,
    )
    said = words(one, [Cell(100, 16, 2)])
    assert (after(said, "--ctx-size"), after(said, "--parallel")) == ("256", "2")
    assert (after(said, "--cache-type-k"), after(said, "--flash-attn")) == ("q8_0", "off")
    assert (after(said, "--ubatch-size"), after(said, "--threads-batch"), after(said, "--poll")) == ("64", "7", "0")
    assert {"--swa-full", "--no-repack", "--kv-unified"} <= set(said)


def test_a_gpu_s_settings_are_said_where_there_is_one() -> None:
    said = words(candidate(n_gpu_layers=12, offload_kqv=False, split_mode="row", n_cpu_moe=4), device=DeviceType.CUDA)
    assert (after(said, "--gpu-layers"), after(said, "--split-mode"), after(said, "--n-cpu-moe")) == ("12", "row", "4")
    assert "--no-kv-offload" in said
    assert "--device" not in said
    assert after(words(candidate(), device=DeviceType.CUDA), "--gpu-layers") == "all"


def assigned(program: str) -> dict[str, Any]:
    """What `load` sets on the parameters."""
    found: dict[str, Any] = {}
    for node in ast.walk(ast.parse(program)):
        match node:
            case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="params"), attr=name)], value=value):
                found[name] = ast.unparse(value)
    return found


def test_the_code_sets_what_the_command_says() -> None:
    said = assigned(source(candidate(threads=3, n_ubatch=64, type_k="bf16", type_v="q8_0")))
    assert said["n_ctx"] == "768"
    assert (said["n_batch"], said["n_ubatch"], said["n_threads"], said["n_threads_batch"]) == ("768", "64", "3", "3")
    assert (said["type_k"], said["type_v"]) == ("30", "llama_cpp.GGML_TYPE_Q8_0")
    assert (said["flash_attn_type"], said["use_extra_bufts"], said["swa_full"]) == ("1", "True", "False")
    assert said["n_gpu_layers"] == "0"
    assert "experts_on_host" not in source(candidate())
    assert "experts_on_host(layers=4)" in source(candidate(n_cpu_moe=4), device=DeviceType.CUDA)


@pytest.mark.parametrize("kind", CACHE_TYPES)
def test_the_code_of_every_type_compiles(kind: str) -> None:
    compile(source(candidate(type_k=kind, batch_size=2), [Cell(24, 4, 2)]), "snippet", "exec")
