"""Puts a `CheckResult` together from the rounds that were measured so far."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kvray.analysis.comparison import Margins, Verdict
from kvray.analysis.looks import MOST_ROUNDS
from kvray.check.config import CheckConfig
from kvray.check.judge import is_hopeless, more_rounds, overall, side_differences
from kvray.check.measured import side_info
from kvray.check.preparing import Subject
from kvray.check.result import CheckMode, CheckResult, SideInfo
from kvray.check.rounds import Rounds
from kvray.check.side import Side
from kvray.probes.environment import kvray_version
from kvray.report.formats import plural
from kvray.store.speed_variables import users_variables


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is known of a check beside its rounds.

    Attributes:
        sides: those that are measured.
        elapsed_s: seconds since the check began.
    """

    config: CheckConfig
    subject: Subject
    sides: Sequence[Side]
    margins: Margins
    run_id: str
    results: str
    started_at: dt.datetime
    elapsed_s: Callable[[], float]

    def result(self, rounds: Rounds, *, is_interrupted: bool = False) -> CheckResult:
        """The result of the rounds so far."""
        subject, seconds = self.subject, self.elapsed_s()
        baseline, sides = subject.baseline, self._sides()
        verdict = overall(rounds.checked)
        more = more_rounds(rounds.checked) if verdict is Verdict.INCONCLUSIVE else None
        return CheckResult(
            kvray_version=kvray_version(),
            started_at=self.started_at,
            ended_at=self.started_at + dt.timedelta(seconds=seconds),
            seconds=seconds,
            mode=subject.mode,
            baseline=baseline.shown,
            model_id=baseline.model_id,
            models={**baseline.models, **{name: one.checked_model for name, one in subject.engines.items()}},
            trust_remote_code=baseline.trust_remote_code,
            allow_pickle=baseline.allow_pickle,
            device=baseline.device,
            device_name=subject.device.device_name,
            hardware=sides[1].hardware,
            profile=baseline.profile,
            reference=baseline.reference,
            sides=sides,
            candidates=rounds.checked,
            verdict=verdict,
            reasons=tuple(self._reasons(rounds)),
            differences=self._differences(sides),
            more_rounds=more,
            more_seconds=None if more is None or not rounds.number else more * rounds.next_s,
            margins=dict(self.margins),
            budget_s=self.config.budget_s,
            is_interrupted=is_interrupted,
            results=self.results,
        )

    def _reasons(self, rounds: Rounds) -> Iterator[str]:
        """Why more rounds would not come to a verdict, and what would."""
        lost = [one for one in rounds.checked if is_hopeless(one)]
        if not lost:
            return
        told = f"{plural(rounds.number, 'round')} did not decide, and the {MOST_ROUNDS} that a check measures would not"
        if rounds.number >= MOST_ROUNDS:
            told = f"{rounds.number} rounds did not decide"
        if self.subject.mode is CheckMode.A_B:
            yield f"{told}. Give a larger --margin, or wait for a quieter machine with --wait-quiet."
            return
        recorded = min(len(one.before.processes) for one in lost)
        yield (
            f"{told} against a record of {plural(recorded, 'process', 'processes')}. Compare here and now with "
            "--against, make a baseline of this check's check.json, or give a larger --margin."
        )

    def _sides(self) -> tuple[SideInfo, SideInfo]:
        *before, now = (side_info(one, run_id=self.run_id, measured_at=self.started_at) for one in self.sides)
        return (before[0] if before else self.subject.baseline.side, now)

    def _differences(self, sides: tuple[SideInfo, SideInfo]) -> tuple[str, ...]:
        if self.subject.mode is CheckMode.RECORD:
            baseline = self.subject.baseline
            before, known = dict(baseline.variables), baseline.known_variables
            now = {name: value for name, value in users_variables().items() if name in known}
        else:
            before, now = (dict(one.spec.variables) for one in self.sides)
            before |= {name: os.environ[name] for name in now if name in os.environ}
        told = side_differences(*sides, before_variables=before, now_variables=now)
        return (*told, *self._other_code())

    def _other_code(self) -> tuple[str, ...]:
        """Two kvrays of one version may differ; of a record nobody knows the code."""
        if len(self.sides) < 2:
            return ()
        one, two = (side.facts for side in self.sides)
        same = one.kvray_source == two.kvray_source or one.kvray_version != two.kvray_version
        return () if same else (f"kvray: other code of the same version {one.kvray_version}",)
