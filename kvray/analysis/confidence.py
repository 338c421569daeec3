"""How sure the ranking is: bootstrap over processes, then over the runs within each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A two-sided 95 % interval; bounds are relative gains like those of `Gain`."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """Share of bootstrap replicates in which the winner stays first, and what that rests on.

    Attributes:
        winner_share: 0 to 1.
        processes: fewest fresh processes behind a candidate that takes part. With 1, the spread between processes is
            not in the data, so the share is an upper bound, and every text that shows it must say so.
        ties: candidate ids that cannot be told apart from the winner (they lead in more than 5 % of replicates).
        ttft_gain, throughput_gain: the winner's gain over the baseline; `None` without a baseline.
    """

    winner_share: float
    replicates: int
    processes: int
    runs: int
    ties: tuple[str, ...]
    ttft_gain: Interval | None
    throughput_gain: Interval | None
