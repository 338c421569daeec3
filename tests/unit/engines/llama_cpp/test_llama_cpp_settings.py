"""What a candidate comes to in llama.cpp, and that requests which come to one configuration are one candidate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from llama_cpp_samples import CPU, GPU, candidate

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, CompileMode, DeviceType, DType
from kvray.engines.llama_cpp.adapter import LlamaCppAdapter
from kvray.engines.llama_cpp.settings import SplitMode, context_settings
from kvray.engines.llama_cpp.threads import default_threads, physical_cores, usual_threads
from kvray.space.axis import canonical_form
from kvray.space.constraints import SpaceFacts
from kvray.space.menu import available_here, menu_of
from kvray.workload import Cell, WorkloadProfile, create_custom_profile

ADAPTER = LlamaCppAdapter()


def workload(*contexts: int, batch_sizes: tuple[int, ...] = (1,)) -> WorkloadProfile:
    return create_custom_profile(
        "w",
        context_lengths=contexts,
        output_lengths=(32,),
        batch_sizes=batch_sizes,
        weight_ttft=0.4,
        weight_throughput=0.4,
        weight_memory=0.2,
    )


def canonical(one: Candidate, *contexts: int) -> Candidate:
    return canonical_form(one, ADAPTER.axes(CPU), workload(*contexts, batch_sizes=(one.batch_size,)))


def test_nothing_set_is_what_llama_server_takes_with_flash_attention_pinned() -> None:
    settings = context_settings(candidate(), Cell(4000, 90, 1), device=DeviceType.CPU, threads=3)
    assert (settings.n_ctx, settings.n_batch, settings.n_ubatch) == (4096, 2048, 512)
    assert (settings.type_k, settings.type_v, settings.flash_attention) == ("f16", "f16", True)
    assert (settings.threads, settings.threads_batch, settings.poll) == (3, 3, 50)
    assert (settings.swa_full, settings.kv_unified, settings.repack, settings.n_gpu_layers) == (False, False, True, 0)


def test_tokens_are_rounded_up_and_batches_kept_within_them_as_llama_cpp_does() -> None:
    settings = context_settings(
        candidate(n_batch=4096, n_ubatch=4096), Cell(500, 32, 1), device=DeviceType.CPU, threads=1
    )
    assert (settings.n_ctx, settings.n_batch, settings.n_ubatch) == (768, 768, 768)


def test_several_sequences_have_room_each_or_share_it() -> None:
    apart = context_settings(candidate(), Cell(200, 32, 3), device=DeviceType.CPU, threads=1)
    shared = context_settings(candidate(kv_unified=True), Cell(200, 32, 3), device=DeviceType.CPU, threads=1)
    assert (apart.n_ctx, apart.n_seq_max, apart.kv_unified) == (3 * 256, 3, False)
    assert (shared.n_ctx, shared.n_seq_max, shared.kv_unified) == (768, 3, True)
    alone = context_settings(candidate(kv_unified=True), Cell(200, 32, 1), device=DeviceType.CPU, threads=1)
    assert not alone.kv_unified


@pytest.mark.parametrize(
    ("asked", "comes_to"),
    [
        ({"n_ubatch": 512}, {}),
        ({"n_ubatch": 600}, {"n_ubatch": 600}),
        ({"n_ubatch": 4096}, {"n_ubatch": 768}),
        ({"n_batch": 4096}, {}),
        ({"n_batch": 300}, {"n_batch": 300}),
        ({"n_batch": 300, "n_ubatch": 400}, {"n_batch": 300}),
        ({"n_batch": 300, "n_ubatch": 300}, {"n_batch": 300}),
        ({"type_k": "f16", "type_v": "f16"}, {}),
        ({"swa_full": False, "repack": True, "kv_unified": True}, {}),
        ({"threads": default_threads()}, {"threads": default_threads()}),  # a slot or a cluster's node may take others
        ({"threads": 7, "threads_batch": 7}, {"threads": 7}),
    ],
)
def test_requests_that_come_to_one_configuration_are_one_candidate(
    asked: dict[str, Any], comes_to: dict[str, Any]
) -> None:
    assert canonical(candidate(**asked), 512) == candidate(**comes_to)


@pytest.mark.parametrize(
    ("asked", "comes_to"),
    [
        ({"threads": 3}, {}),
        ({"threads": 3, "threads_batch": 3}, {}),
        ({"threads_batch": 3}, {}),
        ({"threads": 2, "threads_batch": 3}, {"threads": 2, "threads_batch": 3}),
        ({"threads": 2, "threads_batch": 2}, {"threads": 2}),
    ],
)
def test_the_threads_that_a_trial_is_given_anyway_are_not_set(asked: dict[str, Any], comes_to: dict[str, Any]) -> None:
    axes = ADAPTER.axes(replace(CPU, trial_threads=3))
    assert canonical_form(candidate(**asked), axes, workload(512)) == candidate(**comes_to)


def test_threads_of_which_the_library_takes_as_many_as_it_likes_are_known_on_this_machine() -> None:
    (axis,) = (axis for axis in ADAPTER.axes(replace(CPU, trial_threads=0)) if axis.name == "threads")
    assert axis.default == usual_threads()


@pytest.mark.parametrize("asked", [{"n_ubatch": 4096}, {"n_batch": 300, "n_ubatch": 400}, {"threads_batch": 9}])
def test_the_settings_of_a_canonical_candidate_are_those_that_were_asked_for(asked: dict[str, Any]) -> None:
    one, cell = candidate(**asked), Cell(512, 32, 1)
    own = context_settings(one, cell, device=DeviceType.CPU)
    assert context_settings(canonical(one, 512), cell, device=DeviceType.CPU) == own


@pytest.mark.parametrize("types", [{"type_k": "q8_0"}, {"type_v": "q4_0"}, {"type_k": "q5_1", "type_v": "q5_1"}])
def test_a_type_in_blocks_makes_a_quantized_cache_whatever_was_asked_for(types: dict[str, Any]) -> None:
    assert canonical(candidate(**types), 512) == candidate(cache=CacheStrategy.QUANTIZED, **types)


def test_plain_types_are_a_static_cache() -> None:
    assert canonical(candidate(type_k="f32", type_v="bf16"), 512).cache is CacheStrategy.STATIC


def test_the_threads_of_a_slot_are_those_of_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert default_threads() == 5
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert 1 <= default_threads() <= physical_cores()


def test_what_needs_a_gpu_says_so_on_a_cpu_and_nothing_else_does() -> None:
    lacking = {line.axis: line.obstacle for line in menu_of(ADAPTER.axes(CPU)) if line.obstacle}
    gpu = {"n_gpu_layers", "offload_kqv", "split_mode", "n_cpu_moe"}
    assert gpu <= set(lacking) <= {*gpu, "poll"}
    assert all("needs a GPU and llama-cpp-python built for it" in str(lacking[axis]) for axis in gpu)


def test_another_engine_s_value_of_a_shared_axis_is_rejected_before_launch() -> None:
    rule, facts = available_here(ADAPTER.axes(CPU)), SpaceFacts(device=DeviceType.CPU, dtypes=frozenset(DType))
    assert rule.check(candidate(), facts) is None
    assert rule.check(candidate(attention=AttentionBackend.SDPA), facts) == "sdpa: unknown to this engine"
    assert rule.check(candidate(cache=CacheStrategy.DYNAMIC), facts) == "dynamic: unknown to this engine"
    assert rule.check(replace(candidate(), dtype=DType.BFLOAT16), facts) == "bfloat16: unknown to this engine"
    assert rule.check(replace(candidate(), compile=CompileMode.DEFAULT), facts) == "default: unknown to this engine"


def test_attention_is_flash_or_eager() -> None:
    assert [line.value for line in menu_of(ADAPTER.axes(CPU)) if line.axis == "attention"] == [
        AttentionBackend.FLASH,
        AttentionBackend.EAGER,
    ]


def test_the_mode_that_llama_cpp_calls_none_can_be_asked_for() -> None:
    (axis,) = (axis for axis in ADAPTER.axes(GPU) if axis.name == "split_mode")
    assert axis.parse("one") == SplitMode.NONE
    assert axis.parse("none") is None, "which leaves an axis to the engine's default, as everywhere"
    assert axis.describe() == "split over GPUs: layer, row, tensor, one or none"
    cell = Cell(64, 8, 1)
    assert context_settings(candidate(split_mode="none"), cell, device=DeviceType.CUDA).split_mode is SplitMode.NONE
