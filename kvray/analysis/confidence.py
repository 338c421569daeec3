"""How sure the decision is, and what that rests on. `benchmarks/calibration.py` checks that the shares are right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kvray.analysis.bimodality import Bimodality, find_bimodality
from kvray.analysis.choice import Choice, better_than_baseline, choose, complexity
from kvray.analysis.disturbed import disturbed_share
from kvray.analysis.evidence import DECODE, TTFT, Evidence, gather_evidence
from kvray.analysis.intervals import Interval, metric_interval
from kvray.analysis.pooling import FULL_RUNG, pool_complete_trials
from kvray.analysis.ranking import Ranking
from kvray.analysis.score import utility_weights
from kvray.analysis.utility_posterior import UtilityPosterior, draw_utilities
from kvray.lazy import FoundLater
from kvray.record import TrialResult
from kvray.run_columns import joined
from kvray.workload import WorkloadProfile

DISTURBED_CELLS_WORTH_A_NOTE = 0.2
"""Share of a sweep's cells that were measured by disturbed runs alone. Beyond it no confidence is claimed."""
MOST_WHEN_DISTURBED = 0.5


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """How often the chosen candidate is the best when the measurements are resampled, and what that rests on.

    Attributes:
        choice: the winner, and why it is preferred to the one that led.
        winner_share: 0 to 1. At most 0.5 for a disturbed sweep, whose noise is of an unknown kind.
        near_share: share in which nothing is better than it by more than 2 %; with the same cap.
        replicates: resamplings that the shares are counted in.
        processes: fewest fresh processes behind the winner, a tie, or the baseline.
        runs: fewest undisturbed runs of one cell behind them, over all their processes.
        ties: candidate ids that cannot be told apart from the winner (they lead in more than 5 % of replicates).
        score_ratios: by candidate id, the 95 % interval of its score as a multiple of the winner's.
        ttft_ms, decode_tok_s: the winner's mean over many fresh processes, with its 95 % interval.
        assumed_process_noise: whether one of them ran in a single process (`processes` is 1), so that its spread
            between processes is mostly assumed and not seen in its own data. Every text that shows the share or an
            interval must then say so.
        modes: configurations among the winner, its ties and the baseline whose processes are of two kinds.
        is_disturbed: over a fifth of the sweep's cells were measured by disturbed runs alone; no text may then show the
            shares.
    """

    choice: Choice
    winner_share: float
    near_share: float
    replicates: int
    processes: int
    runs: int
    ties: tuple[str, ...]
    ttft_ms: Interval
    decode_tok_s: Interval
    score_ratios: Mapping[str, Interval] = field(default_factory=dict)
    assumed_process_noise: bool = False
    modes: tuple[Bimodality, ...] = ()
    is_disturbed: bool = False


def estimate_confidence(
    ranking: Ranking,
    results: Sequence[TrialResult],
    profile: WorkloadProfile,
    *,
    seed: int,
    replicates: int = 2000,
    evidence: Evidence | None = None,
) -> Confidence | None:
    """Choose among the ranked candidates, and say how sure that is (the model is in `draw_utilities`).

    Args:
        evidence: what `gather_evidence` makes of `results`, where the caller has it.

    Returns:
        `None` when nothing is ranked. The same `seed` gives the same answer, for any order of `results`.
    """
    if not ranking.entries:
        return None
    evidence = evidence or gather_evidence(results, profile)
    ids = [entry.record.candidate_id for entry in ranking.entries]
    posterior = draw_utilities(evidence, ids, utility_weights(profile), seed=seed, draws=replicates)
    choice = _choice(ranking, posterior)
    winner, baseline_id = choice.candidate_id, ranking.baseline_id
    ties = posterior.ties(winner)
    compared = dict.fromkeys([winner, *ties, *([baseline_id] if baseline_id else [])])
    processes = min(_processes(evidence, key) for key in compared)
    is_disturbed = disturbed_share(results) > DISTURBED_CELLS_WORTH_A_NOTE
    most = MOST_WHEN_DISTURBED if is_disturbed else 1.0
    return Confidence(
        choice=choice,
        winner_share=min(posterior.lead_shares[winner], most),
        near_share=min(posterior.near_share(winner), most),
        replicates=replicates,
        processes=processes,
        runs=_fewest_runs(results, profile, compared),
        ties=ties,
        ttft_ms=metric_interval(evidence, winner, TTFT).as_factor(),
        decode_tok_s=metric_interval(evidence, winner, DECODE).as_factor(),
        score_ratios=posterior.score_ratios(winner),
        assumed_process_noise=processes < 2,
        modes=find_bimodality(evidence, compared),
        is_disturbed=is_disturbed,
    )


def _choice(ranking: Ranking, posterior: UtilityPosterior) -> Choice:
    baseline = ranking.baseline.record.candidate if ranking.baseline else None
    ranked_baseline = ranking.baseline_id if ranking.baseline_id in posterior.ids else None
    gains = {entry.record.candidate_id: entry.gain for entry in ranking.entries if entry.gain is not None}
    records = {entry.record.candidate_id: entry.record for entry in ranking.entries}
    return choose(
        posterior,
        {entry.record.candidate_id: entry.metrics.peak_mib for entry in ranking.entries},
        FoundLater(records, lambda key: complexity(records[key].candidate, baseline)),
        baseline_id=ranked_baseline,
        better=better_than_baseline(posterior, ranked_baseline, gains) if ranked_baseline else (),
    )


def _processes(evidence: Evidence, candidate_id: str) -> int:
    return len(evidence.rows_of(candidate_id))


def _fewest_runs(results: Sequence[TrialResult], profile: WorkloadProfile, ids: Iterable[str]) -> int:
    wanted = frozenset(ids)
    pools = pool_complete_trials([one for one in results if one.record.candidate_id in wanted], profile)
    return min(
        len(joined([trial.full_length[cell] for trial in pools[key]]).calm)
        for key in wanted
        for cell in profile.cells(pools[key][0].record.batch_size, rung=FULL_RUNG)
    )
