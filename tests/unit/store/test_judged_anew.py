"""Records are judged anew by other weights and limits. The sweep was written when fingerprints still held both."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from kvray.errors import ResultsError
from kvray.judgement import Judging, Objective, Weights
from kvray.record import Role, TrialStatus
from kvray.store.fingerprint import SweepFingerprint
from kvray.store.manifest import SweepManifest
from kvray.store.parquet import ResultsStore
from kvray.store.resuming import further_attempt, judged_by_others, recall
from kvray.tuning.result import TuneResult, read_result
from kvray.workload import WorkloadProfile, override_profile

OLD_RESULTS = ResultsStore(Path(__file__).parents[2] / "assets" / "results_v2")
RUN_ID = "20261126-223403-v2v2"
LOSSY, STOPPED = "static/sdpa/bfloat16", ["dynamic/eager/float32", "static/sdpa_math/float32"]


def judged(**limits: float | None) -> TuneResult:
    return read_result(OLD_RESULTS, RUN_ID, Judging(limits=limits))


def reason(result: TuneResult, label: str) -> str:
    (one,) = (one for one in result.analysis.ranking.unranked if one.record.candidate.label == label)
    return one.reason


def resumed(**changes: Any) -> SweepManifest:
    """The old sweep after a further attempt under the conditions of then, which judges otherwise."""
    old = OLD_RESULTS.read_manifest(RUN_ID)
    profile = override_profile(old.profile, **changes)
    conditions = SweepFingerprint.model_validate({**old.attempts[0].fingerprint.model_dump(), "profile": profile})
    later = old.created_at + dt.timedelta(days=1)
    new = old.model_copy(update={"profile": profile, "attempts": (), "created_at": later})
    results = OLD_RESULTS.read(RUN_ID)
    return further_attempt(old, new, conditions, candidates=12, results=results, force=False)


def test_the_sweep_as_it_was_asked_has_the_winner_that_it_had() -> None:
    ranking = read_result(OLD_RESULTS, RUN_ID).analysis.ranking
    assert [one.record.candidate.label for one in ranking.entries][:2] == [
        "dynamic/sdpa/bfloat16",
        "static/sdpa_math/bfloat16",
    ]
    assert {one.record.candidate.label for one in ranking.unranked} == {LOSSY, *STOPPED}


def test_other_weights_give_another_order_and_are_those_of_the_plan() -> None:
    result = read_result(OLD_RESULTS, RUN_ID, Judging(weights=Weights(ttft=0.0, throughput=0.0, memory=1.0)))
    peaks = [one.metrics.peak_mib or 0.0 for one in result.analysis.ranking.entries[1:]]
    assert peaks == sorted(peaks)
    assert result.manifest.profile.weights == Weights(0.0, 0.0, 1.0)


def test_a_limit_of_now_is_held_against_what_was_measured_then() -> None:
    result = judged(max_ttft_ms=2.5)
    missing = [one for one in result.analysis.ranking.unranked if one.misses]
    assert "dynamic/sdpa/float32" in {one.record.candidate.label for one in missing}
    assert "at 1024→8" in missing[0].reason
    assert "the limit of 2.5 ms" in missing[0].reason
    assert len(judged(max_ttft_ms=0.001).analysis.ranking.entries) == 0


def test_a_quality_limit_of_now_judges_what_passed_then_and_what_did_not() -> None:
    tight, wide = judged(max_quality_loss=1e-12), judged(max_quality_loss=5.0)
    assert reason(tight, LOSSY).startswith("loses more quality than allowed: KL 1.7")
    assert reason(wide, LOSSY).startswith("ended because its loss of quality was over the limit of that time")
    assert "today's limit allows it, so --resume measures it completely" in reason(wide, LOSSY)


def test_an_attempt_that_judges_otherwise_joins_the_records_of_then() -> None:
    other = resumed(judging=Judging(weights=Objective.MEMORY.weights, limits={"max_ttft_ms": None}))
    assert [one.fingerprint_id for one in other.attempts] == ["ca9a25b9"] * 2
    assert len(recall(other, OLD_RESULTS.read(RUN_ID)).results) == 16


def test_other_lengths_are_another_measurement_as_ever() -> None:
    with pytest.raises(ResultsError, match=r"profile\.context_lengths: 64, 1024 → 64"):
        resumed(context_lengths=(64,))


def test_a_trial_that_was_ended_for_a_loss_that_is_allowed_now_is_launched_again() -> None:
    results = OLD_RESULTS.read(RUN_ID)
    (lossy,) = (one.record for one in results if one.record.status is TrialStatus.QUALITY)
    found = recall(resumed(judging=Judging(limits={"max_quality_loss": 5.0})), results)
    assert found.retry == (lossy.candidate_id,)
    assert found.trial_ids == {lossy.candidate_id: lossy.trial_id}
    assert recall(resumed(judging=Judging(limits={"max_ttft_ms": 5.0})), results).retry == ()


@pytest.mark.parametrize(("objective", "others"), [(Objective.MEMORY, STOPPED), (Objective.LATENCY, [])])
def test_what_other_weights_stopped_is_known_and_can_be_measured_again(objective: Objective, others: list[str]) -> None:
    manifest, results = resumed(judging=Judging(weights=objective.weights)), OLD_RESULTS.read(RUN_ID)
    assert sorted(one.candidate.label for one in judged_by_others(manifest, results)) == others
    reopened = recall(manifest, results, reopens_stopped=True)
    assert len(reopened.results) == 16 - len(others)
    assert reopened.retry == ()


def test_of_random_weights_no_quality_is_judged_whatever_an_old_manifest_says() -> None:
    old = OLD_RESULTS.read_manifest(RUN_ID)
    random = old.model_copy(update={"model_id": "random:a-model"}).judged_by(Judging(limits={"max_ttft_ms": 9.0}))
    asked = random.attempts[0].fingerprint.profile
    assert (random.profile.limits.max_quality_loss, random.profile.limits.max_ttft_ms) == (None, 9.0)
    assert isinstance(asked, WorkloadProfile)
    assert asked.limits.max_quality_loss is None


def test_the_confirming_trials_have_the_loss_of_their_search() -> None:
    result = judged(max_quality_loss=1e-12)
    confirmed = {one.record.candidate_id for one in result.results if one.record.role is Role.CONFIRM}
    ranked = {one.record.candidate_id for one in result.analysis.ranking.entries}
    assert confirmed <= ranked, "the fake engine's caches lose nothing"
