"""What is launched, skipped, stopped and confirmed, for each way to search: whole sweeps of the fake engine under Ray.

It sleeps for real and a busy machine disturbs it, so that what is found is asked to be among the fastest quarter: with
and without compiling candidates are equal, and the next ones are a quarter slower.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from forgetful_engine import ForgetfulAdapter
from own_ray import own_ray

from kvray.analysis.evidence import confirm_round
from kvray.candidate import DeviceType
from kvray.config import CONFIRM_ROUNDS, SearchStrategy, TuneConfig
from kvray.engines.base import EngineAdapter
from kvray.errors import SweepInterruptedError
from kvray.record import Role, TrialRecord, TrialResult, TrialStatus
from kvray.store.manifest import SweepManifest
from kvray.store.parquet import ResultsStore
from kvray.sweep.outlook import Outlook
from kvray.trial.position import PositionBoard
from kvray.trial.spec import TrialSpec
from kvray.tuning.preview import Preview
from kvray.tuning.result import TuneResult
from kvray.tuning.search import TuningSearch
from kvray.workload import create_custom_profile

PROFILE = create_custom_profile(
    "search",
    context_lengths=(3000,),
    output_lengths=(8,),
    repeats=2,
    weight_ttft=0.5,
    weight_throughput=0.45,
    weight_memory=0.05,
)
BUDGET_S = 4.0
FAST = frozenset(
    label + compiled
    for label in ("static/sdpa/bfloat16", "dynamic/sdpa/bfloat16", "static/sdpa_math/bfloat16")
    for compiled in ("", "+compile:default")
)
"""The fastest quarter, by the engine's formula: a third faster than the baseline and more."""
BASELINE = "dynamic/sdpa/float32"


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    """For all sweeps of this file; each would start its own otherwise, which takes seconds."""
    with own_ray(str(Path(__file__).parent)):
        yield


def sweep(
    folder: Path,
    model_id: str = "fake:ok",
    *,
    adapter: EngineAdapter | None = None,
    observer: Listener | None = None,
    **changes: object,
) -> TuneResult:
    values: dict[str, object] = {
        "model_id": model_id,
        "profile": PROFILE,
        "device": DeviceType.CPU,
        "engine": "fake",
        "space": "full",
        "output_dir": folder,
        "timeout_s": 240.0,
    }
    config = TuneConfig(**{**values, **changes})
    return TuningSearch(config=config, adapter=adapter, observer=observer).run()


class Listener:
    """Hears which trials start and end; presses Ctrl-C when as many have ended as asked."""

    def __init__(self, *, patience: int | None = None) -> None:
        self.started: list[TrialSpec] = []
        self.ended: list[TrialRecord] = []
        self._patience = patience

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

    def trial_started(self, spec: TrialSpec) -> None:
        self.started.append(spec)

    def outlook_changed(self, outlook: Outlook) -> None:
        pass

    def rung_finished(self, result: TrialResult) -> None:
        pass

    def trial_lost(self, spec: TrialSpec) -> None:
        raise AssertionError("no slot dies here")

    def trial_finished(self, result: TrialResult) -> None:
        self.ended.append(result.record)
        if len(self.ended) == self._patience:
            raise KeyboardInterrupt


def records(result: TuneResult, *roles: Role) -> list[TrialRecord]:
    """Records of the launched trials of `roles`, by start."""
    kept = [one.record for one in result.results if one.record.role in roles]
    return [record for record in kept if record.status.was_launched]


def searched(result: TuneResult) -> list[TrialRecord]:
    return records(result, Role.BASELINE, Role.SEARCH)


def confirmed(result: TuneResult) -> list[TrialRecord]:
    return records(result, Role.CONFIRM)


def skipped(result: TuneResult) -> list[TrialRecord]:
    return [one.record for one in result.results if one.record.status is TrialStatus.SKIPPED]


def assert_each_is_accounted_for_once(result: TuneResult, candidates: int = 24) -> None:
    ids = [record.candidate_id for record in (*searched(result), *skipped(result))]
    assert len(ids) == len(set(ids)) == candidates


# The model of the axes


@pytest.fixture(scope="module")
def modelled(tmp_path_factory: pytest.TempPathFactory) -> TuneResult:
    """The default way, on a space of 24."""
    return sweep(tmp_path_factory.mktemp("modelled"))


def test_the_model_launches_fewer_than_all_and_accounts_for_each(modelled: TuneResult) -> None:
    assert_each_is_accounted_for_once(modelled)
    assert 3 <= len(searched(modelled)) < 24
    assert searched(modelled)[0].role is Role.BASELINE
    assert searched(modelled)[0].candidate.label == BASELINE


def test_the_model_finds_one_of_the_fastest(modelled: TuneResult) -> None:
    assert modelled.analysis.ranking.winner.record.candidate.label in FAST


def test_what_was_skipped_has_its_prediction_and_ran_nowhere(modelled: TuneResult) -> None:
    for record in skipped(modelled):
        assert record.role is Role.SEARCH
        assert record.message is not None
        assert record.message.startswith("too unlikely to win; predicted TTFT ")
        assert "chance that it is more than 2 % better: " in record.message
        assert (record.pid, record.rung, record.ttft_ms, record.started_at) == (None, None, None, None)
    report = modelled.paths.report_markdown.read_text()
    assert "## Not launched" in report
    assert f"{len(skipped(modelled))} not launched by the search" in report


def test_the_baseline_repeats_and_the_others_are_repeated_by_confirming(modelled: TuneResult) -> None:
    rungs = {record.role: record.rung for record in searched(modelled) if record.status is TrialStatus.OK}
    assert rungs == {Role.BASELINE: 2, Role.SEARCH: 1}


def test_confirming_rounds_are_interleaved_processes_of_one_rung_without_quality(modelled: TuneResult) -> None:
    again = confirmed(modelled)
    rounds = [confirm_round(record) for record in again]
    assert rounds[0] == 1
    assert rounds == sorted(rounds, key=lambda number: number or 0), "by start: one round after the other"
    for number in set(rounds):
        members = [record.candidate.label for record in again if confirm_round(record) == number]
        assert len(members) == len(set(members)) > 1
        assert BASELINE in members
    pids = [record.pid for record in (*searched(modelled), *again)]
    assert len(set(pids)) == len(pids)
    assert {record.status for record in again} == {TrialStatus.OK}
    assert {record.rung for record in again} == {1}
    assert {(record.kl_mean, record.nll_delta, record.quality_s) for record in again} == {(None, None, None)}


def test_the_winner_s_quality_is_that_of_its_searched_process(modelled: TuneResult) -> None:
    winner = modelled.analysis.ranking.winner.record
    assert winner.kl_mean is not None
    assert winner.role is Role.SEARCH


def test_what_the_sweep_was_asked_is_in_the_manifest(modelled: TuneResult) -> None:
    manifest = modelled.manifest
    assert (manifest.search, manifest.budget_s, manifest.seed) == ("model", None, 0)
    assert manifest.confirm_rounds == CONFIRM_ROUNDS


# The other ways


@pytest.mark.slow
def test_the_grid_measures_all_to_the_last_rung_and_confirms_nothing_when_told_so(tmp_path: Path) -> None:
    result = sweep(tmp_path, search=SearchStrategy.GRID, confirm_rounds=0, caches=("static",), space="default")
    assert_each_is_accounted_for_once(result, candidates=7)
    assert {(record.status, record.rung) for record in searched(result)} == {(TrialStatus.OK, 2)}
    assert (skipped(result), confirmed(result)) == ([], [])


def test_halving_launches_all_and_stops_the_poor(tmp_path: Path) -> None:
    result = sweep(tmp_path, search=SearchStrategy.ASHA, confirm_rounds=0)
    assert len(searched(result)) == 24
    stopped = [record for record in searched(result) if record.status is TrialStatus.STOPPED]
    assert stopped
    assert {record.rung for record in stopped} <= {0, 1}
    assert all(record.ttft_ms is not None for record in stopped)
    assert BASELINE not in {record.candidate.label for record in stopped}


@pytest.mark.slow
def test_optuna_launches_as_many_as_allowed_and_names_the_rest(tmp_path: Path) -> None:
    result = sweep(tmp_path, search=SearchStrategy.OPTUNA, max_trials=5, confirm_rounds=0)
    assert len(searched(result)) == 5
    assert_each_is_accounted_for_once(result)
    assert {record.message for record in skipped(result)} == {"--max-trials 5 was reached"}


# Bounds


@pytest.mark.slow  # a whole sweep; the search's own tests hold its rules
def test_the_most_trials_bind_the_search_and_not_the_confirming(tmp_path: Path) -> None:
    result = sweep(tmp_path, max_trials=3, confirm_rounds=1)
    assert len(searched(result)) == 3
    assert_each_is_accounted_for_once(result)
    assert {confirm_round(record) for record in confirmed(result)} <= {1}


@pytest.mark.slow
def test_a_budget_that_is_spent_before_the_first_trial_still_measures_the_baseline(tmp_path: Path) -> None:
    result = sweep(tmp_path, budget_s=0.001)
    (only,) = searched(result)
    assert (only.role, only.status, only.rung) == (Role.BASELINE, TrialStatus.OK, 2)
    assert confirmed(result) == []
    assert_each_is_accounted_for_once(result)
    assert result.analysis.ranking.winner.record == only
    assert result.paths.best_plan.is_file()


def test_a_budget_ends_the_sweep_in_time_with_what_was_found(tmp_path: Path) -> None:
    result = sweep(tmp_path, search=SearchStrategy.GRID, budget_s=BUDGET_S)
    assert result.analysis.ranking.entries
    assert_each_is_accounted_for_once(result)
    launched = [*searched(result), *confirmed(result)]
    begun = [record.started_at for record in launched if record.started_at is not None]
    assert (max(begun) - min(begun)).total_seconds() <= BUDGET_S
    assert result.manifest.budget_s == BUDGET_S


# Resuming


def ended_trials(folder: Path, listener: Listener) -> dict[str, TrialResult]:
    """Whole trials of the sweep that `listener` has interrupted, by id: those it was told of, and at most the one that
    was measured while the last of them was written."""
    recorded = ResultsStore(folder).read(listener.manifest.run_id)
    ended = {one.record.trial_id: one for one in recorded if one.record.status is not TrialStatus.INTERRUPTED}
    assert {record.trial_id for record in listener.ended} <= set(ended)
    assert len(ended) <= len(listener.ended) + 1
    return ended


def test_an_interrupted_search_goes_on_where_it_was(tmp_path: Path) -> None:
    listener = Listener(patience=4)
    with pytest.raises(SweepInterruptedError, match="--resume"):
        sweep(tmp_path, observer=listener, confirm_rounds=1)
    before = ended_trials(tmp_path, listener)
    assert len(listener.ended) == 4
    assert {one.record.status for one in before.values()} <= {TrialStatus.OK, TrialStatus.STOPPED}

    again = Listener()
    result = sweep(tmp_path, observer=again, resume=listener.manifest.run_id, confirm_rounds=1)
    assert {spec.trial_id for spec in again.started}.isdisjoint(before)
    assert {spec.role for spec in again.started} >= {Role.CONFIRM}
    assert {one.record.trial_id: one for one in result.results if one.record.trial_id in before} == before
    assert_each_is_accounted_for_once(result)
    assert result.analysis.ranking.winner.record.candidate.label in FAST


@pytest.mark.slow
def test_a_search_that_goes_on_further_lists_nobody_as_launched_and_skipped(tmp_path: Path) -> None:
    few = sweep(tmp_path, max_trials=2, confirm_rounds=0)
    assert len(skipped(few)) == 22
    more = sweep(tmp_path, max_trials=4, confirm_rounds=0, resume=few.manifest.run_id)
    assert len(searched(more)) == 4
    assert_each_is_accounted_for_once(more)
    assert [one for one in more.results if one.record.trial_id in {two.trial_id for two in searched(few)}] == [
        one for one in few.results if one.record.status.was_launched
    ]


@pytest.mark.slow
def test_an_interrupted_confirming_ends_its_round_first(tmp_path: Path) -> None:
    listener = Listener(patience=4)
    few: dict[str, Any] = {
        "max_trials": 3,
        "caches": ("static", "dynamic"),
        "attentions": ("sdpa",),
        "space": "default",
    }
    with pytest.raises(SweepInterruptedError):
        sweep(tmp_path, observer=listener, confirm_rounds=1, **few)
    before = ended_trials(tmp_path, listener)
    assert [record.role for record in listener.ended].count(Role.CONFIRM) == 1
    again = Listener()
    result = sweep(tmp_path, observer=again, confirm_rounds=1, resume=listener.manifest.run_id, **few)
    assert {spec.trial_id for spec in again.started} == {record.trial_id for record in confirmed(result)} - set(before)
    members = [record.candidate.label for record in confirmed(result)]
    assert len(members) == len(set(members)) >= 2
    assert BASELINE in members


# Several slots, and trouble


@pytest.mark.slow  # a whole sweep; the queue's own tests hold its rules
def test_two_slots_launch_nobody_twice_and_come_to_an_end(tmp_path: Path) -> None:
    result = sweep(tmp_path, slots=2)
    assert_each_is_accounted_for_once(result)
    trials = [one.record.trial_id for one in result.results]
    assert len(trials) == len(set(trials))
    # On a busy machine the baseline may look far better than all others, and then nothing is left to confirm.
    winner = result.analysis.ranking.winner.record.candidate_id
    assert confirmed(result) or winner == result.manifest.baseline_id


@pytest.mark.slow
def test_a_candidate_whose_confirming_process_crashes_is_listed_and_ends_nothing(tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    memory.mkdir()
    adapter = ForgetfulAdapter("static/sdpa/bfloat16", memory)
    result = sweep(tmp_path, adapter=adapter, space="default", confirm_rounds=2)
    crashed = [record for record in confirmed(result) if record.status is TrialStatus.CRASHED]
    assert {record.candidate.label for record in crashed} == {"static/sdpa/bfloat16"}
    assert {record.message for record in crashed} == {"exited with code 7 without a word"}
    assert any(record.status is TrialStatus.OK for record in confirmed(result)), "the baseline was confirmed"
    assert result.analysis.ranking.entries
    listed = {one.record.trial_id for one in result.analysis.ranking.unranked}
    assert {record.trial_id for record in crashed} <= listed


@pytest.mark.slow
def test_where_all_but_the_baseline_fail_each_is_tried_and_the_baseline_stays(tmp_path: Path) -> None:
    result = sweep(tmp_path, "fake:eager=oom,sdpa_math=oom,static=oom,bfloat16=oom,compile=oom")
    assert_each_is_accounted_for_once(result)
    assert {record.status for record in searched(result)} == {TrialStatus.OK, TrialStatus.OOM}
    assert result.analysis.ranking.winner.record.candidate.label == BASELINE


@pytest.mark.slow  # a whole sweep
def test_without_a_forecast_the_search_goes_the_same_way(tmp_path: Path) -> None:
    result = sweep(tmp_path, forecast=False, max_trials=4, confirm_rounds=0)
    assert len(searched(result)) == 4
    assert_each_is_accounted_for_once(result)
