"""What a further attempt may build on: equal conditions, records of its own fingerprint, no failure that is retried."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from resuming_samples import BASELINE, NOON, OTHER, THIRD, fingerprint, manifest, trial

from kvray.errors import ResultsError
from kvray.record import Role, TrialResult, TrialStatus
from kvray.store.fingerprint import SweepFingerprint
from kvray.store.manifest import CodeCheck, CodeOutcome, SweepManifest
from kvray.store.parquet import without_overtaken
from kvray.store.resuming import (
    asks_nothing_new,
    current_results,
    earlier_session,
    first_attempt,
    further_attempt,
    of_type,
    recall,
)

A, B = fingerprint(), fingerprint(torch_version="2.13.0")


def begun(of: SweepFingerprint = A) -> SweepManifest:
    return first_attempt(manifest(arguments=("org/model",)), of, candidates=3)


def goes_on(
    old: SweepManifest,
    of: SweepFingerprint,
    *,
    hour: int = 1,
    force: bool = False,
    results: tuple[TrialResult, ...] = (),
) -> SweepManifest:
    new = manifest(hour=hour, run_id="ignored", arguments=("org/model", "--resume", old.run_id), max_trials=9)
    return further_attempt(old, new, of, candidates=3, results=results, force=force)


# Attempts


def test_an_attempt_under_the_same_conditions_joins_and_keeps_both_histories() -> None:
    both = goes_on(begun(), A)
    assert (both.run_id, both.created_at) == (begun().run_id, NOON)
    assert [one.arguments for one in both.attempts] == [("org/model",), ("org/model", "--resume", both.run_id)]
    assert [one.max_trials for one in both.attempts] == [None, 9]
    assert both.max_trials == 9, "the manifest's own fields are the last attempt's"
    assert (both.fingerprint_id, both.trial_suffix) == (A.digest, "")
    assert both.measured_since == NOON < both.session_started_at


def test_what_is_known_of_the_winners_code_is_kept_for_the_trials_that_it_was_held_against() -> None:
    winner, another = BASELINE.candidate_id, OTHER.candidate_id
    check = CodeCheck(candidate_id=winner, fingerprint_id=A.digest, outcome=CodeOutcome.CHECKED, text="It ran.")
    checked = begun().model_copy(update={"code_check": check})
    assert goes_on(checked, A).code_check_of(winner) == check
    assert goes_on(checked, A).code_check_of(another) is None
    assert goes_on(checked, B, force=True).code_check_of(winner) is None


def test_other_conditions_are_refused_with_all_that_differs_and_what_to_do() -> None:
    other = fingerprint(torch_version="2.13.0", cpus=8)
    told = "usable CPUs: 2 → 8; torch: 2.12.0 → 2.13.0. Undo that, start a new sweep without --resume, or pass --force"
    with pytest.raises(ResultsError, match=re.escape(told)) as error:
        goes_on(begun(), other)
    assert error.value.exit_code == 10


def test_forced_they_are_another_fingerprint_with_trial_ids_of_its_own() -> None:
    forced = goes_on(begun(), B, force=True)
    assert forced.fingerprint_id == B.digest != forced.first_fingerprint_id
    assert forced.trial_suffix == f".{B.digest}"
    assert forced.measured_since == forced.session_started_at > NOON


def test_force_changes_nothing_where_nothing_differs() -> None:
    assert goes_on(begun(), A, force=True) == goes_on(begun(), A)


def test_who_comes_back_to_earlier_conditions_joins_their_records_unforced() -> None:
    back = goes_on(goes_on(begun(), B, force=True), A, hour=2)
    assert [one.fingerprint_id for one in back.attempts] == [A.digest, B.digest, A.digest]
    assert (back.trial_suffix, back.measured_since) == ("", NOON)


def test_what_the_last_attempt_differs_from_is_named_not_what_an_older_one_did() -> None:
    forced = goes_on(begun(), B, force=True)
    with pytest.raises(ResultsError, match=r"torch: 2\.13\.0 → 2\.14\.0\. "):
        goes_on(forced, fingerprint(torch_version="2.14.0"))


def test_a_manifest_of_version_1_goes_on_where_what_it_and_its_records_tell_is_the_same() -> None:
    old = manifest(manifest_version=1)
    results = (trial(torch_version="2.12.0", cpus=2),)
    joined = goes_on(old, A, results=results)
    assert joined.manifest_version == 2
    assert len({one.fingerprint_id for one in joined.attempts}) == 1
    assert current_results(joined, results) == (results, ()), "records without a fingerprint are the first's"
    with pytest.raises(ResultsError, match=r"torch: 2\.12\.0 → 2\.13\.0\. "):
        goes_on(old, B, results=results)


def test_what_a_version_1_sweep_did_not_tell_is_known_from_its_next_attempt_on() -> None:
    joined = goes_on(manifest(manifest_version=1), A)
    with pytest.raises(ResultsError, match=r"torch: 2\.12\.0 → 2\.13\.0\. "):
        goes_on(joined, B)


def test_an_attempt_is_complete_once_it_has_ended_and_of_version_1_nothing_is_said() -> None:
    assert (begun().is_complete, begun().ended(NOON).is_complete, manifest().is_complete) == (False, True, None)
    assert goes_on(begun().ended(NOON), A).is_complete is False


def test_a_manifest_with_attempts_comes_back_equal_from_its_file() -> None:
    forced = goes_on(begun().ended(NOON), B, force=True)
    assert SweepManifest.model_validate_json(forced.model_dump_json()) == forced


# Records


def test_only_records_of_the_last_fingerprint_are_ranked() -> None:
    of_a, of_b, of_old = trial(fingerprint=A.digest), trial(THIRD, fingerprint=B.digest), trial(BASELINE)
    forced = goes_on(begun(), B, force=True)
    assert current_results(forced, [of_a, of_b, of_old]) == ((of_b,), (of_a, of_old))
    assert current_results(begun(), [of_a, of_b, of_old]) == ((of_a, of_old), (of_b,))
    assert current_results(manifest(), [of_a, of_old])[0] == (of_old,)


def test_who_was_skipped_before_there_were_fingerprints_and_launched_since_is_there_once() -> None:
    skipped, launched = trial(status=TrialStatus.SKIPPED), trial(fingerprint=A.digest)
    assert current_results(begun(), [skipped, launched]) == ((launched,), ())


def test_a_trial_whose_raw_runs_are_lost_is_measured_again_in_its_place() -> None:
    lost = trial(runs=0, rung=1)
    found = recall(begun(), [lost, trial(THIRD)])
    assert [one.record.candidate_id for one in found.results] == [THIRD.candidate_id]
    assert found.trial_ids == {OTHER.candidate_id: lost.record.trial_id}
    assert found.retry == ()


@given(st.lists(st.sampled_from(TrialStatus), min_size=3, max_size=3), st.sets(st.sampled_from(TrialStatus.failures())))
def test_exactly_the_failures_asked_for_are_measured_again(
    statuses: list[TrialStatus], retry: set[TrialStatus]
) -> None:
    candidates = (BASELINE, OTHER, THIRD)
    results = [trial(one, status, runs=0) for one, status in zip(candidates, statuses, strict=True)]
    found = recall(begun(), results, retry)
    anew = {*retry, TrialStatus.INTERRUPTED}
    again = [one.candidate_id for one, status in zip(candidates, statuses, strict=True) if status in retry]
    replaced = [one.candidate_id for one, status in zip(candidates, statuses, strict=True) if status in anew]
    kept = [status for status in statuses if status.was_launched and status not in anew]
    assert list(found.retry) == again
    assert list(found.trial_ids) == replaced
    assert [one.record.status for one in found.results] == kept


def test_disturbed_candidates_are_measured_again_in_their_records_places_and_their_confirming_trials_are_left_out() -> (
    None
):
    again = trial(role=Role.CONFIRM, trial_id=f"confirm-1-{OTHER.candidate_id}")
    found = recall(begun(), [trial(), again, trial(THIRD)], disturbed=[OTHER.candidate_id])
    assert [one.record.candidate_id for one in found.results] == [THIRD.candidate_id]
    assert found.retry == (OTHER.candidate_id,)
    assert found.trial_ids == {OTHER.candidate_id: trial().record.trial_id}


def test_a_confirming_trial_that_failed_is_left_out_without_a_new_search_for_its_candidate() -> None:
    failed = trial(status=TrialStatus.CRASHED, runs=0, role=Role.CONFIRM, trial_id="confirm-1-x")
    found = recall(begun(), [trial(), failed], [TrialStatus.CRASHED])
    assert [one.record.role for one in found.results] == [Role.SEARCH]
    assert (found.retry, found.trial_ids) == ((), {})


# Attempts that ask nothing new

SPACE = [one.candidate_id for one in (BASELINE, OTHER, THIRD)]
ALL = (trial(BASELINE), trial(OTHER, TrialStatus.OOM, runs=0), trial(THIRD, TrialStatus.SKIPPED))
ASKED: dict[str, Any] = {"search": "model", "seed": 3, "confirm_rounds": 2, "max_trials": 5, "budget_s": 60.0}


def is_answered(
    results: tuple[TrialResult, ...] = ALL,
    *,
    of: SweepFingerprint = A,
    has_ended: bool = True,
    retry: tuple[TrialStatus, ...] = (),
    space: Sequence[str] = SPACE,
    **changes: Any,
) -> bool:
    """Whether an attempt that asks `ASKED` with `changes` asks nothing beyond an earlier one that asked `ASKED`."""
    first = first_attempt(manifest(**ASKED), A, candidates=3)
    old = first.ended(NOON) if has_ended else first
    new = manifest(hour=1, **{**ASKED, **changes})
    both = further_attempt(old, new, of, candidates=len(space), results=results, force=True)
    return asks_nothing_new(both, recall(both, results, retry), results, space)


def test_an_attempt_that_repeats_one_that_came_to_its_end_or_asks_less_is_answered_from_its_start() -> None:
    assert is_answered()
    assert is_answered(space=SPACE[:2], confirm_rounds=0, max_trials=4, budget_s=30.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"confirm_rounds": 3},
        {"max_trials": 6},
        {"max_trials": None},
        {"budget_s": None},
        {"search": "grid"},
        {"seed": 4},
        {"space": [*SPACE, "one-more"]},
        {"of": B},
        {"has_ended": False},
        {"retry": (TrialStatus.OOM,)},
    ],
    ids=str,
)
def test_an_attempt_that_asks_more_than_one_that_came_to_its_end_is_open(changes: dict[str, Any]) -> None:
    assert not is_answered(**changes)


def test_an_attempt_at_a_sweep_that_has_lost_a_row_or_raw_runs_since_is_open() -> None:
    assert not is_answered(ALL[:2])
    assert not is_answered((trial(BASELINE, runs=0, rung=2), *ALL[1:]))
    assert not is_answered((*ALL, trial(BASELINE, runs=0, rung=2, role=Role.CONFIRM, trial_id="confirm-1-x")))


def test_trials_of_an_earlier_session_are_those_begun_before_the_last_attempt() -> None:
    early, late = trial(), trial(THIRD, hour=5)
    both = goes_on(begun(), A)
    assert earlier_session(both, [late, early, trial(status=TrialStatus.SKIPPED)]) == [early.record.started_at]
    assert earlier_session(begun(), [early, late]) == []


def test_what_one_type_of_gpu_has_recorded_is_not_taken_for_anothers() -> None:
    on_a100, on_h100, older, unlaunched = (
        trial(BASELINE, gpu_type="A100", device_name="NVIDIA A100"),
        trial(OTHER, gpu_type="H100", device_name="NVIDIA H100"),
        trial(THIRD, device_name="NVIDIA H100"),
        trial(THIRD, status=TrialStatus.SKIPPED),
    )
    every = (on_a100, on_h100, older, unlaunched)
    assert of_type(every, "A100", "NVIDIA A100") == (on_a100, unlaunched)
    assert of_type(every, "H100", "NVIDIA H100") == (on_h100, older, unlaunched)
    assert of_type(every, None, "a CPU") == every


def test_a_candidate_that_ran_on_one_type_is_still_listed_as_not_launched_on_the_other() -> None:
    ran = trial(OTHER, gpu_type="A100")
    left, older = (trial(OTHER, status=TrialStatus.SKIPPED, gpu_type=name) for name in ("H100", None))
    current, _ = current_results(manifest(), [ran, left, older])
    assert current == (ran, left)
    assert without_overtaken([one.record for one in (ran, left, older)]) == [ran.record, left.record]


def test_a_check_beside_a_sweep_is_neither_ranked_nor_recalled() -> None:
    mine = trial(BASELINE, fingerprint=A.digest)
    check = trial(BASELINE, fingerprint=A.digest, trial_id="a", role=Role.CHECK)
    other = trial(BASELINE, fingerprint=B.digest, trial_id="b", role=Role.CHECK)
    assert current_results(begun(), (mine, check, other)) == ((mine,), ())
    assert recall(begun(), (mine, check, other)).results == (mine,)
