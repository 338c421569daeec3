"""The confirm phase's decisions, without its doing: who runs again in the next round, and when enough is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kvray.analysis.bimodality import may_be_bimodal
from kvray.analysis.evidence import DECODE, PEAK, TTFT, Array, Evidence
from kvray.analysis.intervals import LogInterval, gain_interval, metric_interval
from kvray.analysis.limits import Miss
from kvray.analysis.utility_posterior import TIE_SHARE, UtilityPosterior, draw_utilities

MOST_CONTENDERS = 4
"""In a round, the winner so far among them; the baseline comes on top."""
MOST_DOUBTFUL = 2
"""In a round, beside those: whoever is left takes part in the next one."""
MOST_IN_ROUND = MOST_CONTENDERS + MOST_DOUBTFUL + 1
"""Processes of a round, the baseline's among them; of several engines each further one's default may come on top."""
SURE = 0.95
NARROW = math.log(1.03)
"""Half of a gain's interval that needs no narrowing; a large gain need not be known better than to a fifth of it."""
_SHARE_OF_GAIN = 0.2
_COLUMNS = {
    "max_ttft_ms": TTFT,
    "max_itl_ms": TTFT,  # a percentile of single gaps varies more than the throughput, which is their mean
    "min_decode_tok_s": DECODE,
    "max_peak_mib": PEAK,
}
"""Columns of the evidence by whose noise a limit is judged."""
_DRAWS = 1000


def next_round(
    evidence: Evidence,
    *,
    baseline_id: str | None,
    round_number: int,
    most_rounds: int,
    weights: Array,
    defaults: Sequence[str] = (),
) -> tuple[str, ...]:
    """Candidate ids to run once more, each in a fresh process, in this order; empty when confirming is over.

    A round is the winner so far, at most three rivals that cannot be told apart from it, at most `MOST_DOUBTFUL` whose
    figures decide nothing yet (`doubtful`), what their engines do with nothing set, for each further engine that the
    winner or a rival is of, and the baseline, each once. The order rotates from round to round. A
    confirming trial measures every full-length cell once after its warm-up (rung 1) and no quality; its id is
    `confirm_trial_id(round_number, candidate_id)`. A candidate that the scheduler had stopped is among the rivals if it
    may be the best: its quality was perhaps never measured.

    It is over after `most_rounds`, or after one when the winner is clear (no rival, or surely none that is better by
    more than 2 %), its gains over the baseline are known closely enough, no two of its processes are so far apart
    that they may be of two kinds, and nobody is left in doubt.

    Args:
        round_number: of the round to come, from 1.
        weights: of the profile, as `score.utility_weights` gives them.
        defaults: ids of what each further engine does with nothing set.
    """
    contenders = [key for key in evidence.ids if key in evidence.contenders]
    unclear = _worth_a_process(evidence, doubtful(evidence, weights), contenders, weights, seed=round_number)
    if round_number > most_rounds or not (contenders or unclear):
        return ()
    baseline = [baseline_id] if baseline_id in evidence.ids else []
    posterior = draw_utilities(evidence, contenders, weights, seed=round_number, draws=_DRAWS) if contenders else None
    best = [] if posterior is None else [posterior.leader, *posterior.ties(posterior.leader)[: MOST_CONTENDERS - 1]]
    others = [key for key in unclear if key not in (*best, *baseline)]
    compared = _compared_with(evidence, best, defaults)
    lineup = list(dict.fromkeys([*best, *others[:MOST_DOUBTFUL], *compared, *baseline]))
    is_settled = round_number > 1 and posterior is not None and _is_enough(evidence, posterior, *baseline)
    if (len(lineup) == 1 or is_settled) and not unclear:
        return ()
    turn = (round_number - 1) % len(lineup)
    return tuple(lineup[turn:] + lineup[:turn])


def _compared_with(evidence: Evidence, best: Sequence[str], defaults: Sequence[str]) -> list[str]:
    """Those of `defaults` whose engine has one of the `best`: its gain over its own default is told too."""
    engine_of = {key: int(evidence.engine_of[place]) for key, place in evidence.place_of.items()}
    engines = {engine_of[key] for key in best}
    return [key for key in defaults if engine_of.get(key) in engines]


def doubtful(evidence: Evidence, weights: Array) -> tuple[str, ...]:
    """Ids of those whose figures decide nothing yet: first those with the fewest processes, then the best by what was
    measured.

    Either all their processes were disturbed, so that they may be better than they look; or they miss limits, each of
    them so narrowly that the noise between processes may be why, or on disturbed runs alone.
    """
    values = evidence.logs @ weights
    found: dict[str, tuple[int, float]] = {}
    for place, key in enumerate(evidence.ids):
        rows, misses = evidence.owner == place, evidence.misses.get(key, ())
        if all(_may_be_kept(evidence, key, miss) for miss in misses) and (misses or _is_disturbed(evidence, key)):
            found[key] = int(rows.sum()), -float(values[rows].max())
    return tuple(sorted(found, key=found.__getitem__))


def _worth_a_process(
    evidence: Evidence, unclear: Sequence[str], contenders: Sequence[str], weights: Array, *, seed: int
) -> list[str]:
    """`unclear` without those that are surely worse than a contender, whether they keep the limits or not."""
    calm_misses = [key for key in unclear if key in evidence.misses and not _is_disturbed(evidence, key)]
    if not contenders or not calm_misses:
        return list(unclear)
    shares = draw_utilities(evidence, [*contenders, *calm_misses], weights, seed=seed, draws=_DRAWS).lead_shares
    return [key for key in unclear if key not in calm_misses or shares[key] > TIE_SHARE]


def _is_disturbed(evidence: Evidence, candidate_id: str) -> bool:
    return bool(evidence.disturbed[evidence.owner == evidence.place_of[candidate_id]].all())


def _may_be_kept(evidence: Evidence, candidate_id: str, miss: Miss) -> bool:
    column = _COLUMNS.get(miss.limit_name)
    return miss.is_doubtful(None if column is None else metric_interval(evidence, candidate_id, column).half_width)


def _is_enough(evidence: Evidence, posterior: UtilityPosterior, baseline: str | None = None) -> bool:
    winner = posterior.leader
    is_clear = not posterior.ties(winner) or posterior.near_share(winner) >= SURE
    compared = [winner] if baseline is None else [winner, baseline]
    if not is_clear or any(may_be_bimodal(evidence, key) for key in compared):
        return False
    return baseline is None or all(
        _is_narrow(gain_interval(evidence, winner, baseline, metric)) for metric in (TTFT, DECODE)
    )


def _is_narrow(gain: LogInterval) -> bool:
    return gain.half_width <= max(NARROW, _SHARE_OF_GAIN * abs(gain.value))
