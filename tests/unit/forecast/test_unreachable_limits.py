"""A limit that nothing is forecast to keep is said before anything is measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kvray.forecast.limits import unreachable_limits
from kvray.forecast.prediction import CellForecast, Forecast
from kvray.workload import Cell, Limits


def of(*peaks_mib: float, ttft_ms: float | None = 200.0, decode_tok_s: float | None = 40.0) -> Forecast:
    """Cells of rising length: each peak with as many times the time to the first token."""
    return Forecast.of(
        [
            CellForecast(
                cell=Cell(512 * number, 32, 1),
                ttft_ms=None if ttft_ms is None else ttft_ms * number,
                decode_tok_s=None if decode_tok_s is None else decode_tok_s / number,
                peak_mib=peak,
                held_mib=peak,
                ideal_decode_tok_s=None,
            )
            for number, peak in enumerate(peaks_mib, start=1)
        ]
    )


FORECASTS = {"dynamic": of(700.0, 900.0), "static": of(650.0, 812.0, ttft_ms=250.0, decode_tok_s=60.0)}


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"max_peak_mib": 100.0}, "--max-vram 100 MiB in every cell: the leanest, static, is forecast at 812 MiB."),
        ({"max_ttft_ms": 399.0}, "--max-ttft 399 ms in every cell: the fastest, dynamic, is forecast at 400 ms."),
        ({"max_itl_ms": 20.0}, "--max-itl 20 ms in every cell: the fastest, static, is forecast at 33.3 ms."),
        (
            {"min_decode_tok_s": 31.0},
            "--min-throughput 31 tok/s in every cell: the fastest, static, is forecast at 30 tok/s.",
        ),
    ],
)
def test_it_is_told_with_the_candidate_that_comes_nearest(limits: dict[str, Any], told: str) -> None:
    found = unreachable_limits(FORECASTS, Limits(**limits))
    assert found == (f"No candidate is forecast to keep {told}",)


def test_nothing_is_told_of_a_limit_that_one_candidate_keeps() -> None:
    limits = Limits(max_peak_mib=812.0, max_ttft_ms=400.0, min_decode_tok_s=30.0, max_itl_ms=34.0)
    assert unreachable_limits(FORECASTS, limits) == ()


def test_nothing_is_told_of_what_is_not_forecast_for_all() -> None:
    some = {**FORECASTS, "unknown": of(600.0, ttft_ms=None, decode_tok_s=None)}
    assert unreachable_limits(some, Limits(max_ttft_ms=1.0, min_decode_tok_s=1e9)) == ()
    assert unreachable_limits({}, Limits(max_peak_mib=1.0)) == ()


def test_on_a_gpu_what_the_process_needs_beside_its_allocator_counts() -> None:
    limits = Limits(max_peak_mib=1000.0)
    (told,) = unreachable_limits(FORECASTS, limits, beside_mib=dict.fromkeys(FORECASTS, 300.0))
    assert "forecast at 1,112 MiB" in told
    (told,) = unreachable_limits(FORECASTS, limits, beside_mib={"dynamic": 120.0, "static": 300.0})
    assert "the leanest, dynamic, is forecast at 1,020 MiB" in told


def test_a_limit_of_memory_is_meant_for_each_of_several_gpus() -> None:
    limits = Limits(max_peak_mib=500.0)
    spread = {"dynamic+gpus:2": replace(FORECASTS["dynamic"], gpus=2)}
    assert unreachable_limits(spread, limits) == ()
    (told,) = unreachable_limits(spread, Limits(max_peak_mib=400.0))
    assert "forecast at 450 MiB" in told
