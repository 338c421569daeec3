"""The same real sweep twice on this machine: every candidate measured completely, and as kvray searches by default.

SmolLM2-135M, prompts of 192 tokens, 16 new ones, the 70 candidates of `spaces/cpu_wide.yaml` (12 of them with --quick).
Seconds are those of the whole command, Ray's start and reports included. What kvray chose is judged by what the
exhaustive sweep measured of it: that is one process of each, so a regret within its noise says nothing.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from output import make_parser, print_table, write_figures
from overhead import demo_model

from kvray.config import CONFIRM_ROUNDS, SearchStrategy, TuneConfig
from kvray.record import Role
from kvray.tuning.result import TuneResult
from kvray.tuning.search import TuningSearch
from kvray.workload import get_profile, override_profile

SPACE = Path(__file__).parent / "spaces" / "cpu_wide.yaml"
PROFILE = override_profile(get_profile("ci-micro"), context_lengths=(192,), output_lengths=(16,))


def main() -> None:
    arguments = make_parser(__doc__).parse_args()
    searches = {
        name: timed(strategy, confirm_rounds, quick=arguments.quick)
        for name, strategy, confirm_rounds in (
            ("kvray", SearchStrategy.MODEL, CONFIRM_ROUNDS),
            ("exhaustive", SearchStrategy.GRID, 0),
        )
    }
    (kvray, kvray_s), (exhaustive, exhaustive_s) = searches["kvray"], searches["exhaustive"]
    utilities = {entry.record.candidate_id: entry.utility for entry in exhaustive.analysis.ranking.entries}
    chosen = kvray.analysis.ranking.winner.record
    regret = max(utilities.values()) - utilities[chosen.candidate_id]
    print_table(
        f"{len(utilities)} candidates",
        ("search", "seconds", "launched", "confirming", "winner"),
        [
            (name, seconds, launched(found), confirming(found), found.analysis.ranking.winner.record.candidate.label)
            for name, (found, seconds) in searches.items()
        ],
    )
    print(f"kvray's winner is {regret:.1%} behind the best of the exhaustive sweep, by that sweep's own figures")
    write_figures(
        arguments.json,
        {
            "exhaustive_s": round(exhaustive_s, 1),
            "kvray_s": round(kvray_s, 1),
            "share": round(kvray_s / exhaustive_s, 3),
            "candidates": len(utilities),
            "kvray_launched": launched(kvray),
            "kvray_confirming": confirming(kvray),
            "exhaustive_winner": exhaustive.analysis.ranking.winner.record.candidate.label,
            "kvray_winner": chosen.candidate.label,
            "regret": round(regret, 4),
        },
        quick=arguments.quick,
    )


def timed(search: SearchStrategy, confirm_rounds: int, *, quick: bool) -> tuple[TuneResult, float]:
    """A sweep, and the seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        space = {"dtypes": ("bfloat16",)} if quick else {"space": str(SPACE)}
        config = TuneConfig(
            model_id=str(demo_model()),
            profile=PROFILE,
            output_dir=folder,
            search=search,
            confirm_rounds=confirm_rounds,
            **space,
        )
        started = time.monotonic()
        return TuningSearch(config=config).run(), time.monotonic() - started


def launched(result: TuneResult) -> int:
    """Processes of the search."""
    return sum(one.record.status.was_launched and one.record.role is not Role.CONFIRM for one in result.results)


def confirming(result: TuneResult) -> int:
    """Processes of the confirm phase."""
    return sum(one.record.role is Role.CONFIRM for one in result.results)


if __name__ == "__main__":
    main()
