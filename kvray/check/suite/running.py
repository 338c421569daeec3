"""Runs the suite: a record of it, or a check of it against a record or against another side."""

from __future__ import annotations

import contextlib
import datetime as dt
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kvray.analysis.comparison import ComparedMetric, Margins
from kvray.candidate import DeviceType
from kvray.check.against import Against
from kvray.check.judge import is_closed, more_rounds, overall, side_differences
from kvray.check.measured import side_info
from kvray.check.result import CheckedCandidate, CheckMode, CheckResult, SideInfo
from kvray.check.side import Side, SideSpec
from kvray.check.suite.cases import SUITE_PROFILE, SUITE_VERSION, Case, suite_cases
from kvray.check.suite.choosing import Asked, Chosen, choose_cases
from kvray.check.suite.judging import (
    SuiteRules,
    judge_case,
    lost_case,
    same_kernels,
    same_machine,
    same_output_variables,
    unmeasured_case,
)
from kvray.check.suite.measuring import SuiteModels, SuiteRounds
from kvray.check.suite.outputs import OutputRules
from kvray.check.suite.record import RecordedCase, SuiteRecord
from kvray.engines.base import DeviceFacts
from kvray.errors import InvalidValueError, ResultsError
from kvray.probes.environment import kvray_version
from kvray.report.formats import plural
from kvray.tuning.local_device import detect_device

DEFAULT_ROUNDS = 3
DEFAULT_MARGINS: Margins = {ComparedMetric.TTFT: 0.15, ComparedMetric.DECODE: 0.15, ComparedMetric.MEMORY: 0.05}
"""Wide, because each case is measured for a second only, and there are dozens of them."""
RECORD_MARGINS: Margins = {ComparedMetric.TTFT: 0.25, ComparedMetric.DECODE: 0.25, ComparedMetric.MEMORY: 0.05}
"""Against a record, which another sitting made (`check.judge.RECORD_MARGINS`)."""
DEFAULT_BUDGET_S = 300.0
MOST_ROUNDS = 20
_EXACT_CACHE = 1e-3
"""A cache's size is counted, not measured. Where memory has no margin, this much is left for rounding."""


@dataclass(frozen=True, kw_only=True)
class SuiteAsk:
    """What is to be run, and how it is judged.

    Attributes:
        device: `None`: a GPU where there is one.
        margins: of times and memory; empty: outputs alone are judged.
        tolerance: nats by which a log-probability may move, in place of every case's own.
        budget_s: no further round begins after it.
        tell: is told what is measured next.
    """

    cases: Asked = field(default_factory=Asked)
    device: DeviceType | None = None
    margins: Margins = field(default_factory=lambda: DEFAULT_MARGINS)
    tolerance: float | None = None
    budget_s: float = DEFAULT_BUDGET_S
    tell: Callable[[str], None] = lambda _: None


def run_suite(ask: SuiteAsk, *, rounds: int = DEFAULT_ROUNDS) -> SuiteRecord:
    """Measure every case that can run here in `rounds` fresh processes.

    Ctrl-C ends it early with what was measured so far: `SuiteRecord.is_interrupted`.

    Raises:
        InvalidValueError, NoCandidatesError, EngineError: nothing can be measured.
    """
    device = detect_device(ask.device)
    chosen = choose_cases(ask.cases, device)
    with _sitting(chosen, device, ask) as sitting:
        side = sitting.start("now")
        measured = sitting.rounds([side])
        with _interruptible() as interruption:
            for _ in range(rounds):
                measured.measure(chosen.cases)
        return SuiteRecord(
            suite_version=SUITE_VERSION,
            kvray_version=kvray_version(),
            measured_at=sitting.started_at,
            seconds=sitting.spent_s,
            device=device.device,
            side=_without_names(sitting.info(side)),
            rounds=rounds,
            cases=tuple(measured.recorded(side, case) for case in chosen.cases if measured.has(case)),
            skipped=chosen.skipped,
            is_interrupted=interruption.came,
        )


def check_suite(
    ask: SuiteAsk, record: SuiteRecord | None, *, against: Against | None = None, shown: str = ""
) -> CheckResult:
    """Compare the suite now with `record`; or, with `against`, what is there (B) with this environment (A), both
    measured now. Ctrl-C ends it early with what was measured so far: `CheckResult.is_interrupted`.

    Args:
        record: with `against` it only says which cases there are.
        shown: what `record` is called.

    Raises:
        InvalidValueError, NoCandidatesError, EngineError, ResultsError: nothing can be compared.
    """
    if record is None and against is None:
        raise InvalidValueError("There is nothing to compare with.", hint="Name a record, or another side: --against.")
    if record is not None and record.is_interrupted:
        raise ResultsError(
            f"{shown!r} is no baseline: it was interrupted when {plural(len(record.cases), 'case')} had been measured.",
            hint="Let kvray suite run come to its end.",
        )
    device = detect_device(ask.device or (None if record is None else record.device))
    if record is not None and record.device is not device.device:
        raise ResultsError(
            f"{shown!r} was measured on {record.device}, and this is {device.device}: outputs are not comparable.",
            hint="Run the suite on the same kind of device.",
        )
    chosen = choose_cases(_within(ask.cases, record), device)
    with _sitting(chosen, device, ask) as sitting:
        if against is None:
            return _Check(ask, sitting, record, None, sitting.start("now")).result(shown)
        here, there = sitting.start("A"), sitting.start("B", against)
        return _Check(ask, sitting, record, here, there).result(shown)


class _Sitting:
    """What all measurements of one call share."""

    def __init__(
        self, scratch: Path, stack: contextlib.ExitStack, chosen: Chosen, device: DeviceFacts, ask: SuiteAsk
    ) -> None:
        self.chosen = chosen
        self.device = device
        self.started_at = dt.datetime.now(dt.UTC)
        self.run_id = f"{self.started_at:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        self._started_s = time.monotonic()
        self._scratch = scratch
        self._stack = stack
        self._ask = ask

    @property
    def spent_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._started_s

    def start(self, name: str, against: Against | None = None) -> Side:
        """A side in this Python, or as `against` says."""
        spec = SideSpec(name=name, engines=self.chosen.engines, device=self.device.device, offline=True)
        if against is not None:
            spec = replace(spec, python=against.python, variables=against.variables)
        return self._stack.enter_context(Side(spec, self._scratch / name))

    def rounds(self, sides: Sequence[Side], *, is_timed: bool = True) -> SuiteRounds:
        """Rounds of `sides`, of which none is measured yet."""
        return SuiteRounds(
            sides,
            SuiteModels(self._scratch / "models"),
            run_id=self.run_id,
            device=self.device.device,
            is_timed=is_timed,
            tell=self._ask.tell,
        )

    def info(self, side: Side) -> SideInfo:
        """What results tell of `side`."""
        return side_info(side, run_id=self.run_id, measured_at=self.started_at)


@contextlib.contextmanager
def _sitting(chosen: Chosen, device: DeviceFacts, ask: SuiteAsk) -> Iterator[_Sitting]:
    with tempfile.TemporaryDirectory(prefix="kvray-suite-") as scratch, contextlib.ExitStack() as stack:
        yield _Sitting(Path(scratch), stack, chosen, device, ask)


@dataclass
class _Interruption:
    """Whether the user ended the measuring early."""

    came: bool = False


@contextlib.contextmanager
def _interruptible() -> Iterator[_Interruption]:
    """Ctrl-C ends the block, and what was measured is kept."""
    interruption = _Interruption()
    try:
        yield interruption
    except KeyboardInterrupt:
        interruption.came = True


class _Check:
    """A comparison of `side` with `other`, or with `record` where there is no other side."""

    def __init__(
        self, ask: SuiteAsk, sitting: _Sitting, record: SuiteRecord | None, other: Side | None, side: Side
    ) -> None:
        self._ask = ask
        self._sitting = sitting
        self._record = record
        self._other = other
        self._side = side
        self._before = sitting.info(other) if other is not None else _recorded_side(record)
        self._now = sitting.info(side)
        self._same_machine = other is not None or same_machine(self._before, self._now)
        self._margins = ask.margins if self._same_machine else {}
        same_variables = not side.spec.variables and same_output_variables(self._before, self._now)
        self._rules = SuiteRules(
            names=(self._before.name, self._now.name),
            outputs=OutputRules(
                same_surroundings=self._same_machine and same_variables,
                tolerance=ask.tolerance,
                memory_margin=ask.margins.get(ComparedMetric.MEMORY, _EXACT_CACHE),
            ),
            same_kernels=same_kernels(self._before, self._now, sitting.device.device),
            margins=self._margins,
            together=len(sitting.chosen.cases),
        )
        sides = [side] if other is None else [other, side]
        self._rounds = sitting.rounds(sides, is_timed=bool(self._margins))

    def result(self, shown: str) -> CheckResult:
        """Measure until all is decided or the budget is spent, and judge."""
        begun_s = self._sitting.spent_s
        with _interruptible() as interruption:
            self._measure()
        round_s = (self._sitting.spent_s - begun_s) / max(1, self._rounds.rounds)
        candidates = (*(self._judged(case) for case in self._sitting.chosen.cases), *self._lost())
        more = more_rounds(candidates)
        return CheckResult(
            kvray_version=kvray_version(),
            started_at=self._sitting.started_at,
            ended_at=self._sitting.started_at + dt.timedelta(seconds=self._sitting.spent_s),
            seconds=self._sitting.spent_s,
            mode=CheckMode.SUITE,
            baseline=shown,
            model_id=f"kvray suite {SUITE_VERSION}",
            device=self._sitting.device.device,
            device_name=self._now.device_name or self._sitting.device.device_name,
            hardware=self._now.hardware,
            profile=SUITE_PROFILE,
            sides=(self._before, self._now),
            candidates=candidates,
            verdict=overall(candidates),
            differences=tuple(self._differences()),
            more_rounds=more,
            more_seconds=None if more is None else more * round_s,
            margins=dict(self._margins),
            budget_s=self._ask.budget_s,
            is_interrupted=interruption.came,
        )

    def _measure(self) -> None:
        """All cases once, then those that are still open, until the budget is spent."""
        cases: Sequence[Case] = self._sitting.chosen.cases
        while cases and self._rounds.rounds < MOST_ROUNDS:
            self._rounds.measure(cases)
            if self._sitting.spent_s > self._ask.budget_s:
                return
            cases = [case for case in cases if not is_closed(self._judged(case))]

    def _judged(self, case: Case) -> CheckedCandidate:
        if not self._rounds.has(case):
            return unmeasured_case(case)
        now = self._rounds.recorded(self._side, case)
        return judge_case(case, self._recorded_before(case), now, self._rules)

    def _recorded_before(self, case: Case) -> RecordedCase | None:
        if self._other is not None:
            return self._rounds.recorded(self._other, case)
        return None if self._record is None else self._record.case(case.name)

    def _lost(self) -> Iterator[CheckedCandidate]:
        """What the record has and this machine cannot run."""
        if self._record is None or self._other is not None:
            return
        cases = {case.name: case for case in suite_cases()}
        for one in self._sitting.chosen.skipped:
            before = self._record.case(one.name)
            if before is not None and before.works:
                yield lost_case(cases[one.name], before, one.reason)

    def _differences(self) -> Iterator[str]:
        yield from side_differences(self._before, self._now)
        if not self._same_machine:
            yield "another machine: outputs are held to tolerances, times and memory of processes are not judged"


def _without_names(side: SideInfo) -> SideInfo:
    """`side` for a file that is made to be committed: without paths and a host's name."""
    variables = side.speed_variables or {}
    shown = {name: None if value is None or "/" in value else value for name, value in variables.items()}
    return side.model_copy(update={"python": None, "host": None, "speed_variables": shown})


def _within(asked: Asked, record: SuiteRecord | None) -> Asked:
    """Those of the asked cases that `record` knows: it may hold a part of the suite only."""
    if record is None:
        return asked
    return replace(asked, known=frozenset(record.names))


def _recorded_side(record: SuiteRecord | None) -> SideInfo:
    if record is None:
        raise InvalidValueError("There is nothing to compare with.")
    return record.side.model_copy(update={"name": "baseline"})
