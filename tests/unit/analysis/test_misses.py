"""The nearest misses, by the limit that is missed most."""

from __future__ import annotations

from typing import Any

from analysis_samples import make_candidate, make_profile, make_record, make_result

from kvray.analysis.misses import nearest_misses
from kvray.analysis.ranking import rank
from kvray.record import TrialResult, TrialStatus
from kvray.workload import Limits

LIMITS = Limits(max_ttft_ms=100.0, min_decode_tok_s=50.0, max_quality_loss=0.01)
PROFILE = make_profile(limits=LIMITS)


def result(name: int, **values: Any) -> TrialResult:
    return make_result(make_candidate(name), PROFILE, **values)


def failed(name: int, status: TrialStatus, **values: Any) -> TrialResult:
    return TrialResult(record=make_record(make_candidate(name), status=status, **values))


def nearest_of(*results: TrialResult) -> list[tuple[str, str]]:
    return [(near.record.candidate_id, near.text) for near in nearest_misses(rank(results, PROFILE), LIMITS)]


def ids(*names: int) -> list[str]:
    return [make_candidate(name).candidate_id for name in names]


def test_the_one_whose_farthest_limit_is_nearest_comes_first() -> None:
    found = nearest_of(
        result(1, ttft_ms=160.0, decode_tok_s=60.0),
        result(2, ttft_ms=110.0, decode_tok_s=25.0),
        result(3, ttft_ms=120.0, decode_tok_s=45.0),
    )

    assert [key for key, _ in found] == ids(3, 1, 2)
    assert found[0][1] == (
        "TTFT 120 ms at 128→32, 20 % over the limit of 100 ms; "
        "decode throughput 45 tok/s at 128→32, 10 % under the limit of 50 tok/s"
    )


def test_three_are_told_however_many_there_are() -> None:
    assert [key for key, _ in nearest_of(*(result(name, ttft_ms=200.0 - name) for name in range(6)))] == ids(5, 4, 3)


def test_equally_near_ones_come_by_label_in_whatever_order_they_ran() -> None:
    results = [result(name, ttft_ms=150.0) for name in range(3)]

    assert nearest_of(*results) == nearest_of(*reversed(results))
    assert [key for key, _ in nearest_of(*results)] == ids(0, 1, 2)


def test_who_lost_too_much_quality_comes_after_what_was_measured_completely() -> None:
    lossy = failed(1, TrialStatus.QUALITY, kl_mean=0.012)

    found = nearest_of(lossy, result(2, ttft_ms=500.0))

    assert [key for key, _ in found] == ids(2, 1)
    assert found[1][1] == (
        "quality loss 0.012 nats per token, 20 % over the limit of 0.01 nats per token; its other limits were not "
        "checked"
    )


def test_failures_and_those_that_keep_the_limits_are_no_misses() -> None:
    unknown_loss = failed(2, TrialStatus.QUALITY)

    assert nearest_of(result(0), failed(1, TrialStatus.OOM), unknown_loss) == []


def test_a_trial_stopped_after_every_cell_can_come_nearest() -> None:
    stopped = result(1, ttft_ms=110.0, repeats=1, status=TrialStatus.STOPPED, rung=1)

    assert [key for key, _ in nearest_of(stopped, result(2, ttft_ms=300.0))] == ids(1, 2)
