"""Sweeps that go on: nothing is paid for twice, nothing unlike is ranked together. Whole sweeps of a fake engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from changing_engine import ChangingAdapter
from own_ray import own_ray

from kvray.analysis.disturbed import resting_on_disturbed
from kvray.candidate import DeviceType
from kvray.config import TuneConfig
from kvray.errors import ResultsError, SweepInterruptedError
from kvray.judgement import Judging, Objective
from kvray.plan.plan import load_plan_file
from kvray.record import Role, TrialRecord, TrialResult, TrialStatus
from kvray.store.manifest import SweepManifest
from kvray.store.parquet import ResultsStore
from kvray.sweep.outlook import Outlook
from kvray.trial.position import PositionBoard
from kvray.trial.spec import TrialSpec
from kvray.tuning.preview import Preview
from kvray.tuning.result import TuneResult
from kvray.tuning.search import TuningSearch
from kvray.workload import create_custom_profile, override_profile

PROFILE = create_custom_profile(
    "resume",
    context_lengths=(256,),
    output_lengths=(4,),
    repeats=1,
    weight_ttft=0.5,
    weight_throughput=0.45,
    weight_memory=0.05,
)
FOUR: dict[str, Any] = {"caches": ("dynamic",), "attentions": ("sdpa", "eager"), "search": "grid"}
"""Baseline, one more that works, and two that run out of memory until they are mended."""


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    """For all sweeps of this file; each would start its own otherwise, which takes seconds."""
    with own_ray(str(Path(__file__).parent)):
        yield


@pytest.fixture
def broken(tmp_path: Path) -> ChangingAdapter:
    return ChangingAdapter(tmp_path)


class Listener:
    """Hears which trials start and what is recalled; presses Ctrl-C when as many have ended as asked, with none before
    the first starts."""

    def __init__(self, *, patience: int | None = None, last_rung: int | None = None) -> None:
        self._last_rung = last_rung
        self.started: list[TrialSpec] = []
        self.recalled: list[TrialRecord] = []
        self._patience = patience
        self._ended = 0

    def measuring_device(self) -> None:
        raise AssertionError("the fake engine's device is never measured")

    def checking_code(self) -> None:
        raise AssertionError("the fake engine has no code to run")

    def search_started(
        self,
        preview: Preview,
        manifest: SweepManifest,
        recorded: Sequence[TrialResult],
        positions: PositionBoard | None = None,
    ) -> None:
        self.manifest = manifest
        self.recalled = [one.record for one in recorded]
        if self._patience == 0:
            raise KeyboardInterrupt

    def trial_started(self, spec: TrialSpec) -> None:
        self.started.append(spec)

    def outlook_changed(self, outlook: Outlook) -> None:
        pass

    def rung_finished(self, result: TrialResult) -> None:
        if result.record.rung == self._last_rung:
            raise KeyboardInterrupt

    def trial_lost(self, spec: TrialSpec) -> None:
        raise AssertionError("no slot dies here")

    def trial_finished(self, result: TrialResult) -> None:
        self._ended += 1
        if self._ended == self._patience:
            raise KeyboardInterrupt


def sweep(folder: Path, adapter: ChangingAdapter, *, observer: Listener | None = None, **changes: object) -> TuneResult:
    values: dict[str, object] = {
        "model_id": "fake:ok",
        "profile": PROFILE,
        "device": DeviceType.CPU,
        "engine": "fake",
        "output_dir": folder / "results",
        "timeout_s": 240.0,
        "confirm_rounds": 0,
        **FOUR,
    }
    config = TuneConfig(**{**values, **changes})
    return TuningSearch(config=config, adapter=adapter, observer=observer).run()


def statuses(results: Sequence[TrialResult]) -> dict[str, str]:
    return {one.record.candidate.label: one.record.status.value for one in results}


OUT_OF_MEMORY = {
    "dynamic/sdpa/float32": "ok",
    "dynamic/sdpa/bfloat16": "ok",
    "dynamic/eager/float32": "oom",
    "dynamic/eager/bfloat16": "oom",
}


def test_failures_are_not_paid_for_twice_unless_asked_and_then_replaced_in_their_place(
    tmp_path: Path, broken: ChangingAdapter
) -> None:
    first = sweep(tmp_path, broken)
    assert statuses(first.results) == OUT_OF_MEMORY
    (tmp_path / "mended").touch()
    unasked, other, asked = Listener(), Listener(), Listener()
    run_id = first.manifest.run_id
    assert sweep(tmp_path, broken, observer=unasked, resume=run_id).results == first.results
    assert sweep(tmp_path, broken, observer=other, resume=run_id, retry=("crashed",)).results == first.results
    assert unasked.started == other.started == []

    with pytest.raises(SweepInterruptedError, match="after the last trial"):
        sweep(tmp_path, broken, observer=Listener(patience=0), resume=run_id)
    store = ResultsStore(tmp_path / "results")
    assert store.read_manifest(run_id).is_complete, "that attempt had nothing to measure"
    with pytest.raises(SweepInterruptedError, match="to measure the rest"):
        sweep(tmp_path, broken, observer=Listener(patience=0), resume=run_id, confirm_rounds=1)
    assert store.read_manifest(run_id).is_complete is False, "that one had"

    again = sweep(tmp_path, broken, observer=asked, resume=run_id, retry=("oom",))
    assert sorted(spec.candidate.label for spec in asked.started) == ["dynamic/eager/bfloat16", "dynamic/eager/float32"]
    assert set(statuses(again.results).values()) == {"ok"}
    assert {one.record.trial_id for one in again.results} == {one.record.trial_id for one in first.results}
    assert len(again.results) == 4
    assert again.manifest.is_complete
    assert [attempt.max_trials for attempt in again.manifest.attempts] == [None] * 6


@pytest.mark.slow
def test_a_failure_stays_recorded_until_its_retry_has_ended(tmp_path: Path, broken: ChangingAdapter) -> None:
    first = sweep(tmp_path, broken)
    (tmp_path / "mended").touch()
    interrupter = Listener(last_rung=1)
    with pytest.raises(SweepInterruptedError):
        sweep(tmp_path, broken, observer=interrupter, resume=first.manifest.run_id, retry=("oom",))
    assert [spec.candidate.label.split("/")[1] for spec in interrupter.started] == ["eager"]
    assert tuple(ResultsStore(tmp_path / "results").read(first.manifest.run_id)) == first.results


@pytest.mark.slow
def test_disturbed_candidates_are_measured_again_in_their_place_where_that_is_asked_for(
    tmp_path: Path, broken: ChangingAdapter, caplog: pytest.LogCaptureFixture
) -> None:
    """On a busy machine others may have been disturbed, too."""
    (tmp_path / "mended").touch()
    first = sweep(tmp_path, broken)
    run_id, store = first.manifest.run_id, ResultsStore(tmp_path / "results")
    chosen = next(one for one in first.results if one.record.role is Role.SEARCH)
    store.append(replace(chosen, runs=tuple(replace(run, disturbed=True) for run in chosen.runs)))
    disturbed = set(resting_on_disturbed(store.read(run_id)))
    assert chosen.record.candidate_id in disturbed

    asked = Listener()
    caplog.clear()
    again = sweep(tmp_path, broken, observer=asked, resume=run_id, retry_disturbed=True)

    assert {spec.candidate.candidate_id for spec in asked.started} == disturbed
    assert {one.record.trial_id for one in again.results} == {one.record.trial_id for one in first.results}
    left = resting_on_disturbed(again.results)
    told = [text for text in caplog.messages if f"--resume {run_id} --retry disturbed --wait-quiet" in text]
    assert len(told) == (1 if left else 0)


@pytest.mark.slow
def test_an_interrupted_sweep_reports_itself_as_incomplete_and_its_records_are_marked(
    tmp_path: Path, broken: ChangingAdapter
) -> None:
    listener = Listener(patience=2)
    with pytest.raises(SweepInterruptedError):
        sweep(tmp_path, broken, observer=listener)
    store = ResultsStore(tmp_path / "results")
    report = store.read_text(store.paths(listener.manifest.run_id).report_markdown)
    ended = [one for one in store.read(listener.manifest.run_id) if one.record.status is not TrialStatus.INTERRUPTED]
    assert len(ended) in (2, 3)  # the third may end while the second is written
    assert f"**Incomplete ({4 - len(ended)} of 4 candidates not measured yet): " in report
    paths = store.paths(listener.manifest.run_id)
    assert load_plan_file(tmp_path / "results" / paths.best_plan).is_partial
    assert "\n# Incomplete: " in store.read_text(paths.optimized_config)
    result = sweep(tmp_path, broken, resume=listener.manifest.run_id)
    assert {one.record.fingerprint for one in result.results} == {listener.manifest.fingerprint_id}
    assert "Incomplete" not in store.read_text(result.paths.report_markdown)
    assert not load_plan_file(tmp_path / "results" / paths.best_plan).is_partial
    assert "from an earlier session on" in store.read_text(result.paths.report_markdown)


@pytest.mark.slow
def test_the_finished_rungs_of_an_interrupted_trial_are_kept_and_it_is_measured_again(
    tmp_path: Path, broken: ChangingAdapter
) -> None:
    listener = Listener(last_rung=1)
    with pytest.raises(SweepInterruptedError):
        sweep(tmp_path, broken, observer=listener)
    store = ResultsStore(tmp_path / "results")
    run_id = listener.manifest.run_id
    (left,) = store.read(run_id)
    assert (left.record.status, left.record.role, left.record.rung) == (TrialStatus.INTERRUPTED, Role.BASELINE, 1)
    assert {run.rung for run in left.runs} == {0, 1}
    report = store.read_text(store.paths(run_id).report_markdown)
    assert "no candidate was launched" not in report
    assert "interrupted after rung 1" in report
    assert "4 of 4 candidates not measured yet" in report

    again = Listener()
    result = sweep(tmp_path, broken, observer=again, resume=run_id)
    assert len(again.started) == len(result.results) == 4
    assert TrialStatus.INTERRUPTED not in {one.record.status for one in result.results}


@pytest.mark.slow
def test_a_trial_without_its_row_or_without_its_runs_is_measured_again(tmp_path: Path, broken: ChangingAdapter) -> None:
    listener = Listener(patience=3)
    with pytest.raises(SweepInterruptedError):
        sweep(tmp_path, broken, observer=listener)
    store = ResultsStore(tmp_path / "results")
    run_id = listener.manifest.run_id
    for recorded in store.read(run_id):  # as separate files, as a kill leaves them
        store.append(recorded)
    paths = store.paths(run_id)
    for table in (paths.runs, paths.trials):
        (table / "part-0.parquet").unlink()
    whole = [one for one in store.read(run_id) if one.record.status is TrialStatus.OK]
    paths.trial_file(whole[0].record.trial_id).unlink()
    paths.runs_file(whole[1].record.trial_id).write_bytes(b"PAR1 torn")

    again = Listener()
    result = sweep(tmp_path, broken, observer=again, resume=run_id)
    damaged = {one.record.trial_id for one in whole[:2]}
    assert damaged <= {spec.trial_id for spec in again.started}
    assert {record.trial_id for record in again.recalled}.isdisjoint(damaged)
    assert statuses(result.results) == OUT_OF_MEMORY
    assert all(one.runs for one in result.results if one.record.status is TrialStatus.OK)


@pytest.mark.slow
def test_another_model_file_is_refused_forced_beside_it_and_never_ranked_with_it(
    tmp_path: Path, broken: ChangingAdapter
) -> None:
    first = sweep(tmp_path, broken)
    run_id = first.manifest.run_id
    other = ChangingAdapter(tmp_path, revision="2")
    with pytest.raises(
        ResultsError, match=r"could not be compared with its own\. Different now: model file: 1 → 2\. Undo that"
    ):
        sweep(tmp_path, other, resume=run_id)
    store = ResultsStore(tmp_path / "results")
    assert store.read_manifest(run_id) == first.manifest, "a refused attempt leaves no trace"

    forced = sweep(tmp_path, other, resume=run_id, force=True, confirm_rounds=1)
    assert {one.record.fingerprint for one in forced.results} == {forced.manifest.fingerprint_id}
    measured = [one.record for one in forced.results if one.record.role is not Role.CONFIRM]
    assert sorted(record.role for record in measured) == ["baseline", "search", "search", "search"]
    assert any(one.record.role is Role.CONFIRM for one in forced.results)
    assert forced.set_aside == first.results
    assert len(store.read(run_id)) == len(first.results) + len(forced.results)
    ranked = [entry.record.fingerprint for entry in forced.analysis.ranking.entries]
    assert set(ranked) == {forced.manifest.fingerprint_id}
    assert "4 trials in the records are of other fingerprints (model file: 1 → 2)" in store.read_text(
        forced.paths.report_markdown
    )
    assert load_plan_file(forced.paths.best_plan).measured_at == forced.manifest.measured_since

    back = Listener()
    first_again = sweep(tmp_path, broken, observer=back, resume=run_id)
    assert back.started == []
    assert first_again.results == first.results
    assert len(first_again.set_aside) == len(forced.results)


@pytest.mark.slow
def test_a_sweep_goes_on_under_other_weights_and_limits_and_measures_only_what_they_allow_now(
    tmp_path: Path, broken: ChangingAdapter, caplog: pytest.LogCaptureFixture
) -> None:
    lossy: dict[str, Any] = {
        "model_id": "fake:static=lossy",
        "caches": ("dynamic", "static"),
        "attentions": ("sdpa",),
        "profile": override_profile(PROFILE, judging=Judging(limits={"max_peak_mib": 200.0})),
    }
    first = sweep(tmp_path, broken, **lossy)
    assert sorted(statuses(first.results).values()) == ["ok", "ok", "quality", "quality"]

    judging = Judging(weights=Objective.MEMORY.weights, limits={"max_peak_mib": None, "max_quality_loss": 9.0})
    asked, again = Listener(), {**lossy, "profile": override_profile(PROFILE, judging=judging)}
    second = sweep(tmp_path, broken, observer=asked, resume=first.manifest.run_id, **again)
    assert "weight_ttft: 0.5 → 0.15" in caplog.text
    assert {spec.candidate.cache.value for spec in asked.started} == {"static"}
    assert list(statuses(second.results).values()) == ["ok"] * 4
    assert len(second.analysis.ranking.entries) == 4
    assert {one.record.fingerprint for one in second.results} == {first.manifest.fingerprint_id}
