"""A check as JUnit XML, which GitLab, Jenkins and others show beside unit tests.

One test case for each candidate and metric, and one (`what ran`) for what fails whatever the numbers. Their names stay
the same from run to run, so that a CI can follow them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

from kvray.analysis.comparison import Verdict
from kvray.check.outputs import wording
from kvray.check.result import CheckedCandidate, CheckResult, MetricVerdict, OnInconclusive

WHAT_RAN = "what ran"
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 forbids, even escaped."""


def render_junit(result: CheckResult, *, on_inconclusive: OnInconclusive | None = None) -> str:
    """The check as JUnit XML.

    Args:
        on_inconclusive: what INCONCLUSIVE counts as. With `fail` it is a failure, otherwise skipped, which most CIs
            show in a colour of its own.
    """
    cases = [*_own_cases(result), *(case for one in result.candidates for case in _cases(result, one))]
    failing = {Verdict.FAIL} | ({Verdict.INCONCLUSIVE} if on_inconclusive is OnInconclusive.FAIL else set())
    root = ElementTree.Element("testsuites", name="kvray check")
    suite = ElementTree.SubElement(root, "testsuite", name=_plain(_suite_name(result)))
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in _properties(result):
        ElementTree.SubElement(properties, "property", name=_plain(name), value=_plain(value))
    for case in cases:
        _add(suite, case, failing)
    counts = {"tests": len(cases), "failures": sum(case.verdict in failing for case in cases), "errors": 0}
    for element in (root, suite):
        element.attrib |= {**{name: str(count) for name, count in counts.items()}, "time": f"{result.seconds:.3f}"}
    suite.set("skipped", str(sum(case.is_skipped(failing) for case in cases)))
    suite.set("timestamp", f"{result.started_at:%Y-%m-%dT%H:%M:%S}")
    if result.now.host:
        suite.set("hostname", _plain(result.now.host))
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


@dataclass(frozen=True, kw_only=True)
class _Case:
    """A test case; `verdict` is `None` where the metric is shown and not judged."""

    group: str
    name: str
    verdict: Verdict | None
    text: str

    def is_skipped(self, failing: set[Verdict]) -> bool:
        return self.verdict is not Verdict.PASS and self.verdict not in failing


def _own_cases(result: CheckResult) -> Iterator[_Case]:
    """The whole check, where it has a reason that no candidate has, or nothing to compare."""
    reasons = wording.own_reasons(result)
    if reasons or not result.candidates:
        text = "\n".join(reasons) or wording.headline(result)
        yield _Case(group=_group(result), name="check", verdict=result.verdict, text=text)


def _cases(result: CheckResult, candidate: CheckedCandidate) -> Iterator[_Case]:
    group = f"{_group(result)}.{wording.name_of(candidate)}"
    reasons = [wording.sentence(text) for text in candidate.reasons]
    ran = candidate.verdict if reasons else Verdict.PASS
    yield _Case(group=group, name=WHAT_RAN, verdict=ran, text="\n".join(reasons))
    for metric in candidate.metrics:
        yield _Case(group=group, name=metric.metric.value, verdict=metric.verdict, text=_text(candidate, metric))


def _text(candidate: CheckedCandidate, metric: MetricVerdict) -> str:
    cells = [wording.cell_sentence(one) for one in candidate.cells if one.metric is metric.metric]
    if metric.verdict is None:
        return "\n".join(("Shown, not judged: it has no margin.", wording.metric_sentence(metric), *cells))
    return "\n".join((wording.metric_sentence(metric), *cells))


def _add(suite: ElementTree.Element, case: _Case, failing: set[Verdict]) -> None:
    element = ElementTree.SubElement(suite, "testcase", classname=_plain(case.group), name=_plain(case.name))
    text = _plain(case.text)
    first = text.partition("\n")[0]
    if case.verdict in failing:
        # GitLab shows the element's text, Jenkins its message too.
        failure = ElementTree.SubElement(element, "failure", message=first, type=str(case.verdict))
        failure.text = text
    elif case.is_skipped(failing):
        ElementTree.SubElement(element, "skipped", message=first)
    if text and case.verdict not in failing:
        ElementTree.SubElement(element, "system-out").text = text


def _group(result: CheckResult) -> str:
    return f"kvray.{wording.outside(result.shown_model)}.{wording.outside(result.profile.name)}"


def _suite_name(result: CheckResult) -> str:
    return f"kvray check of {wording.outside(result.shown_model)}, {wording.outside(result.profile.name)}"


def _properties(result: CheckResult) -> Iterator[tuple[str, str]]:
    yield "verdict", result.verdict.value
    yield "mode", result.mode.value
    yield "device", wording.outside(result.device_name)
    yield "kvray_version", wording.outside(result.kvray_version)
    for number, line in enumerate(wording.side_lines(result), start=1):
        yield f"side {number}", line
    for number, line in enumerate(wording.differences(result), start=1):
        yield f"difference {number}", line


def _plain(text: str) -> str:
    return _NOT_XML.sub("", text)
