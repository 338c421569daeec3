"""Judges the suite: each case's outputs, what ran, and times and memory where they are comparable. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

from kvray.analysis.comparison import Margins, Verdict
from kvray.candidate import DeviceType
from kvray.check.judge import judged
from kvray.check.result import CheckedCandidate, MeasuredSide, SideInfo
from kvray.check.suite.cases import Case
from kvray.check.suite.outputs import OutputRules, compare_outputs
from kvray.check.suite.record import RecordedCase
from kvray.store.speed_variables import OUTPUT_VARIABLES, names_in


@dataclass(frozen=True, kw_only=True)
class SuiteRules:
    """How a case is judged.

    Attributes:
        names: of the sides, before and now.
        same_kernels: whether both sides can be expected to run the same kernels.
        margins: of times and memory; empty where they are not comparable.
        together: how many cases are judged, each of which may look otherwise by chance.
    """

    names: tuple[str, str]
    outputs: OutputRules
    same_kernels: bool
    margins: Margins
    together: int


def same_machine(before: SideInfo, now: SideInfo) -> bool:
    """Whether times measured by both may be compared: device, driver, CPUs and memory are the same."""
    return all(getattr(before, name) == getattr(now, name) for name in _MACHINE)


_MACHINE = ("device_name", "driver_version", "cpus", "memory_gib")


def same_output_variables(before: SideInfo, now: SideInfo) -> bool:
    """Whether both are known to have had the same values of all variables that may change the last bits of an output.

    What a side did not write down, or wrote down without its value, may have been another.
    """
    one, two = _output_variables(before), _output_variables(now)
    return one is not None and one == two and None not in one.values()


def _output_variables(side: SideInfo) -> dict[str, str | None] | None:
    """`None`: it is not known of all of them whether they were set."""
    if side.speed_variables is None or not names_in(side.speed_variables_list) >= OUTPUT_VARIABLES:
        return None
    return {name: value for name, value in side.speed_variables.items() if name in OUTPUT_VARIABLES}


def same_kernels(before: SideInfo, now: SideInfo, device: DeviceType) -> bool:
    """Whether another kernel is a finding. GPUs of another name have kernels of other names."""
    return device is DeviceType.CPU or before.device_name == now.device_name


def judge_case(case: Case, before: RecordedCase | None, now: RecordedCase, rules: SuiteRules) -> CheckedCandidate:
    """The verdict on one case. One that did not run before cannot fail."""
    if before is None:
        return _told(case, now, Verdict.PASS, differences=("it was not measured before",))
    found = compare_outputs(case, before, now, rules.outputs)
    if not (before.works and now.works):
        verdict = Verdict.FAIL if found.failures else Verdict.PASS
        return _told(case, now, verdict, before=before, reasons=found.failures, differences=found.remarks)
    comparable = _comparable(before, rules)
    checked = judged(case.candidate, comparable, now.measured, rules.names, rules.margins, together=rules.together)
    fails = bool(found.failures) or checked.verdict is Verdict.FAIL
    return checked.model_copy(
        update={
            "label": case.name,
            "verdict": Verdict.FAIL if fails else checked.verdict if rules.margins else Verdict.PASS,
            "reasons": (*found.failures, *checked.reasons),
            "differences": (*checked.differences, *found.remarks),
            "more_rounds": None if fails or not rules.margins else checked.more_rounds,
            "rounds": checked.rounds or len(now.measured.processes),
            "before": before.measured,
        }
    )


def lost_case(case: Case, before: RecordedCase, reason: str) -> CheckedCandidate:
    """A case that ran before and cannot even be tried now."""
    return CheckedCandidate(
        label=case.name,
        candidate=case.candidate,
        verdict=Verdict.FAIL,
        reasons=(f"it no longer runs: {reason}",),
        before=before.measured,
    )


def unmeasured_case(case: Case) -> CheckedCandidate:
    """A case whose turn had not come when the user ended the check."""
    return CheckedCandidate(
        label=case.name,
        candidate=case.candidate,
        verdict=Verdict.INCONCLUSIVE,
        reasons=("it was not measured, because the check was interrupted before",),
    )


def _comparable(before: RecordedCase, rules: SuiteRules) -> MeasuredSide:
    """What `before` measured, without kernels and figures that are no finding."""
    side = before.measured
    if not rules.margins:
        side = side.model_copy(update={"processes": ()})
    if rules.same_kernels or side.ran is None:
        return side
    unnamed = side.ran.model_copy(update={"kernel_prefill": None, "kernel_decode": None})
    return side.model_copy(update={"ran": unnamed})


def _told(
    case: Case,
    now: RecordedCase,
    verdict: Verdict,
    *,
    before: RecordedCase | None = None,
    reasons: tuple[str, ...] = (),
    differences: tuple[str, ...] = (),
) -> CheckedCandidate:
    """A case without a comparison of figures."""
    return CheckedCandidate(
        label=case.name,
        candidate=case.candidate,
        verdict=verdict,
        reasons=reasons,
        differences=differences,
        rounds=len(now.measured.processes),
        failed_trials=len(now.measured.failures),
        before=MeasuredSide() if before is None else before.measured,
        now=now.measured,
    )
