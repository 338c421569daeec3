"""The rounds of a check: each measures every open candidate once on each side, one side right after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvray.analysis.comparison import Margins
from kvray.candidate import Candidate, DeviceType
from kvray.check.judge import is_closed, judged
from kvray.check.measured import measured_side
from kvray.check.result import CheckedCandidate, MeasuredSide
from kvray.check.side_request import SideRequest
from kvray.engines.base import ModelRequest
from kvray.record import TrialResult
from kvray.trial.spec import ReferenceSpec
from kvray.workload import WorkloadProfile


class Measuring(Protocol):
    """What a round needs of a `Side`."""

    def measure(self, request: SideRequest) -> TrialResult:
        """One trial in a fresh process."""


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    """What is measured in every round.

    Attributes:
        names: of the sides, before and now.
        candidates: in the order of their turns.
        requests: the model, by engine.
        budget_s: for all rounds together. The first trials are measured whatever it is.
        recorded: by candidate id, the side that is not measured again; empty where both sides are.
        reference: what quality is compared with, in the first round.
    """

    run_id: str
    names: tuple[str, str]
    candidates: tuple[Candidate, ...]
    requests: Mapping[str, ModelRequest]
    profile: WorkloadProfile
    device: DeviceType
    margins: Margins
    timeout_s: float
    budget_s: float
    recorded: Mapping[str, MeasuredSide] = field(default_factory=dict)
    reference: ReferenceSpec | None = None


class Rounds:
    """Measures round by round.

    Args:
        sides: those that are measured: before and now, or now alone.
        keep: is given each trial before the next one starts.
    """

    def __init__(
        self,
        plan: RoundPlan,
        sides: Sequence[Measuring],
        *,
        keep: Callable[[TrialResult], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan = plan
        self._sides = tuple(zip(plan.names[-len(sides) :], sides, strict=True))
        self._keep = keep
        self._clock = clock
        self._trials: dict[tuple[str, str], list[TrialResult]] = {}
        self._spent_s: list[float] = []
        self.checked = tuple(map(self._judged, plan.candidates))

    @property
    def number(self) -> int:
        """Rounds that were measured to their end."""
        return len(self._spent_s)

    @property
    def spent_s(self) -> float:
        """Seconds of all rounds together."""
        return sum(self._spent_s)

    @property
    def is_over(self) -> bool:
        """Whether every candidate has a verdict, or cannot get one."""
        return self.number > 0 and all(map(is_closed, self.checked))

    @property
    def has_time(self) -> bool:
        """Whether a further round would end within the budget."""
        return self.number == 0 or self.spent_s + self.next_s <= self._plan.budget_s

    @property
    def next_s(self) -> float:
        """How long a further round will take: as long as the last one, at which quality is no longer measured."""
        return self._spent_s[-1] if self._spent_s else 0.0

    def measure(self) -> None:
        """One round. An interruption keeps what was measured of it."""
        started, number = self._clock(), self.number + 1
        order = self._sides if number % 2 else self._sides[::-1]
        try:
            for place, (candidate, checked) in enumerate(zip(self._plan.candidates, self.checked, strict=True)):
                if place and self.spent_s + self._clock() - started > self._plan.budget_s:
                    break
                if number == 1 or not is_closed(checked):
                    for name, side in order:
                        self._measure(name, side, candidate, number)
        finally:
            self.checked = tuple(map(self._judged, self._plan.candidates))
        self._spent_s.append(self._clock() - started)

    def _measure(self, name: str, side: Measuring, candidate: Candidate, number: int) -> None:
        plan = self._plan
        result = side.measure(
            SideRequest(
                run_id=plan.run_id,
                trial_id=f"check{number}-{name}-{candidate.candidate_id}",
                round_number=number,
                candidate=candidate,
                model=plan.requests[candidate.engine],
                profile=plan.profile,
                device=plan.device,
                timeout_s=plan.timeout_s,
                reference=plan.reference,
                with_quality=number == 1,
            )
        )
        self._trials.setdefault((name, candidate.candidate_id), []).append(result)
        self._keep(result)

    def _judged(self, candidate: Candidate) -> CheckedCandidate:
        plan, key = self._plan, candidate.candidate_id
        before, now = (
            measured_side(self._trials.get((name, key), ()), plan.profile)
            if name in dict(self._sides)
            else plan.recorded[key]
            for name in plan.names
        )
        return judged(candidate, before, now, plan.names, plan.margins, together=len(plan.candidates))
