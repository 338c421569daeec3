"""Processes of two kinds: seen in the field as 33 or 26 tok/s, decided when the process starts."""

from __future__ import annotations

import numpy as np
import pytest
from evidence_samples import of_throughputs

from kvray.analysis.bimodality import find_bimodality, may_be_bimodal
from kvray.analysis.evidence import DECODE


def test_two_groups_far_apart_are_found_with_their_values() -> None:
    evidence = of_throughputs({"a": [33.0, 26.0, 33.2, 26.1, 32.9], "b": [30.0]})

    (found,) = find_bimodality(evidence, ["a", "b"])

    assert (found.candidate_id, found.metric, found.processes) == ("a", DECODE, (2, 3))
    assert [found.low, found.high] == pytest.approx([26.05, 33.03], rel=0.001)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([33.0, 33.0, 33.0, 26.0], id="one outlier is no group"),
        pytest.param([33.0, 31.0, 29.0, 27.0], id="spread evenly"),
        pytest.param([33.0, 33.0, 31.0, 31.0], id="too close"),
        pytest.param([33.0, 26.0, 33.0], id="too few"),
    ],
)
def test_other_spreads_are_not(values: list[float]) -> None:
    assert find_bimodality(of_throughputs({"a": values}), ["a"]) == ()


def test_plain_noise_is_hardly_ever_taken_for_two_kinds() -> None:
    generator = np.random.default_rng(4)
    draws = [50.0 * np.exp(generator.normal(0, 0.03, 4)) for _ in range(2000)]

    alarms = [bool(find_bimodality(of_throughputs({"a": list(values)}), ["a"])) for values in draws]

    assert np.mean(alarms) < 0.005


def test_two_processes_far_apart_are_a_suspicion() -> None:
    assert may_be_bimodal(of_throughputs({"a": [33.0, 26.0]}), "a")
    assert not may_be_bimodal(of_throughputs({"a": [33.0, 32.0]}), "a")
    assert not may_be_bimodal(of_throughputs({"a": [33.0]}), "a")
