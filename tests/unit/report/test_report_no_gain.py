"""A sweep in which nothing is measurably better: what ranking, plan, snippet and reports make of it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from report_sweeps import BASELINE, WINNER, candidate, manifest, measured

from kvray.analysis import Analysis, analyse
from kvray.analysis.choice import Reason
from kvray.candidate import Candidate
from kvray.plan.builder import PlanBuilder
from kvray.record import Role, TrialResult
from kvray.report.html import render_html
from kvray.report.info import ReportInfo, report_info
from kvray.report.markdown import render_markdown
from kvray.report.verdict import Tone
from kvray.store.manifest import SweepManifest

RIVAL = candidate("dynamic", "sdpa", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What `TuningSearch.run()` returns, as far as plan and report are concerned."""

    results: tuple[TrialResult, ...]
    manifest: SweepManifest
    analysis: Analysis
    records_sha256: str = "ab" * 32


def trials(what: Candidate, *, speed: float, prefill: float, peak_mib: float) -> list[TrialResult]:
    """One of the search or the baseline's, and two confirming ones."""
    first = Role.BASELINE if what == BASELINE else Role.SEARCH
    return [
        measured(
            what,
            speed=speed,
            prefill=prefill,
            peak_mib=peak_mib,
            role=first if number == 0 else Role.CONFIRM,
            process=number,
        )
        for number in range(3)
    ]


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    """A hair faster with 6 % more memory: what was once called the best."""
    results = (
        *trials(BASELINE, speed=1.0, prefill=1.0, peak_mib=900.0),
        *trials(WINNER, speed=1.005, prefill=1.03, peak_mib=954.0),
        *trials(RIVAL, speed=1.0, prefill=0.99, peak_mib=901.0),
    )
    about = manifest()
    return Sweep(results=results, manifest=about, analysis=analyse(results, about.profile))


@pytest.fixture(scope="module")
def info(sweep: Sweep) -> ReportInfo:
    return report_info(sweep.manifest, sweep.results, sweep.analysis)


def test_the_baseline_is_recommended_though_another_measured_better(sweep: Sweep) -> None:
    scores = {entry.record.candidate_id: entry.score for entry in sweep.analysis.ranking.entries}
    assert max(scores, key=scores.__getitem__) == WINNER.candidate_id
    assert sweep.analysis.ranking.winner.record.candidate == BASELINE
    assert sweep.analysis.confidence is not None
    assert sweep.analysis.confidence.choice.reason is Reason.NO_GAIN
    assert sweep.analysis.confidence.choice.over == WINNER.candidate_id


def test_the_headline_says_to_keep_what_one_has(info: ReportInfo) -> None:
    assert info.headline.sentence == (
        "No measurable gain for chat-agent: keep what you have, the baseline dynamic/sdpa/float32."
    )
    assert info.headline.tone is Tone.NEUTRAL
    assert info.headline.confidence.startswith("In ")
    (note,) = info.headline.notes
    assert note.startswith("dynamic/sdpa_flash/bfloat16 measured best: first token ")
    assert note.endswith(" and 6 % more memory. Taken together that may be chance.")


def test_the_plan_recommends_the_baseline_for_every_request(sweep: Sweep) -> None:
    plan = PlanBuilder(sweep).build()
    assert plan.winner.candidate == BASELINE
    assert plan.winner.gain is not None
    assert (plan.winner.gain.ttft, plan.winner.gain.throughput, plan.winner.gain.memory) == (0.0, 0.0, 0.0)
    assert {plan.choose(context) for context in (1, 512, 1024, 2048, 9999)} == {BASELINE}


def test_the_snippet_is_the_baselines_and_claims_nothing(sweep: Sweep) -> None:
    header = PlanBuilder(sweep).generate_code_snippet().split("\n\n")[0]
    assert "# Gain: none, this is the baseline; nothing measured here is clearly better" in header
    assert "Confidence" not in header


def test_both_reports_carry_the_verdict(info: ReportInfo) -> None:
    assert f"**{info.headline.sentence}**" in render_markdown(info)
    assert '<section class="card headline is-neutral"' in render_html(info)
