"""`benchmarks/perplexity.py` computes what llama-perplexity does under the same names, and reads what that prints."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"

PRINTED = """
====== Perplexity statistics ======
Mean PPL(Q)                   :  20.103521 ±   1.921170
====== KL divergence statistics ======
Mean    KLD:   0.012345 ±   0.000456
Maximum KLD:   1.234567
99.9%   KLD:   0.543210
Median  KLD:   0.002000

====== Token probability statistics ======
Mean    Δp: -0.123 ± 0.045 %
Maximum Δp: 12.345%
RMS Δp    :  2.345 ± 0.067 %
Same top p: 95.123 ± 0.456 %
"""


@pytest.fixture
def perplexity(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("perplexity")


def test_its_figures_are_those_of_the_definitions(perplexity: Any) -> None:
    reference = np.log(np.array([0.5, 0.25, 0.25], dtype=np.float32))
    other = np.log(np.array([0.25, 0.5, 0.25], dtype=np.float32))
    found = perplexity.divergence([(reference, reference, 0)] * 999 + [(reference, other, 0)])
    kld = 0.5 * np.log(2) - 0.25 * np.log(2)
    assert found.mean_kld == pytest.approx(kld / 1000, rel=1e-4)
    assert found.kld_99_9 == pytest.approx(kld * 0.001, rel=1e-3), "the quantile lies just beyond the 999 equal ones"
    assert found.same_top_p == pytest.approx(99.9)
    assert found.mean_dp == pytest.approx(-0.025, rel=1e-4)
    assert found.rms_dp == pytest.approx(100 * 0.25 / np.sqrt(1000), rel=1e-4)


def test_a_text_is_cut_into_whole_pieces_that_begin_as_the_model_wants(perplexity: Any) -> None:
    tokens = list(range(2 * perplexity.PIECE + 5))
    first, second = perplexity.pieces(tokens, bos=None)
    assert (first[0], second[0], len(first), len(second)) == (0, 512, 512, 512)
    assert [one[:2] for one in perplexity.pieces(tokens, bos=7)] == [(7, 1), (7, 513)]


def test_what_the_program_prints_is_read(perplexity: Any) -> None:
    assert perplexity.read_program(PRINTED) == {
        "mean_kld": 0.012345,
        "kld_99_9": 0.54321,
        "mean_dp": -0.123,
        "rms_dp": 2.345,
        "same_top_p": 95.123,
    }
