"""The suite's model is one model: Transformers and llama.cpp, which read different files of it, compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kvray.candidate import DeviceType
from kvray.check.suite.cases import SUITE_PROFILE, TOLD_TOKENS, Case, suite_cases
from kvray.check.suite.files import write_folder, write_gguf
from kvray.check.suite.models import Attention
from kvray.engines.base import EngineAdapter, ModelRequest
from kvray.engines.llama_cpp import LlamaCppAdapter
from kvray.engines.transformers import TransformersAdapter

CASES = {case.name: case for case in suite_cases()}


def told(
    adapter: EngineAdapter, model: Path, case: Case
) -> tuple[tuple[int, ...], tuple[int, ...], NDArray[np.float32]]:
    """The first tokens of an answer, the text that was fed, and its log-probabilities."""
    request = ModelRequest(model_id=str(model), offline=True)
    loaded = adapter.load(request, case.candidate, DeviceType.CPU, SUITE_PROFILE)
    try:
        (cell,) = SUITE_PROFILE.cells(case.candidate.batch_size, rung=1)
        loaded.prepare(cell)
        tokens = loaded.generate(8).tokens[0]
        text = loaded.forced_text(TOLD_TOKENS)
        logs = [
            told[0, token] for _, token, told in loaded.forced_log_probabilities(text) if isinstance(told, np.ndarray)
        ]
        return tokens, text.ids, np.array(logs)
    finally:
        loaded.close()


@pytest.mark.parametrize(
    ("attention", "own", "other", "within"),
    [
        (Attention.FULL, "transformers/full/dynamic", "llama_cpp/full/flash", 0.1),
        (Attention.GROUPED, "transformers/gqa/eager", "llama_cpp/gqa/f32", 1e-3),
        (Attention.SLIDING, "transformers/sliding/dynamic", "llama_cpp/sliding/flash", 0.1),
    ],
)
def test_both_engines_compute_the_same_model(
    attention: Attention, own: str, other: str, within: float, tmp_path: Path
) -> None:
    model = CASES[own].model
    assert model.attention is attention
    tokens, text, logs = told(TransformersAdapter(), write_folder(model, tmp_path / "model"), CASES[own])
    others = told(LlamaCppAdapter(), write_gguf(model, tmp_path / "model.gguf"), CASES[other])
    assert others[0] == tokens
    assert others[1] == text
    assert len(logs) == len(others[2]) == TOLD_TOKENS
    assert np.abs(others[2] - logs).max() < within
    assert np.ptp(logs) > 5, "log-probabilities that hardly differ would show little"
