"""Each static rule, and the reason it gives."""

from __future__ import annotations

from typing import Any

import pytest

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.space.constraints import RULES, Constraint, SpaceFacts, first_objection

CPU = SpaceFacts(device=DeviceType.CPU, dtypes=frozenset(DType))
GPU = SpaceFacts(device=DeviceType.CUDA, dtypes=frozenset(DType), gpu_count=1)


def candidate(**changes: Any) -> Candidate:
    values: dict[str, Any] = {
        "engine": "fake",
        "cache": CacheStrategy.DYNAMIC,
        "attention": AttentionBackend.SDPA,
        "dtype": DType.FLOAT32,
    }
    return Candidate(**{**values, **changes})


@pytest.mark.parametrize("facts", [CPU, GPU])
def test_the_usual_candidate_meets_no_objection(facts: SpaceFacts) -> None:
    assert first_objection(candidate(), facts, RULES) is None


def test_a_dtype_that_the_device_lacks_is_rejected() -> None:
    old = SpaceFacts(device=DeviceType.CUDA, dtypes=frozenset({DType.FLOAT32, DType.FLOAT16}), gpu_count=1)
    reason = first_objection(candidate(dtype=DType.BFLOAT16), old, RULES)
    assert reason == "bfloat16 is not supported on this cuda (dtype-on-device)"


def test_a_candidate_cannot_spread_over_more_gpus_than_there_are() -> None:
    assert first_objection(candidate(parallelism=2), GPU, RULES) == "needs 2 GPUs, 1 visible (parallelism)"
    two = SpaceFacts(device=DeviceType.CUDA, dtypes=frozenset(DType), gpu_count=2)
    assert first_objection(candidate(parallelism=2), two, RULES) is None


def test_one_process_needs_no_gpu_count() -> None:
    assert first_objection(candidate(parallelism=1), CPU, RULES) is None
    assert first_objection(candidate(parallelism=2), CPU, RULES) == "needs 2 GPUs, 0 visible (parallelism)"


def test_the_first_rule_that_objects_gives_the_reason() -> None:
    rules = (
        Constraint(name="silent", check=lambda candidate, facts: None),
        Constraint(name="first", check=lambda candidate, facts: "one"),
        Constraint(name="second", check=lambda candidate, facts: "two"),
    )
    assert first_objection(candidate(), CPU, rules) == "one (first)"


def test_rules_have_names_of_their_own() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
