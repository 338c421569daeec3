"""The confirm phase's decisions, without its doing: who runs again in the next round, and when enough is known."""

from __future__ import annotations

import math

from kvray.analysis.evidence import DECODE, TTFT, Array, Evidence
from kvray.analysis.intervals import LogInterval, gain_interval
from kvray.analysis.modes import may_have_modes
from kvray.analysis.standing import Standing, standing_of

MOST_CONTENDERS = 4
"""In a round, the winner so far among them; the baseline comes on top."""
SURE = 0.95
NARROW = math.log(1.03)
"""Half of a gain's interval that needs no narrowing; a large gain need not be known better than to a fifth of it."""
_SHARE_OF_GAIN = 0.2
_DRAWS = 1000


def next_round(
    evidence: Evidence, *, baseline_id: str | None, round_number: int, most_rounds: int, weights: Array
) -> tuple[str, ...]:
    """Candidate ids to run once more, each in a fresh process, in this order; empty when confirming is over.

    A round is the winner so far, at most three rivals that cannot be told apart from it, and the baseline, each once.
    The order rotates from round to round. A confirming trial measures every full-length cell once after its warm-up
    (rung 1) and no quality; its id is `confirm_trial_id(round_number, candidate_id)`. A candidate that the scheduler
    had stopped is among the rivals if it may be the best: its quality was perhaps never measured.

    It is over after `most_rounds`, or after one when the winner is clear (no rival, or surely none that is better by
    more than 2 %), its gains over the baseline are known closely enough, and no two of its processes are so far apart
    that they may be of two kinds.

    Args:
        round_number: of the round to come, from 1.
        weights: of the profile, as `score.utility_weights` gives them.
    """
    contenders = [key for key in evidence.ids if key in evidence.contenders]
    if round_number > most_rounds or not contenders:
        return ()
    standing = standing_of(evidence, contenders, weights, seed=round_number, draws=_DRAWS)
    winner, baseline = standing.leader, baseline_id if baseline_id in evidence.ids else None
    rivals = standing.ties(winner)[: MOST_CONTENDERS - 1]
    lineup = list(dict.fromkeys([winner, *rivals, *([baseline] if baseline else [])]))
    if len(lineup) == 1 or (round_number > 1 and _is_enough(evidence, standing, winner, baseline)):
        return ()
    turn = (round_number - 1) % len(lineup)
    return tuple(lineup[turn:] + lineup[:turn])


def _is_enough(evidence: Evidence, standing: Standing, winner: str, baseline: str | None) -> bool:
    is_clear = not standing.ties(winner) or standing.near_share(winner) >= SURE
    compared = [winner] if baseline is None else [winner, baseline]
    if not is_clear or any(may_have_modes(evidence, key) for key in compared):
        return False
    return baseline is None or all(
        _is_narrow(gain_interval(evidence, winner, baseline, metric)) for metric in (TTFT, DECODE)
    )


def _is_narrow(gain: LogInterval) -> bool:
    return gain.half_width <= max(NARROW, _SHARE_OF_GAIN * abs(gain.value))
