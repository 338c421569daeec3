from __future__ import annotations

import pytest
from forecast_samples import llama_8b, small_shape


def test_in_a_dense_model_a_token_is_multiplied_with_all_but_what_is_looked_up() -> None:
    assert llama_8b().active_parameters == 8_030_261_248 - 525_336_576 == 7_504_924_672


def test_mixtral_multiplies_a_token_with_12_9_of_its_46_7_billion_parameters() -> None:
    experts = 32 * 8 * 3 * 4096 * 14_336
    mixtral = llama_8b(
        total_parameters=46_702_792_704,
        lookup_parameters=0,
        expert_parameters=experts,
        experts=8,
        experts_per_token=2,
    )
    assert mixtral.active_parameters == 46_702_792_704 - experts * 6 / 8 == pytest.approx(12.9e9, rel=0.005)


def test_the_more_tokens_at_once_the_more_experts_are_read() -> None:
    shape = small_shape(expert_parameters=800, experts=4, experts_per_token=1)
    assert shape.multiplied_parameters(tokens=1) == 200 + 800 * 1 / 4
    assert shape.multiplied_parameters(tokens=2) == 200 + 800 * (1 - (3 / 4) ** 2)
    assert shape.multiplied_parameters(tokens=1000) == pytest.approx(1000)
