"""The search of a sweep: which candidate is launched next, and when the search is over. Runs nothing.

The baseline comes first, then what the caller asks for first, then what the `Sampler` proposes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kvray.analysis.aggregate import aggregate
from kvray.analysis.limits import missed_limits
from kvray.analysis.sampler import Sampler
from kvray.analysis.shared_error import SharedErrorWatch, most_unlike
from kvray.candidate import Candidate
from kvray.judgement import Limits
from kvray.measuring.recording import rung_cells
from kvray.record import TrialResult
from kvray.sweep.bounds import Bounds


class SearchPhase:
    """Decides what the search launches, and passes on to the sampler what comes of it.

    Args:
        candidates: of the space, the baseline first.
        limits: which the sampler is told about.
        first: ids of candidates that are launched right after the baseline; ids that are not in the space are ignored.

    Attributes:
        is_over: whether the search launches nothing any more.
    """

    def __init__(
        self, candidates: Sequence[Candidate], *, sampler: Sampler, bounds: Bounds, limits: Limits, first: Iterable[str]
    ) -> None:
        self.is_over = False
        self._baseline = candidates[0]
        self._by_id = {candidate.candidate_id: candidate for candidate in candidates}
        self._witness = most_unlike(candidates[0], candidates)
        """Tells whether an error of the baseline is everybody's: it has the least in common with the baseline."""
        self._errors = SharedErrorWatch(candidates[0].candidate_id)
        self._sampler = sampler
        self._bounds = bounds
        self._limits = limits
        self._first = tuple(key for key in first if key in self._by_id)
        self._launched: set[str] = set()
        self._ended: set[str] = set()
        self._end_reason = "too unlikely to win"

    def next_candidate(self, *, is_running: bool, left_s: float, launch_s: float) -> Candidate | None:
        """The candidate to launch now. Where there is none, `is_over` says whether one may come later.

        Args:
            is_running: whether a trial runs whose end may change what is launched.
            left_s: to the deadline.
            launch_s: what a launch takes.
        """
        if self._baseline.candidate_id not in self._launched:
            # Whatever the bounds and the records of an earlier attempt: without it there is no result.
            return self._launch(self._baseline)
        if (reason := self._final_reason()) is not None:
            self._end_reason, self.is_over = reason, True
            return None
        candidate = None
        if left_s - self._bounds.kept_for_confirming_s > launch_s / 2:
            candidate = self._choice(is_running=is_running)
        else:
            self._end_reason = f"the budget of {self._bounds.budget_s:g} s left no time for another launch"
        if candidate is None:
            self.is_over = not is_running
            return None
        return self._launch(candidate)

    def recall(self, result: TrialResult) -> None:
        """An earlier attempt at the sweep has launched and measured this; its end is told with `ended`."""
        record = result.record
        self._sampler.launched(record.candidate_id)
        self._launched.add(record.candidate_id)
        for rung in range((-1 if record.rung is None else record.rung) + 1):
            self.measured(TrialResult(record=record.with_(rung=rung), runs=result.runs))

    def measured(self, result: TrialResult) -> None:
        """A trial of the search has completed `result.record.rung`."""
        record = result.record
        cells = rung_cells(result.runs, record.rung)
        if cells and record.rung is not None:
            misses = missed_limits(record, cells, self._limits)
            self._sampler.measured(
                record.candidate_id,
                record.rung,
                aggregate(cells),
                may_keep_limits=all(miss.is_doubtful() for miss in misses),
                is_disturbed=any(cell.is_disturbed for cell in cells),
            )

    def ended(self, result: TrialResult) -> None:
        """A trial of the search has ended in whatever way."""
        record = result.record
        self._ended.add(record.candidate_id)
        self._errors.ended(record)
        self.measured(result)
        self._sampler.ended(record.candidate_id, failed=record.status.is_failure, seconds=record.wall_s)

    def lost(self, candidate_id: str) -> None:
        """A trial of the search was given up without a result."""
        self._sampler.ended(candidate_id, failed=True, seconds=None)

    def win_chance(self, candidate_id: str) -> float:
        """Probability that a launched candidate is clearly the best of those launched."""
        return self._sampler.win_chance(candidate_id)

    def contenders(self) -> Sequence[str]:
        """Ids of the candidates that may win by the sampler's model, the likeliest first."""
        return self._sampler.contenders()

    def never_launched(self) -> tuple[tuple[Candidate, str], ...]:
        """The candidates that no process was started for, each with why, and what is expected of it."""
        expected = {one.candidate.candidate_id: one.text for one in self._sampler.predictions()}
        left = [(key, one) for key, one in self._by_id.items() if key not in self._launched]
        return tuple((one, "; ".join(filter(None, (self._end_reason, expected.get(key))))) for key, one in left)

    def launches_to_come(self, expected: tuple[float, float]) -> tuple[int, int]:
        """Least and most launches that have not ended, running ones included.

        Args:
            expected: least and most launches of the whole search.
        """
        if self.is_over:
            return 0, 0
        least, most = (max(1, round(bound) - len(self._ended)) for bound in expected)
        return least, most

    def _launch(self, candidate: Candidate) -> Candidate:
        self._sampler.launched(candidate.candidate_id)
        self._launched.add(candidate.candidate_id)
        return candidate

    def _final_reason(self) -> str | None:
        """Why nothing is launched any more, whatever the running trials bring; `None`: nothing speaks against it."""
        witness = self._witness
        if self._errors.error is not None and witness is not None and witness.candidate_id in self._ended:
            return "the same error ended every trial before it"
        if self._bounds.max_trials is not None and len(self._launched) >= self._bounds.max_trials:
            return f"--max-trials {self._bounds.max_trials} was reached"
        return None

    def _choice(self, *, is_running: bool) -> Candidate | None:
        """Who is worth a launch now. After an error that may be everybody's, the witness decides before others run."""
        if self._errors.error is not None:
            if self._witness is not None and self._witness.candidate_id not in self._launched:
                return self._witness
            if is_running:
                return None
        asked = next((key for key in self._first if key not in self._launched), None)
        return self._sampler.proposal() if asked is None else self._by_id[asked]
