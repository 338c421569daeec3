"""How long the trials of a sweep take, as far as those that have ended tell."""

from __future__ import annotations

from bisect import insort
from collections import defaultdict

from kvray.record import Role, TrialRecord


class TrialTimes:
    """Typical seconds of a trial, by what it is launched for. 0 until a trial has ended."""

    def __init__(self) -> None:
        self._ended: set[Role] = set()
        self._by_role: defaultdict[Role, list[float]] = defaultdict(list)
        self._all: list[float] = []
        """Sorted, as those by role are: medians are asked for whenever a trial begins or ends."""

    def ended(self, record: TrialRecord) -> None:
        """A trial has ended, now or in an earlier attempt at the sweep."""
        self._ended.add(record.role)
        if record.wall_s is not None:
            insort(self._by_role[record.role], record.wall_s)
            insort(self._all, record.wall_s)

    @property
    def are_known(self) -> bool:
        """Whether any trial has told how long it took."""
        return bool(self._all) and self._all[-1] > 0

    @property
    def launch_s(self) -> float:
        """What a launch of the search takes. While only the baseline is known, whose trial has all rungs: a third of
        that, because a launch that is out of time ends with its first rung."""
        return self._median(Role.SEARCH) if Role.SEARCH in self._ended else self._median(Role.BASELINE) / 3

    @property
    def confirm_s(self) -> float:
        """What a confirming trial takes. Until one has ended, about as long as a launch of the search."""
        return self.confirm_or_any_s if Role.CONFIRM in self._ended else self.launch_s

    @property
    def confirm_or_any_s(self) -> float:
        """The median of confirming trials or, until one has ended, of all trials: a cautious guess."""
        return self._median(Role.CONFIRM)

    def _median(self, role: Role) -> float:
        """Median of the trials of `role`; of all trials while none of this role has told its time."""
        return _middle(self._by_role[role] or self._all)


def _middle(ordered: list[float]) -> float:
    """The median; 0 of nothing."""
    place = len(ordered) // 2
    if not ordered:
        return 0.0
    return ordered[place] if len(ordered) % 2 else (ordered[place - 1] + ordered[place]) / 2
