"""A report of a sweep that was interrupted, went on later, or went on elsewhere says so before anything else."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import pytest
from report_sweeps import BASELINE, STARTED, WINNER, candidate, ended, manifest, measured

from kvray.analysis import analyse
from kvray.judgement import Judging
from kvray.record import Role, TrialResult, TrialStatus
from kvray.report.attempts import repeating_arguments
from kvray.report.info import ReportInfo, report_info
from kvray.report.markdown import render_markdown
from kvray.store.fingerprint import SweepFingerprint
from kvray.store.manifest import SweepManifest
from kvray.store.resuming import first_attempt, further_attempt

LATER = STARTED + dt.timedelta(days=2)
HOUR = dt.timedelta(hours=1)
RESULTS = (measured(BASELINE, role=Role.BASELINE, started_at=STARTED), measured(WINNER, speed=1.5, started_at=STARTED))
A, B = SweepFingerprint(torch_version="2.12.0"), SweepFingerprint(torch_version="2.13.0")


def begun(candidates: int = 2, **values: Any) -> SweepManifest:
    return first_attempt(manifest(**values), A, candidates=candidates)


def gone_on(of: SweepFingerprint = A, *, candidates: int = 2) -> SweepManifest:
    new = manifest(created_at=LATER, arguments=("m", "--resume", "20261124-2130-ab12"))
    gone = further_attempt(begun().ended(STARTED + HOUR), new, of, candidates=candidates, results=(), force=True)
    return gone.ended(LATER + HOUR)


def report(about: SweepManifest, results: Sequence[TrialResult], set_aside: Sequence[TrialResult] = ()) -> ReportInfo:
    return report_info(about, results, analyse(results, about.profile), set_aside)


def test_a_sweep_that_came_to_its_end_in_one_session_says_nothing_of_attempts() -> None:
    complete, of_version_1 = report(begun().ended(LATER), RESULTS), report(manifest(), RESULTS)
    assert complete.headline == of_version_1.headline
    assert not complete.headline.sentence.startswith("Incomplete")
    assert "Attempts" not in [fact.name for fact in complete.environment]


def test_an_interrupted_sweep_begins_with_how_much_is_not_measured_yet() -> None:
    skipped = ended(candidate("static"), TrialStatus.SKIPPED, "of an earlier attempt")
    info = report(begun(candidates=5), [*RESULTS, skipped])
    assert info.headline.sentence.startswith("Incomplete (3 of 5 candidates not measured yet): dynamic/sdpa_flash/bf")
    assert info.headline.notes[0].startswith("The sweep was interrupted or is still running; ")
    assert "--resume 20261124-2130-ab12" in info.headline.notes[0]
    assert "**Incomplete (3 of 5 candidates not measured yet): " in render_markdown(info)


def test_what_a_bound_leaves_out_is_not_told_as_not_measured_yet() -> None:
    info = report(begun(candidates=11, max_trials=4), RESULTS)
    assert info.headline.sentence.startswith("Incomplete (2 of 4 candidates not measured yet): ")


def test_an_interrupted_sweep_tells_of_all_candidates_that_it_chose_from() -> None:
    facts = {fact.name: fact.text for fact in report(begun(candidates=5, search="grid"), RESULTS).method}
    assert facts["Search"].endswith("Launched: 2 of 5 candidates.")


def test_an_interruption_of_the_confirming_is_called_that() -> None:
    sentence = report(begun(), RESULTS).headline.sentence
    assert sentence.startswith("Incomplete (the best are not confirmed yet): dynamic/sdpa_flash/bfloat16 is ")


def test_an_interrupted_sweep_without_a_ranking_says_so_too() -> None:
    failed = ended(BASELINE, TrialStatus.OOM, "no memory")
    sentence = report(begun(candidates=2), [failed]).headline.sentence
    assert (
        sentence
        == "Incomplete (1 of 2 candidates not measured yet): Nothing could be ranked: the one trial that ran failed."
    )


def test_measurements_of_two_sessions_in_one_ranking_are_told_with_the_date() -> None:
    late = measured(candidate("static"), speed=1.1, started_at=LATER + dt.timedelta(minutes=1))
    info = report(gone_on(), [*RESULTS, late])
    assert info.headline.notes[0].startswith(
        "2 trials are from an earlier session on 2026-11-24. They are compared with "
    )
    assert report(gone_on(), RESULTS).headline.notes == report(begun().ended(LATER), RESULTS).headline.notes


def test_a_sweep_that_is_judged_anew_says_by_what_and_whom_it_cannot_judge() -> None:
    asked = manifest().profile
    of_asked = A.model_copy(update={"profile": asked})
    complete = first_attempt(manifest(), of_asked, candidates=4).ended(LATER)
    results = [
        *RESULTS,
        ended(candidate("static"), TrialStatus.STOPPED, "", started_at=STARTED + dt.timedelta(minutes=1)),
        ended(candidate("static", "eager"), TrialStatus.SKIPPED, ""),
    ]
    assert not [note for note in report(complete, results).headline.notes if "udged" in note or "left out" in note]
    notes = report(complete.judged_by(Judging(limits={"max_ttft_ms": 1e9})), results).headline.notes
    assert (
        notes[0] == "Judged by other weights or limits than the sweep was run with: limits.max_ttft_ms: none → 1e+09."
    )
    assert notes[1].startswith(
        "2 candidates were left out under the earlier weights or limits (1 stopped early and 1 not launched); under "
        "these they may be better. Repeat the kvray tune command with --resume 20261124-2130-ab12 and these options"
    )


def test_trials_of_another_fingerprint_are_counted_with_what_differs_and_are_in_no_figure() -> None:
    late = [measured(BASELINE, role=Role.BASELINE, started_at=LATER), measured(WINNER, started_at=LATER)]
    info = report(gone_on(B), late, RESULTS)
    assert info.headline.notes[0] == (
        "2 trials in the records are of other fingerprints (torch: 2.12.0 → 2.13.0). They are kept, but neither ranked "
        "nor in any figure here."
    )
    assert info.counts.launched == 2
    assert info.subtitle.endswith("2026-11-26 21:30 UTC"), "when what is ranked was measured"


def test_all_attempts_are_listed_with_how_they_ended_and_the_last_is_what_to_repeat() -> None:
    facts = {fact.name: fact.text for fact in report(gone_on(B), RESULTS).environment}
    assert facts["Attempts"] == (
        f"1: 2026-11-24 21:30 UTC, completed, fingerprint {A.digest}, HuggingFaceTB/SmolLM2-135M --profile "
        f"chat-agent; 2: 2026-11-26 21:30 UTC, completed, fingerprint {B.digest}, m --resume 20261124-2130-ab12."
    )
    assert facts["Repeat it with"] == "kvray tune m"


def test_an_attempt_that_was_answered_before_it_began_had_nothing_new_to_measure() -> None:
    facts = {fact.name: fact.text for fact in report(gone_on().ended(LATER), RESULTS).environment}
    first, second = facts["Attempts"].split(";")
    assert "completed" in first
    assert "nothing new to measure" in second


@pytest.mark.parametrize(
    "arguments",
    [
        ("m", "--resume", "r1", "--force", "-p", "rag"),
        ("--retry=oom,crashed", "m", "--resume=r1", "-p", "rag"),
        ("m", "-p", "rag", "--retry", "oom", "--resume", "r1"),
    ],
)
def test_what_repeats_a_sweep_has_no_options_of_resuming(arguments: tuple[str, ...]) -> None:
    assert repeating_arguments(arguments) == ("m", "-p", "rag")
