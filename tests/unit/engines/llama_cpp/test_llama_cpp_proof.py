# ruff: noqa: E501  (lines of the log as llama.cpp writes them)
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from llama_cpp_samples import candidate

from kvray.candidate import AttentionBackend, DeviceType
from kvray.engines.llama_cpp.binding import Build
from kvray.engines.llama_cpp.graph import Step
from kvray.engines.llama_cpp.proof import (
    Evidence,
    Heads,
    Layers,
    cache_bytes,
    expected_cells,
    layers_on_gpu,
    observed_attention,
    observed_context,
    observed_tokens,
    resolved,
)
from kvray.engines.llama_cpp.said import Said
from kvray.engines.llama_cpp.settings import ContextSettings, context_settings
from kvray.workload import Cell

PLAIN = (
    "llama_context: n_ctx                 = 768",
    "llama_kv_cache:        CPU KV buffer size =    16.88 MiB",
    "llama_kv_cache: size =   16.88 MiB (   768 cells,  30 layers,  1/1 seqs), K (f16):    8.44 MiB, V (f16):    8.44 MiB",
    "llama_kv_cache: attn_rot_k = 0, n_embd_head_k_all = 64",
    "sched_reserve:        CPU compute buffer size =    98.26 MiB",
    "sched_reserve: graph: nodes = 937, splits = 1, input objects = 6, input tensors = 8",
)
WINDOWED = (
    "llama_kv_cache_iswa: creating non-SWA KV cache, size = 2048 cells",
    "llama_kv_cache:        CPU KV buffer size =     6.00 MiB",
    "llama_kv_cache: size =    6.00 MiB (  2048 cells,   3 layers,  1/1 seqs), K (f16):    3.00 MiB, V (f16):    3.00 MiB",
    "llama_kv_cache_iswa: creating     SWA KV cache, size = 1024 cells",
    "llama_kv_cache:        CPU KV buffer size =    15.00 MiB",
    "llama_kv_cache: size =   15.00 MiB (  1024 cells,  15 layers,  1/1 seqs), K (f16):    7.50 MiB, V (f16):    7.50 MiB",
)
ON_GPU = (
    "load_tensors: offloaded 31/31 layers to GPU",
    "load_tensors:   CPU_Mapped model buffer size =    28.69 MiB",
    "load_tensors:        CUDA0 model buffer size =   100.00 MiB",
    "llama_context:  CUDA_Host  output buffer size =     0.19 MiB",
    "llama_kv_cache:      CUDA0 KV buffer size =    16.88 MiB",
    "llama_kv_cache: size =   16.88 MiB (   768 cells,  30 layers,  1/1 seqs), K (f16):    8.44 MiB, V (f16):    8.44 MiB",
    "sched_reserve:      CUDA0 compute buffer size =    98.25 MiB",
    "sched_reserve:  CUDA_Host compute buffer size =     2.63 MiB",
    "sched_reserve: graph (pp bs=512, tg bs=1): nodes = 937 / 930, splits = 2 / 1, input objects = 6, input tensors = 8",
)
RECURRENT = (
    "llama_memory_recurrent:        CPU RS buffer size =     2.50 MiB",
    "llama_memory_recurrent: size =    2.50 MiB (     1 cells,  24 layers,  1 seqs  0 rs_seq), R (f32): 0.50 MiB, S (f32): 2.00 MiB, P (f32): 0.00 MiB",
)
SMALL = Heads(keys=192, values=192)
CELL = Cell(512, 32, 1)


def asked(cell: Cell = CELL, *, device: DeviceType = DeviceType.CPU, **settings: Any) -> ContextSettings:
    chosen = candidate(batch_size=cell.batch_size, **{"threads": 1, **settings})
    return context_settings(chosen, cell, device=device)


def evidence(settings: ContextSettings, lines: tuple[str, ...] = PLAIN, **changes: Any) -> Evidence:
    sizes = {
        name: getattr(settings, name)
        for name in ("n_ctx", "n_seq_max", "n_batch", "n_ubatch", "threads", "threads_batch")
    }
    shown = Evidence(said=Said.of(lines), sizes=sizes, window=0, heads=SMALL)
    return replace(shown, **changes)


def differences(settings: ContextSettings, shown: Evidence) -> tuple[str, ...]:
    return observed_context(settings, shown).substitutions


def test_a_context_as_asked_for_shows_no_difference() -> None:
    seen = observed_context(asked(), evidence(asked()))
    assert (seen.cache_class, seen.cache_layers) == ("llama_kv_cache", "30 layers × 768 cells")
    assert (seen.kv_dtype, seen.threads, seen.substitutions) == ("f16", 1, ())


def test_the_log_tells_buffers_splits_and_layers_on_the_gpu() -> None:
    said = Said.of(ON_GPU)
    assert said.gpu_mib == pytest.approx(100.00 + 16.88 + 98.25)
    assert said.host_mib == pytest.approx(0.19 + 2.63)
    assert (said.splits_prefill, said.splits_decode, said.offloaded) == (2, 1, (31, 31))
    assert (Said.of(PLAIN).splits_prefill, Said.of(PLAIN).splits_decode, Said.of(PLAIN).offloaded) == (1, 1, None)


def test_memory_for_a_cpus_own_instructions_is_host_memory() -> None:
    said = Said.of(("load_tensors:          AMX model buffer size =    95.34 MiB", *PLAIN))
    assert (said.gpu_mib, said.mib_by_device("model")) == (0, "AMX 95.34")


def test_the_bytes_of_a_cache_are_exact_where_layers_are_alike() -> None:
    assert cache_bytes(evidence(asked())) == 30 * 768 * 192 * 2 * 2
    assert cache_bytes(evidence(asked(), heads=None)) == round(16.88 * 2**20)
    assert cache_bytes(evidence(asked(), RECURRENT)) == round(2.5 * 2**20)


def test_a_model_with_windows_has_a_cache_of_two_lengths() -> None:
    settings = asked(Cell(1900, 32, 1))
    shown = evidence(settings, WINDOWED, window=512, heads=Heads(keys=256, values=256))
    seen = observed_context(settings, shown)
    assert (seen.cache_class, seen.substitutions) == ("llama_kv_cache_iswa", ())
    assert seen.cache_layers == "3 layers × 2048 cells + 15 layers × 1024 cells"
    assert cache_bytes(shown) == (3 * 2048 + 15 * 1024) * 256 * 2 * 2


@pytest.mark.parametrize(
    ("settings", "window", "cells"),
    [
        (asked(Cell(1900, 32, 1)), 0, (2048,)),
        (asked(Cell(1900, 32, 1)), 512, (2048, 1024)),
        (asked(Cell(1900, 32, 1), n_ubatch=64), 512, (2048, 768)),
        (asked(Cell(1900, 32, 1), swa_full=True), 512, (2048, 2048)),
        (asked(Cell(200, 20, 1)), 512, (256, 256)),
        (asked(Cell(1900, 32, 3)), 512, (2048, 1024)),
        (asked(Cell(1900, 32, 3), kv_unified=True), 512, (5888, 2048)),
    ],
)
def test_cells_follow_from_the_settings(settings: ContextSettings, window: int, cells: tuple[int, ...]) -> None:
    assert expected_cells(settings, window) == cells


def test_a_windowed_cache_that_keeps_all_tokens_unasked_is_told() -> None:
    settings = asked(Cell(1900, 32, 1))
    grown = tuple(line.replace("1024 cells", "1280 cells") for line in WINDOWED)
    told = differences(settings, evidence(settings, grown, window=512, heads=None))
    assert told == ("asked for a cache of 2048 and 1024 cells, it has 2048 and 1280",)


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("K (f16)", "K (q8_0)", "asked for keys in f16 and values in f16, the cache has K q8_0, V f16"),
        (" 768 cells", "1024 cells", "asked for a cache of 768 cells, it has 1024"),
        ("1/1 seqs", "1/4 seqs", "asked for a buffer for each sequence, the cache has 4"),
        ("K (f16):    8.44", "K (f16):    4.48", "30 layers hold 12.92 MiB where 16.88 MiB were expected"),
    ],
)
def test_a_cache_unlike_what_was_asked_for_is_told(before: str, after: str, sentence: str) -> None:
    lines = tuple(line.replace(before, after) for line in PLAIN)
    assert sentence in differences(asked(), evidence(asked(), lines))


@pytest.mark.parametrize(
    ("settings", "lines", "sentence"),
    [
        ({"n_gpu_layers": 31}, PLAIN, "asked for layers on the GPU, this build of llama.cpp has none"),
        ({"n_gpu_layers": 20}, ON_GPU, "asked for 20 layers on the GPU, 31 of 31 are there"),
        ({"repack": False}, (*ON_GPU, "load_tensors: CPU_REPACK model buffer size = 61.38 MiB"), "were rearranged"),
        ({"repack": False}, (*ON_GPU, "load_tensors:   AMX model buffer size =    95.34 MiB"), "were rearranged"),
    ],
)
def test_weights_in_another_place_are_told(settings: dict[str, Any], lines: tuple[str, ...], sentence: str) -> None:
    wished = asked(device=DeviceType.CUDA, **settings)
    assert any(sentence in one for one in differences(wished, evidence(wished, lines)))


def test_all_layers_on_the_gpu_show_no_difference() -> None:
    wished = asked(device=DeviceType.CUDA)
    assert differences(wished, evidence(wished, ON_GPU)) == ()
    assert layers_on_gpu(Said.of(ON_GPU), 30) == Layers(all=30, on_gpu=30)
    assert layers_on_gpu(Said.of(PLAIN), 30) == Layers(all=30, on_gpu=0)


ALL, HALF, NONE = Layers(all=30, on_gpu=30), Layers(all=30, on_gpu=15), Layers(all=30, on_gpu=0)
FLASH, EAGER = {"attention": AttentionBackend.FLASH}, {"attention": AttentionBackend.EAGER}


@pytest.mark.parametrize(
    ("settings", "seen", "layers", "sentence"),
    [
        (FLASH, {"flash_attn_ext (CPU)": 60}, NONE, None),
        (EAGER, {"mul_mat + soft_max (CPU)": 60}, NONE, None),
        (FLASH, {}, NONE, None),
        (
            FLASH,
            {"mul_mat + soft_max (CPU)": 60},
            NONE,
            "asked for flash attention, decode ran mul_mat + soft_max (CPU)",
        ),
        (
            FLASH,
            {"flash_attn_ext (CPU)": 29, "mul_mat + soft_max (CPU)": 1},
            NONE,
            "asked for flash attention, decode ran flash_attn_ext (CPU) + mul_mat + soft_max (CPU)",
        ),
        (EAGER, {"flash_attn_ext (CPU)": 60}, NONE, "asked for no flash attention, decode ran flash_attn_ext (CPU)"),
        (FLASH, {"flash_attn_ext (CUDA0)": 60}, ALL, None),
        (
            FLASH,
            {"flash_attn_ext (CPU)": 60},
            ALL,
            "asked for attention on the GPU in 30 of 30 layers, decode ran flash_attn_ext (CPU)",
        ),
        (FLASH, {"flash_attn_ext (CPU)": 30, "flash_attn_ext (CUDA0)": 30}, HALF, None),
        (
            FLASH,
            {"flash_attn_ext (CUDA_Host)": 40, "flash_attn_ext (CUDA0)": 20},
            HALF,
            "asked for attention on the GPU in 15 of 30 layers, decode ran flash_attn_ext (CUDA_Host) + "
            "flash_attn_ext (CUDA0)",
        ),
        ({**FLASH, "offload_kqv": False}, {"flash_attn_ext (CPU)": 60}, ALL, None),
    ],
)
def test_attention_is_compared_with_what_was_asked_for(
    settings: dict[str, Any], seen: Mapping[str, int], layers: Layers, sentence: str | None
) -> None:
    told = observed_attention(asked(**settings), Step.DECODE, seen, layers)
    assert told.substitutions == (() if sentence is None else (sentence,))
    assert (told.kernel_prefill, told.kernel_decode) == (None, " + ".join(seen) or None)


def test_the_record_says_what_the_settings_came_to_and_how_the_library_was_built() -> None:
    wished = asked(device=DeviceType.CUDA)
    quantized = "llama_kv_cache: attn_rot_k = 1, n_embd_head_k_all = 64"
    build = Build(version="0.5.0", system_info="CPU : AVX = 1 | OPENMP = 1 | ", left_out=("AVX512",))
    told = resolved(evidence(wished, (*ON_GPU, quantized)), build)
    assert (told["llama_cpp"], told["build"], told["build_leaves_out"]) == (
        "0.5.0",
        "CPU : AVX = 1 | OPENMP = 1",
        "AVX512",
    )
    whole = Build(version="0.5.0", system_info="CPU : AVX = 1", left_out=())
    assert resolved(evidence(wished, ON_GPU), whole)["build_leaves_out"] == "nothing"
    assert (told["n_ctx"], told["threads"], told["rotated_before_quantising"]) == (768, 1, "k")
    assert (told["kv_mib"], told["model_mib"]) == ("CUDA0 16.88", "CPU_Mapped 28.69, CUDA0 100.00")
    assert (told["splits_prefill"], told["splits_decode"], told["layers_on_gpu"]) == (2, 1, 31)
    assert "rs_mib" not in told


def test_lost_tokens_are_told() -> None:
    assert observed_tokens({43}, 43).substitutions == ()
    told = observed_tokens({43, 30}, 43).substitutions
    assert told == ("fed 43 tokens to each sequence, the cache has taken 30 and 43",)
