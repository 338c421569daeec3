"""Confirming in a sweep: rounds in which winner, rivals and baseline each run once more in fresh processes.

Plans the rounds, goes on with one that an earlier attempt broke off, and runs nothing. `analysis.confirming` decides
who takes part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvray.analysis.confirming import MOST_CONTENDERS, MOST_IN_ROUND, next_round
from kvray.analysis.evidence import confirm_round, gather_evidence
from kvray.analysis.score import utility_weights
from kvray.record import TrialRecord, TrialResult, TrialStatus
from kvray.workload import WorkloadProfile


@dataclass(frozen=True, kw_only=True)
class RoundMember:
    """A candidate that is to run in a round.

    Attributes:
        measured_on: devices on which it ran in this round in an earlier attempt. It runs again where the round goes
            on elsewhere, so that the whole round has run there.
        process: number of this process of it in the round, from 1.
    """

    candidate_id: str
    measured_on: tuple[str, ...] = ()
    process: int = 1


class ConfirmPhase:
    """The confirming rounds of a sweep.

    Args:
        defaults: ids of what each further engine does with nothing set.

    Attributes:
        round_number: of the latest round that was planned, now or in an earlier attempt, from 1; 0 before the first.
        waiting: its members that are not launched yet.
    """

    def __init__(
        self, profile: WorkloadProfile, *, baseline_id: str, most_rounds: int, defaults: Sequence[str] = ()
    ) -> None:
        self.round_number = 0
        self.waiting: deque[RoundMember] = deque()
        self._profile = profile
        self._baseline_id = baseline_id
        self._defaults = tuple(defaults)
        self._most_rounds = most_rounds
        self._size = 0
        """Members with which this attempt planned the latest round."""
        self._may_be_broken_off = False
        """Whether the latest round is an earlier attempt's, and nobody has looked yet who is missing in it."""

    def recall(self, record: TrialRecord) -> None:
        """An earlier attempt at the sweep has left this confirming trial."""
        self.round_number = max(self.round_number, confirm_round(record) or 0)
        self._may_be_broken_off = self.round_number > 0

    def plan(
        self,
        results: Sequence[TrialResult],
        *,
        contenders: Callable[[], Sequence[str]],
        left_s: float,
        trial_s: float,
    ) -> None:
        """Plan the next round, if enough is not known yet and there is time for it: its members are then `waiting`.

        Args:
            results: of all trials that have ended.
            contenders: tells ids of candidates that may win by the search's model, the likeliest first.
            left_s: to the deadline.
            trial_s: what a confirming trial takes.
        """
        number, members = self._rest_of_broken_off_round(results) or self._new_round(results, contenders)
        if members and left_s >= len(members) * trial_s:
            self.round_number, self.waiting, self._size = number, deque(members), len(members)

    def trials_to_come(self, *, candidates: int) -> tuple[int, int]:
        """Least and most confirming trials that are not launched yet. Before the first round that is a guess.

        Args:
            candidates: of the space.
        """
        if self.round_number == 0:
            return (
                (2, self._most_rounds * (MOST_IN_ROUND + len(self._defaults)))
                if self._most_rounds and candidates > 1
                else (0, 0)
            )
        now = len(self.waiting)
        return now, now + max(0, self._most_rounds - self.round_number) * self._size

    def _rest_of_broken_off_round(self, results: Sequence[TrialResult]) -> tuple[int, tuple[RoundMember, ...]] | None:
        """Number of the round that an earlier attempt broke off, and who did not run in it; `None` if all did. Those
        that did run come after them, in case the rest gets another device.

        Its members were chosen by what was known before it, so they are chosen once more by the same records.
        """
        if not self._may_be_broken_off:
            return None
        self._may_be_broken_off = False
        number = self.round_number
        rounds = [confirm_round(one.record) or 0 for one in results]
        before = [one for one, its in zip(results, rounds, strict=True) if its < number]
        ran = [one.record for one, its in zip(results, rounds, strict=True) if its == number]
        members = self._members(number, before)
        left = [key for key in members if key not in {record.candidate_id for record in ran}]
        again = (_again(key, [record for record in ran if record.candidate_id == key]) for key in members)
        return (number, (*map(_new, left), *(one for one in again if one is not None))) if left else None

    def _new_round(
        self, results: Sequence[TrialResult], contenders: Callable[[], Sequence[str]]
    ) -> tuple[int, tuple[RoundMember, ...]]:
        """Number and members of the next round; no members where no round is worth it."""
        number = self.round_number + 1
        members = self._members(number, results)
        if number == 1 and members:
            # The search's model may see a winner that its own few measurements do not show, or that was stopped.
            members = tuple(dict.fromkeys([*members, *contenders()[:MOST_CONTENDERS]]))
        return number, tuple(map(_new, members)) if len(members) > 1 else ()

    def _members(self, round_number: int, results: Sequence[TrialResult]) -> tuple[str, ...]:
        """Ids of the candidates that run in a round, by what `results` say."""
        return next_round(
            gather_evidence(results, self._profile),
            baseline_id=self._baseline_id,
            round_number=round_number,
            most_rounds=self._most_rounds,
            weights=utility_weights(self._profile),
            defaults=self._defaults,
        )


def _new(candidate_id: str) -> RoundMember:
    return RoundMember(candidate_id=candidate_id)


def _again(candidate_id: str, ran: Sequence[TrialRecord]) -> RoundMember | None:
    """A candidate that ran in the round; `None` where it failed, or where nobody knows on which device it ran."""
    devices = [record.device_uuid for record in ran if record.status is TrialStatus.OK]
    known = tuple(one for one in devices if one is not None)
    if not known or len(known) < len(devices):
        return None
    return RoundMember(candidate_id=candidate_id, measured_on=known, process=1 + len(ran))
