"""What a reader must know of a sweep's attempts: that it is incomplete, of several sessions, or of several machines."""

from __future__ import annotations

import datetime as dt
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from kvray.record import TrialResult, TrialStatus
from kvray.report import formats
from kvray.report.repeating import going_on_with, repeat_with, sentence
from kvray.store.fingerprint import judgement_differences
from kvray.store.manifest import SweepAttempt, SweepManifest
from kvray.store.resuming import earlier_session, judged_by_others

_FOR_RESUMING = {"--resume": 2, "--retry": 2, "--force": 1}
"""Options that a new sweep cannot use, each with the number of words it takes."""
_OUTPUT = {"--output": 2, "-o": 2}


def incomplete_prefix(manifest: SweepManifest, results: Sequence[TrialResult]) -> str:
    """Begins the verdict of a sweep that did not come to its end; empty for any other."""
    if manifest.is_complete is not False:
        return ""
    candidates = manifest.attempts[-1].candidates or 0
    if manifest.max_trials is not None:
        candidates = min(candidates, manifest.max_trials)
    ended = (one.record for one in results if one.record.status is not TrialStatus.INTERRUPTED)
    left = candidates - len({record.candidate_id for record in ended if record.status.was_launched})
    if left <= 0:
        return "Incomplete (the best are not confirmed yet): "
    return f"Incomplete ({formats.count(left)} of {formats.plural(candidates, 'candidate')} not measured yet): "


def attempt_notes(
    manifest: SweepManifest, results: Sequence[TrialResult], set_aside: Sequence[TrialResult]
) -> tuple[str, ...]:
    """A sentence each: interrupted, without raw runs, judged anew, mixed of several sessions, beside trials that cannot
    be compared."""
    lost = lost_runs_text(manifest, results)
    return (
        *_incomplete(manifest),
        *((lost,) if lost else ()),
        *_judged_anew_note(manifest),
        *_judged_by_others_note(manifest, results),
        *_session_note(manifest, results),
        *_set_aside_note(manifest, set_aside),
    )


def lost_runs_text(manifest: SweepManifest, results: Sequence[TrialResult], output: str | None = None) -> str:
    """How many trials count in no figure because their raw runs are gone, and how to measure them again: the whole
    command where `output`, the results folder, is given. Empty where none is gone."""
    lost = sum(one.has_lost_its_runs for one in results)
    if not lost:
        return ""
    they_are, them = ("it is", "it") if lost == 1 else ("they are", "them")
    trials = formats.plural(lost, "trial")
    what = f"The raw runs of {trials} are missing or cannot be read, so {they_are} in no figure."
    if output is None or not manifest.arguments or manifest.was_submitted:
        how = repeat_with(manifest, f"--resume {formats.clean_line(manifest.run_id)}")
        return f"{what} {sentence(how)} to measure {them} again."
    kept = _without(repeating_arguments(manifest.arguments), _OUTPUT)
    command = shlex.join((*shlex.split(manifest.command), *kept, "--output", output, "--resume", manifest.run_id))
    return f"{what} Measure {them} again with {formats.clean_line(command)}"


def session_text(starts: Sequence[dt.datetime]) -> str:
    """E.g. `12 trials are from an earlier session on 2026-11-24`; `starts` are theirs, by time and not empty."""
    days = list(dict.fromkeys(f"{start:%Y-%m-%d}" for start in starts))
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    are = "is" if len(starts) == 1 else "are"
    return f"{formats.plural(len(starts), 'trial')} {are} from an earlier session on {when}"


def attempts_text(manifest: SweepManifest) -> str:
    """All attempts, one after the other; empty where there was one."""
    if len(manifest.attempts) < 2:
        return ""
    return "; ".join(_attempt(number, one) for number, one in enumerate(manifest.attempts, start=1)) + "."


def repeating_arguments(arguments: Sequence[str]) -> tuple[str, ...]:
    """The arguments that start the same sweep anew, without those for resuming one."""
    return tuple(_without(arguments, _FOR_RESUMING))


def _without(arguments: Sequence[str], options: Mapping[str, int]) -> Iterator[str]:
    skip = 0
    for argument in arguments:
        if skip:
            skip -= 1
        elif argument in options:
            skip = options[argument] - 1
        elif argument.partition("=")[0] not in options:
            yield argument


def _attempt(number: int, attempt: SweepAttempt) -> str:
    asked_nothing_new = attempt.ended_at == attempt.started_at
    ended = "nothing new to measure" if asked_nothing_new else "completed"
    end = ended if attempt.ended_at else "interrupted or unfinished"
    how = f"{number}: {formats.timestamp(attempt.started_at)}, {end}, fingerprint {attempt.fingerprint_id}"
    return f"{how}, {formats.clean_line(' '.join(attempt.arguments))}" if attempt.arguments else how


def _incomplete(manifest: SweepManifest) -> Iterator[str]:
    if manifest.is_complete is False:
        yield (
            "The sweep was interrupted or is still running; what was not measured may be better. "
            f"{sentence(going_on_with(manifest))} to measure the rest."
        )


def _judged_anew_note(manifest: SweepManifest) -> Iterator[str]:
    asked = manifest.attempts[-1].fingerprint.profile if manifest.attempts else None
    if asked is not None and (told := judgement_differences(asked, manifest.profile)):
        yield f"Judged by other weights or limits than the sweep was run with: {'; '.join(told)}."


def _judged_by_others_note(manifest: SweepManifest, results: Sequence[TrialResult]) -> Iterator[str]:
    """What new weights or limits cannot judge: it was not measured, or not to its end, because of the old ones."""
    left = Counter(record.status for record in judged_by_others(manifest, results))
    counted = ((left[TrialStatus.STOPPED], "stopped early"), (left[TrialStatus.SKIPPED], "not launched"))
    parts = [f"{formats.count(number)} {what}" for number, what in counted if number]
    if parts:
        how = repeat_with(manifest, f"--resume {formats.clean_line(manifest.run_id)}")
        were, they = ("was", "it") if sum(left.values()) == 1 else ("were", "they")
        yield (
            f"{formats.plural(sum(left.values()), 'candidate')} {were} left out under the earlier weights or limits "
            f"({formats.listed(parts)}); under these {they} may be better. "
            f"{sentence(how)} and these options to find out."
        )


def _session_note(manifest: SweepManifest, results: Sequence[TrialResult]) -> Iterator[str]:
    starts = earlier_session(manifest, results)
    if starts and len(starts) < sum(one.record.status.was_launched for one in results):
        yield (
            f"{session_text(starts)}. They are compared with later ones as if clocks, temperature and other programs "
            "had been the same."
        )


def _set_aside_note(manifest: SweepManifest, set_aside: Sequence[TrialResult]) -> Iterator[str]:
    launched = sum(one.record.status.was_launched for one in set_aside)
    if not launched:
        return
    others = [one for one in manifest.attempts if one.fingerprint_id != manifest.fingerprint_id]
    told = others[-1].fingerprint.differences(manifest.attempts[-1].fingerprint) if others else ()
    what = f" ({formats.clean_line('; '.join(told))})" if told else ""
    are, they = ("is", "It is") if launched == 1 else ("are", "They are")
    yield (
        f"{formats.plural(launched, 'trial')} in the records {are} of other fingerprints{what}. {they} kept, but "
        "neither ranked nor in any figure here."
    )
