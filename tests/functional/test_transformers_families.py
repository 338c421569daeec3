"""Every family of architectures works, or what does not apply to it is rejected with the reason. Tiny models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING
from transformers_samples import make_candidate

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.engines.base import DeviceFacts, ModelInfo, ModelRequest
from kvray.engines.transformers import TransformersAdapter
from kvray.engines.transformers.loaded import TransformersModel
from kvray.errors import ModelError
from kvray.space.constraints import RULES, SpaceFacts, first_objection
from kvray.workload import Cell, create_custom_profile

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = DeviceFacts(device=DeviceType.CPU, device_name="a CPU")
ADAPTER = TransformersAdapter()
PROFILE = create_custom_profile(
    "family", context_lengths=(72,), output_lengths=(6,), weight_ttft=0.4, weight_throughput=0.4, weight_memory=0.2
)
CELL = Cell(72, 6, 2)
CACHES = ("dynamic", "static", "sliding_window(window=24,sinks=4)", "quantized(backend=hqq,nbits=8)", "paged")
WINDOW = 32
_SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1}


@dataclass(frozen=True)
class Family:
    """A model type, its configuration, and what of `CACHES` is rejected with which words."""

    settings: dict[str, Any]
    layers: str
    rejected: dict[str, str]


ALL_WINDOWS = {
    "sliding_window(window=24,sinks=4)": "every layer is sliding attention",
    "quantized(backend=hqq,nbits=8)": "full attention only, this one has sliding attention",
}
FAMILIES = {
    "llama": Family(_SIZES, "DynamicLayer×4", {}),
    "qwen2": Family(_SIZES, "DynamicLayer×4", {}),
    "qwen3": Family({**_SIZES, "head_dim": 16}, "DynamicLayer×4", {}),
    "gemma3_text": Family(
        {
            **_SIZES,
            "head_dim": 16,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        "DynamicSlidingWindowLayer×2 + DynamicLayer×2",
        {"quantized(backend=hqq,nbits=8)": "full attention only, this one has sliding attention"},
    ),
    "gpt2": Family(
        {"vocab_size": 256, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 512}, "DynamicLayer×4", {}
    ),
    "mistral": Family({**_SIZES, "sliding_window": WINDOW}, "DynamicSlidingWindowLayer×4", ALL_WINDOWS),
    "mixtral": Family({**_SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}, "DynamicLayer×4", {}),
    "qwen3_moe": Family(
        {**_SIZES, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        "DynamicLayer×4",
        {},
    ),
    "bamba": Family(
        {**_SIZES, **_MAMBA, "attn_layer_indices": [1, 3]},
        "LinearAttentionLayer×2 + DynamicLayer×2",
        {
            "quantized(backend=hqq,nbits=8)": "full attention only, this one has linear attention",
            "paged": "this model has linear attention",
        },
    ),
    "falcon_h1": Family(
        {**_SIZES, **_MAMBA, "mamba_d_ssm": 128},
        "LinearAttentionAndFullAttentionLayer×4",
        {
            "sliding_window(window=24,sinks=4)": "every layer is hybrid",
            "quantized(backend=hqq,nbits=8)": "full attention only, this one has hybrid",
            "paged": "this model has hybrid",
        },
    ),
}


FAMILIES |= {
    "deepseek_v3": Family(
        {
            **_SIZES,
            "q_lora_rank": 32,
            "kv_lora_rank": 48,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "moe_intermediate_size": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "num_key_value_heads": 4,
        },
        "DynamicLayer×4",
        {"paged": "keys and values of one size, those of DeepseekV3ForCausalLM differ"},
    ),
    "gemma4_text": Family(
        {
            **_SIZES,
            "head_dim": 16,
            "global_head_dim": 32,
            "sliding_window": WINDOW,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": 256,
            "hidden_size_per_layer_input": 8,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        "DynamicSlidingWindowLayer×1 + DynamicLayer×1 + DummyLayer×2",
        {
            "quantized(backend=hqq,nbits=8)": "full attention only, this one has dummy and sliding attention",
            "paged": "this model has dummy",
        },
    ),
    "lfm2": Family(
        {**_SIZES, "layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
        "LinearAttentionLayer×2 + DynamicLayer×2",
        {"quantized(backend=hqq,nbits=8)": "this one has conv", "paged": "this model has conv"},
    ),
}


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelRequest]:
    made = {}
    for name, family in FAMILIES.items():
        folder = tmp_path_factory.mktemp(name)
        config = CONFIG_MAPPING[name](**family.settings).to_dict()
        (folder / "config.json").write_text(json.dumps({**config, "initializer_range": 0.2}))
        made[name] = ModelRequest(model_id=f"random:{folder}")
    return made


def objection(candidate: Candidate, request: ModelRequest, info: ModelInfo) -> str | None:
    facts = SpaceFacts(device=DeviceType.CPU, dtypes=frozenset(DType))
    return first_objection(candidate, facts, (*RULES, *ADAPTER.rules(request, info, PROFILE)))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cache_runs_and_says_what_it_is_or_is_rejected_with_the_reason(
    name: str, requests: dict[str, ModelRequest]
) -> None:
    request, family = requests[name], FAMILIES[name]
    info = ADAPTER.describe_model(request)
    answers: dict[str, object] = {}
    for cache in CACHES:
        candidate = make_candidate(cache)
        reason = objection(candidate, request, info)
        if cache in family.rejected:
            assert family.rejected[cache] in str(reason)
            continue
        assert reason is None, cache
        model = TransformersModel(request, candidate, DeviceType.CPU)
        model.prepare(CELL)
        answers[cache] = model.generate(6).tokens
        assert model.generate(6).tokens == answers[cache], f"{cache}: a call must not see the one before"
        seen = model.observe()
        model.close()
        assert seen.substitutions == (), cache
        if cache == "dynamic":
            assert seen.cache_layers == family.layers
    exact = [answers[cache] for cache in ("dynamic", "static", "paged") if cache in answers]
    assert all(answer == exact[0] for answer in exact)


@pytest.mark.parametrize("name", FAMILIES)
def test_its_default_space_is_not_empty_and_its_baseline_is_what_generate_does(
    name: str, requests: dict[str, ModelRequest]
) -> None:
    request = requests[name]
    info = ADAPTER.describe_model(request)
    baseline = ADAPTER.baseline(info, CPU, batch_size=1)
    assert (baseline.cache, baseline.attention) == (CacheStrategy.DYNAMIC, AttentionBackend.SDPA)
    assert objection(baseline, request, info) is None
    assert len(info.layer_kinds) == 4


def test_a_model_without_keys_and_values_is_refused_because_there_is_nothing_to_choose(tmp_path: Path) -> None:
    config = CONFIG_MAPPING["mamba"](vocab_size=256, hidden_size=64, num_hidden_layers=2, state_size=8)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(ModelError, match=r"of type 'mamba', which keeps a state of its own"):
        ADAPTER.describe_model(ModelRequest(model_id=f"random:{tmp_path}"))
