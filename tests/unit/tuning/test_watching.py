"""What Prometheus is told of a sweep: the same as its live view."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from manifests import plain_manifest

from kvray.analysis.aggregate import Metrics
from kvray.sweep.metrics import SWEEP_LABELS, Metric, exports_metrics
from kvray.sweep.outlook import Outlook
from kvray.sweep.session import RaySession
from kvray.tuning.best_so_far import CandidateState
from kvray.tuning.standing import SweepState, TrialState
from kvray.tuning.watching import sweep_labels, sweep_samples


def trial(number: int, state: str, *, ttft_ms: float | None = None, engine: str = "fake", gpus: int = 1) -> TrialState:
    metrics = None
    if ttft_ms is not None:
        metrics = Metrics(
            ttft_ms=ttft_ms, itl_p50_ms=1.0, itl_p95_ms=1.0, itl_p99_ms=1.0, decode_tok_s=50.0, peak_mib=None
        )
    return TrialState(
        label=f"c{number}",
        state=state,
        trial_id=f"t{number}",
        metrics=metrics,
        engine=engine,
        parallelism=gpus,
        wall_s=0.0 if state == "running" else 10.0,
    )


def told(*trials: TrialState, gpus_per_slot: int = 1, is_running: bool = True) -> dict[tuple[str, ...], float]:
    """By metric and the values of its further labels, without trials of which there are none."""
    state = SweepState(clock=lambda: 130.0, total=5, finished=2, started=100.0)
    state.standings = {one.trial_id: one for one in trials}
    measured = [(one.label, one.metrics) for one in trials if one.metrics is not None]
    state.so_far.candidates = {
        label: CandidateState(
            label=label,
            candidate_id=label,
            metrics=metrics,
            utility=-math.log(metrics.ttft_ms),
            is_baseline=label == "c0",
        )
        for label, metrics in measured
    }
    state.foresee(Outlook(left_s=(60.0, 90.0)))
    samples = sweep_samples(state, ["fake"], gpus_per_slot, is_running=is_running)
    for one in samples:
        assert set(one.labels) <= set(one.metric.labels)
    return {
        (one.metric.value, *one.labels.values()): one.value
        for one in samples
        if one.value or one.metric is not Metric.TRIALS
    }


def test_metrics_tell_of_trials_the_best_and_time_as_the_live_view_does() -> None:
    assert told(trial(0, "ok", ttft_ms=100.0), trial(1, "ok", ttft_ms=50.0, gpus=4), trial(2, "running")) == {
        ("kvray_sweep_running",): 1,
        ("kvray_trials", "fake", "running"): 1,
        ("kvray_trials", "fake", "ok"): 2,
        ("kvray_candidates",): 5,
        ("kvray_candidates_tried",): 2,
        ("kvray_best_gain_ratio",): pytest.approx(2.0),
        ("kvray_best_ttft_speedup_ratio",): pytest.approx(2.0),
        ("kvray_best_decode_speedup_ratio",): pytest.approx(1.0),
        ("kvray_gpu_seconds", "fake"): 10 * 1 + 10 * 4,
        ("kvray_trial_seconds", "fake"): 20,
        ("kvray_passed_seconds",): 30,
        ("kvray_left_seconds", "least"): 60,
        ("kvray_left_seconds", "most"): 90,
    }


def test_trials_and_seconds_are_those_of_each_engine() -> None:
    found = told(trial(0, "ok"), trial(1, "crashed", engine="second"), gpus_per_slot=0)
    assert found["kvray_trials", "fake", "ok"] == found["kvray_trials", "second", "crashed"] == 1
    assert found["kvray_trial_seconds", "second"] == 10
    assert found["kvray_gpu_seconds", "second"] == 0, "a CPU has none"


def test_every_state_is_told_from_the_first_so_that_none_keeps_an_old_number() -> None:
    samples = sweep_samples(SweepState(), ["fake"], 1)
    statuses = [one.labels["status"] for one in samples if one.metric is Metric.TRIALS]
    assert statuses[:4] == ["running", "lost", "ok", "stopped"]
    assert not {"rejected", "skipped"} & set(statuses), "these were not launched"
    assert not [one for one in samples if one.metric in (Metric.BEST_GAIN, Metric.LEFT)], "not known yet"


def test_an_ended_sweep_is_marked_and_has_no_time_left() -> None:
    found = told(trial(0, "ok"), is_running=False)
    assert found["kvray_sweep_running",] == 0
    assert found["kvray_left_seconds", "most"] == 0


def test_a_private_ray_which_ends_with_the_sweep_is_not_asked_to_export(tmp_path: Path) -> None:
    assert not exports_metrics(RaySession(address=None, scratch=tmp_path))


def test_a_model_that_was_sent_with_a_job_is_labelled_as_its_user_named_it() -> None:
    manifest = plain_manifest().model_copy(
        update={"model_id": "/tmp/copy/tiny", "sent_models": {"/tmp/copy/tiny": "./tiny"}}
    )
    labels = sweep_labels(manifest, ["fake", "other"], None)
    assert tuple(labels) == SWEEP_LABELS
    assert (labels["model"], labels["engine"], labels["gpu_type"]) == ("./tiny", "fake,other", "")
