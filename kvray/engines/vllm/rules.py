"""What vLLM cannot combine, each with the reason that a user reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvray.candidate import AttentionBackend, Candidate, DeviceType
from kvray.engines.vllm.arguments import longest_tokens, settings_objection
from kvray.engines.vllm.axes import cache_of_types
from kvray.engines.vllm.description import head_dim, heads
from kvray.space.constraints import Constraint, SpaceFacts
from kvray.workload import WorkloadProfile

CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Elements of a head that vLLM's CPU kernels take (`CPUAttentionBackend.get_supported_head_sizes`)."""

BLOCK_STEPS: Mapping[DeviceType, int] = {DeviceType.CPU: 32, DeviceType.CUDA: 16}


def rules(config: Mapping[str, Any], profile: WorkloadProfile) -> tuple[Constraint, ...]:
    """The rules for a model of this `config` and a workload."""
    return (
        Constraint(name="vllm-settings", check=_ignoring_facts(settings_objection)),
        Constraint(name="vllm-attention", check=_ignoring_facts(_attention)),
        Constraint(name="cache-of-types", check=_ignoring_facts(_cache_of_types)),
        Constraint(name="cpu-heads", check=lambda one, facts: _heads_on_cpu(facts, config)),  # noqa: ARG005
        Constraint(name="block-size", check=_block_size),
        Constraint(name="split-heads", check=_ignoring_facts(lambda one: _split_heads(one, config))),
        Constraint(name="tokens-and-sequences", check=_ignoring_facts(_tokens_and_sequences)),
        Constraint(name="whole-prompts", check=_ignoring_facts(lambda one: _whole_prompts(one, profile))),
    )


def _ignoring_facts(check: Callable[[Candidate], str | None]) -> Callable[[Candidate, SpaceFacts], str | None]:
    return lambda candidate, facts: check(candidate)  # noqa: ARG005


def _attention(candidate: Candidate) -> str | None:
    if candidate.attention is AttentionBackend.FLASH:
        return None
    return f"vLLM has kernels of its own, not {candidate.attention}: attention flash, and the axis attention_backend"


def _cache_of_types(candidate: Candidate) -> str | None:
    if candidate.cache is cache_of_types(candidate):
        return None
    return f"a {candidate.cache} cache needs a kv_cache_dtype that says how, such as fp8 (--set kv_cache_dtype=fp8)"


def _heads_on_cpu(facts: SpaceFacts, config: Mapping[str, Any]) -> str | None:
    size = head_dim(config)
    if facts.device is not DeviceType.CPU or size is None or size in CPU_HEADS:
        return None
    return f"vLLM's CPU kernels take heads of {', '.join(map(str, CPU_HEADS))} elements, this model's have {size}"


def _block_size(candidate: Candidate, facts: SpaceFacts) -> str | None:
    size, step = candidate.setting("block_size"), BLOCK_STEPS[facts.device]
    if size is None or int(size) % step == 0:
        return None
    return f"vLLM's kernels take blocks of multiples of {step} tokens, {size} is none"


def _split_heads(candidate: Candidate, config: Mapping[str, Any]) -> str | None:
    known = heads(config)
    if known is None or known % candidate.parallelism == 0:
        return None
    return f"{known} heads cannot be divided among {candidate.parallelism} GPUs"


def _tokens_and_sequences(candidate: Candidate) -> str | None:
    tokens, sequences = candidate.setting("max_num_batched_tokens"), candidate.setting("max_num_seqs")
    if tokens is None or sequences is None or int(tokens) >= int(sequences):
        return None
    return f"max_num_batched_tokens {tokens} is less than max_num_seqs {sequences}: each sequence needs a token"


def _whole_prompts(candidate: Candidate, profile: WorkloadProfile) -> str | None:
    tokens = candidate.setting("max_num_batched_tokens")
    longest = longest_tokens(profile.cells(candidate.batch_size, rung=2))
    if candidate.setting("enable_chunked_prefill") is not False or tokens is None or int(tokens) >= longest:
        return None
    return f"prompts are not read in pieces, so {tokens} tokens at once cannot hold the longest sequence of {longest}"
