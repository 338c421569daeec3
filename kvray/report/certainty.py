"""How sure the ranking is, what that rests on, and which candidates it leaves out, in a few sentences."""

from __future__ import annotations

from collections.abc import Sequence

from kvray.analysis.choice import Reason
from kvray.analysis.confidence import Confidence
from kvray.analysis.ranking import Gain
from kvray.report import formats
from kvray.report.rows import Row
from kvray.report.stats import interval_texts


def confidence_sentence(
    confidence: Confidence | None, rows: Sequence[Row], *, stopped: int = 0, skipped: int = 0
) -> str:
    """The paragraph of a ranking, whose `rows` are not empty.

    Args:
        stopped, skipped: candidates that were stopped early or not launched.
    """
    if len(rows) == 1:
        return "There is only one candidate in the ranking, so nothing to compare it with."
    if confidence is None:
        return "How sure this order is was not computed."
    winner = rows[0]
    told = (
        _claim(confidence),
        _basis(confidence, _measured_once(rows)),
        "" if winner.is_baseline else _gain_basis(winner.gain),
        _left_out(stopped, skipped),
    )
    return " ".join(part for part in told if part)


def _claim(confidence: Confidence) -> str:
    if confidence.is_disturbed:
        return "How sure this order is cannot be said, because too many runs were disturbed."
    resamplings = f"{formats.plural(confidence.replicates, 'resampling')} of the measurements"
    near = _counted_share(confidence.near_share, confidence)
    if confidence.choice.reason is Reason.NO_GAIN:
        return f"In {near} of {resamplings} nothing was better than the baseline by more than 2 %."
    won = _counted_share(confidence.winner_share, confidence)
    return f"Confidence {won}: in {won} of {resamplings} it won; in {near} nothing was better than it by more than 2 %."


def _counted_share(share: float, confidence: Confidence) -> str:
    """A share as text. To win all of so many resamplings is not certainty."""
    return formats.share(min(share, 1 - 1 / confidence.replicates))


def _basis(confidence: Confidence, single: Sequence[str]) -> str:
    runs = formats.plural(confidence.runs, "timed run")
    if single:
        its = "its processes" if len(single) == 1 else "their processes"
        return (
            f"{formats.listed(single)} ran in one process only, so how much {its} differ is assumed from the others', "
            f"not measured; the least measured cell has {runs}."
        )
    if confidence.assumed_process_noise:
        return (
            f"Each candidate ran in one process (at least {runs} of each cell), so how much processes differ is "
            "assumed, not measured."
        )
    return (
        f"The winner, its ties and the baseline each ran in at least {confidence.processes} fresh processes, with at "
        f"least {runs} of each cell."
    )


def _gain_basis(gain: Gain | None) -> str:
    texts = None if gain is None else interval_texts(gain)
    if gain is None or texts is None:
        return ""
    intervals = f"{texts[0]} for the first token, {texts[1]} for tok/s"
    if not gain.pairs:
        return f"The 95 % intervals of its gains are {intervals}."
    rounds = formats.plural(gain.pairs, "confirming round")
    return (
        f"Its gains come from {rounds}, in which it and the baseline ran one after the other; their 95 % intervals are "
        f"{intervals}."
    )


def _left_out(stopped: int, skipped: int) -> str:
    counted = ((stopped, "stopped early"), (skipped, "not launched"))
    parts = [f"{formats.count(number)} {what}" for number, what in counted if number]
    if not parts:
        return ""
    one = stopped + skipped == 1
    return f"The {formats.listed(parts)} {'is' if one else 'are'} not included."


def _measured_once(rows: Sequence[Row]) -> tuple[str, ...]:
    """Labels of winner, ties and baseline that ran in one process while another of them ran in more."""
    compared = [row for row in rows if row.is_winner or row.is_tied or row.is_baseline]
    once = tuple(row.label for row in compared if row.processes == 1)
    return once if len(once) < len(compared) else ()
