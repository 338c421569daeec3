"""What one deploys with vLLM, from the very arguments that were measured, and its description without vLLM."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from kvray.candidate import Candidate, CompileMode, DeviceType, DType
from kvray.engines.base import DeviceFacts, ModelInfo, ModelRequest, UnsupportedError
from kvray.engines.vllm import VllmAdapter, adapter, versions
from kvray.engines.vllm.arguments import engine_arguments
from kvray.engines.vllm.description import cache_groups, max_context
from kvray.errors import EngineError, ModelError
from kvray.space.axis import with_settings
from kvray.workload import Cell

CPU = DeviceFacts(device=DeviceType.CPU, device_name="a CPU")
HUB = ModelRequest(model_id="org/name", revision="a" * 40)
MODEL = ModelInfo(model_id="m", revision="1", architecture="Llama", max_context=512, native_dtype=DType.FLOAT32)
CELLS = [Cell(100, 28, 4), Cell(200, 56, 4)]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "vocab_size": 256,
}


def baseline(**settings: Any) -> Candidate:
    return with_settings(VllmAdapter().baseline(MODEL, CPU, batch_size=4), settings)


ASSET = Path(__file__).parents[2] / "assets" / "tiny_llama"


def command(candidate: Candidate, request: ModelRequest = HUB, device: DeviceType = DeviceType.CPU) -> list[str]:
    return list(VllmAdapter().serving_command(request, candidate=candidate, device=device, cells=CELLS))


def test_the_server_is_started_for_the_longest_cell_with_a_pool_for_all_its_sequences() -> None:
    words = command(baseline())
    assert words[:3] == ["vllm", "serve", "org/name"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert options == {
        "--dtype": "bfloat16",
        "--max-model-len": "257",
        "--kv-cache-memory-bytes": str(1 << 30),
        # 256 tokens are two blocks of 128, and one more for the token that is being written.
        "--num-gpu-blocks-override": str(4 * 3 + 1),
        "--revision": "a" * 40,
    }


def test_every_axis_that_is_set_is_an_option() -> None:
    candidate = replace(baseline(), compile=CompileMode.OFF, parallelism=2)
    candidate = with_settings(
        candidate,
        {
            "enable_prefix_caching": False,
            "kv_cache_dtype": "fp8",
            "block_size": 32,
            "max_num_seqs": 8,
            "cudagraph_mode": "FULL",
            "omp_threads_bind": "nobind",
        },
    )
    words = command(candidate)
    assert words[:4] == ["env", "VLLM_CPU_OMP_THREADS_BIND=nobind", "vllm", "serve"]
    assert {"--enforce-eager", "--no-enable-prefix-caching"} <= set(words)
    for option, value in (("--kv-cache-dtype", "fp8"), ("--block-size", "32"), ("--max-num-seqs", "8")):
        assert words[words.index(option) + 1] == value
    assert words[words.index("--tensor-parallel-size") + 1] == "2"
    assert json.loads(words[words.index("--compilation-config") + 1]) == {"cudagraph_mode": "FULL"}
    assert words[words.index("--num-gpu-blocks-override") + 1] == str(4 * 9 + 1)


def test_random_weights_and_foreign_code_are_asked_for() -> None:
    request = ModelRequest(model_id=f"random:{ASSET}", trust_remote_code=True)
    words = command(baseline(), request)
    assert words[2] == str(ASSET)
    assert words[words.index("--load-format") + 1] == "dummy"
    assert "--trust-remote-code" in words


def test_the_program_gives_the_library_what_the_server_has_by_itself() -> None:
    source = VllmAdapter().render_snippet(
        HUB, loader=None, candidate=baseline(block_size=64), device=DeviceType.CPU, cells=CELLS
    )
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    (given,) = [call for call in calls if getattr(call.func, "id", None) == "LLM"]
    named = {keyword.arg: ast.unparse(keyword.value) for keyword in given.keywords}
    assert (named["model"], named["block_size"], named["max_model_len"]) == ("'org/name'", "64", "257")
    assert named["max_num_batched_tokens"] == "EngineArgs.get_batch_defaults(1)[0][UsageContext.OPENAI_API_SERVER]"
    assert "max_num_seqs" in named


def test_layers_of_several_kinds_take_blocks_of_their_own() -> None:
    assert cache_groups(()) == cache_groups(("full_attention",) * 4) == 1
    gemma = ("sliding_attention",) * 5 + ("full_attention",)
    assert cache_groups(gemma * 3) == 6
    plain, mixed = (
        engine_arguments("m", baseline(), DeviceType.CPU, CELLS, kinds=kinds)["num_gpu_blocks_override"]
        for kinds in ((), gemma)
    )
    assert mixed == 6 * (plain - 1) + 1


def test_what_is_not_vllms_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="no axis tile"):
        command(baseline(tile=4))
    with pytest.raises(UnsupportedError, match="no axis prefill_chunk"):
        command(baseline(prefill_chunk=4))


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, 512),
        ({"max_seq_len": 256}, 256),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}}, 2048),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2}}, 1024),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, 512),
        ({"max_position_embeddings": None}, None),
        ({"text_config": {"max_position_embeddings": 64}}, 64),
    ],
)
def test_how_many_tokens_the_model_holds(fields: dict[str, Any], tokens: int | None) -> None:
    assert max_context({**CONFIG, **fields}) == tokens


@pytest.mark.spawns
def test_a_folder_is_described_without_vllm(tmp_path: Path) -> None:
    import numpy as np

    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    request = ModelRequest(model_id=str(tmp_path))
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        VllmAdapter().describe_model(request)
    save_file({"w": np.zeros((2, 2), dtype=np.float16)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="no tokenizer"):
        VllmAdapter().describe_model(request)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    info = VllmAdapter().describe_model(request)
    assert (info.architecture, info.max_context, info.native_dtype) == ("LlamaForCausalLM", 512, DType.FLOAT16)
    assert not info.random_weights
    assert info.shape is not None
    parameters = 2 * 256 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 96 + 2 * 64)
    assert (info.shape.total_parameters, len(info.shape.layers)) == (parameters, 2)


def test_a_config_that_is_no_table_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ModelError, match="no table"):
        VllmAdapter().describe_model(ModelRequest(model_id=f"random:{tmp_path}"))


def test_where_vllm_is_not_here_the_cure_is_another_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match="needs vllm, which is not installed") as caught:
        VllmAdapter().check_installed()
    assert "--engine-python vllm=PATH" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("installed", "says"), [(None, "not installed"), ("0.31.2", "this is 0.31.2"), ("0.34.0", "0.32 to 0.33")]
)
def test_a_version_that_was_never_tried_is_refused(
    installed: str | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {} if installed is None else {"vllm": installed}
    monkeypatch.setattr(versions, "library_versions", lambda names: found)
    with pytest.raises(EngineError, match=says):
        versions.check_version()
    monkeypatch.setattr(versions, "library_versions", lambda names: {"vllm": "0.32.0"})
    versions.check_version()
