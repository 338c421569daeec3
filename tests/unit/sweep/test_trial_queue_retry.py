"""What a resumed sweep pays for again: nothing that is recorded, but the failures asked for, each in its place."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from queue_samples import BASELINE, SPACE, answer, drive, make_queue

from kvray.analysis.sampler import EveryCandidate
from kvray.candidate import Candidate
from kvray.record import Role, TrialResult, TrialStatus

LAUNCHED = [status for status in TrialStatus if status.was_launched and status is not TrialStatus.STOPPED]


class NothingMore(EveryCandidate):
    """Expects nothing of anyone."""

    def proposal(self) -> Candidate | None:
        return None


def first_attempt(statuses: Sequence[TrialStatus]) -> list[TrialResult]:
    """Its records: of as many candidates of the space as there are statuses."""
    given_to = {one.candidate_id: status for one, status in zip(SPACE, statuses, strict=False)}
    tasks = drive(make_queue(), status=lambda task: given_to.get(task.spec.candidate.candidate_id, TrialStatus.OK))
    return [answer(task, status=given_to[task.spec.candidate.candidate_id]) for task in tasks[: len(statuses)]]


@given(
    st.lists(st.sampled_from(LAUNCHED), max_size=len(SPACE)),
    st.sets(st.sampled_from(TrialStatus.failures())),
)
def test_what_is_launched_again_are_the_retried_failures_and_what_was_never_recorded(
    statuses: list[TrialStatus], retry: set[TrialStatus]
) -> None:
    recorded = first_attempt(statuses)
    again = [one.record for one in recorded if one.record.status in retry]
    queue = make_queue(
        recorded=[one for one in recorded if one.record.status not in retry],
        retry=[record.candidate_id for record in again],
        trial_ids={record.candidate_id: record.trial_id for record in again},
    )
    launched = [task.spec.candidate.candidate_id for task in drive(queue)]
    rest = [one.candidate_id for one in SPACE[len(statuses) :]]
    assert sorted(launched) == sorted([record.candidate_id for record in again] + rest)


def test_the_retried_are_launched_however_little_the_search_expects_of_them() -> None:
    failed, *_ = first_attempt([TrialStatus.OK, TrialStatus.OOM])[1:]
    tasks = drive(
        make_queue(
            sampler=NothingMore(SPACE),
            recorded=first_attempt([TrialStatus.OK]),
            retry=[failed.record.candidate_id],
            trial_ids={failed.record.candidate_id: "0099-as-it-was"},
        )
    )
    assert [(task.spec.candidate, task.spec.trial_id) for task in tasks] == [(SPACE[1], "0099-as-it-was")]


def test_a_retried_baseline_comes_first_and_once() -> None:
    tasks = drive(make_queue(retry=[SPACE[1].candidate_id, BASELINE.candidate_id]))
    assert [task.spec.candidate for task in tasks] == SPACE


def test_bounds_hold_for_the_retried_too() -> None:
    recorded = first_attempt([TrialStatus.OK])
    assert drive(make_queue(recorded=recorded, retry=[SPACE[1].candidate_id], max_trials=1)) == []


def test_who_is_not_in_the_space_any_more_is_not_retried() -> None:
    assert len(drive(make_queue(retry=["gone"]))) == len(SPACE)


def test_under_another_fingerprint_every_trial_has_an_id_of_its_own_and_rounds_go_on() -> None:
    plain = [task.spec for task in drive(make_queue(confirm_rounds=2))]
    queue = make_queue(confirm_rounds=2, trial_suffix=".0123abcd")
    suffixed = [task.spec for task in drive(queue)]
    assert [f"{spec.trial_id}.0123abcd" for spec in plain] == [spec.trial_id for spec in suffixed]
    recorded = [answer(task) for task in drive(make_queue(confirm_rounds=2, trial_suffix=".0123abcd"))]
    resumed = drive(make_queue(confirm_rounds=3, trial_suffix=".0123abcd", recorded=recorded))
    assert all(task.spec.trial_id.startswith("confirm-3-") for task in resumed)
    assert {task.spec.role for task in resumed} <= {Role.CONFIRM}
