"""Who runs in the next confirming round, and when there is none."""

from __future__ import annotations

from collections.abc import Sequence

from evidence_samples import UTILITY_IS_THROUGHPUT, make_evidence, of_throughputs

from kvray.analysis.confirming import MOST_CONTENDERS, next_round
from kvray.analysis.evidence import Evidence


def decide(
    evidence: Evidence, *, round_number: int = 1, most_rounds: int = 3, baseline_id: str | None = "base"
) -> tuple[str, ...]:
    return next_round(
        evidence,
        baseline_id=baseline_id,
        round_number=round_number,
        most_rounds=most_rounds,
        weights=UTILITY_IS_THROUGHPUT,
    )


def test_a_round_is_winner_close_rivals_and_baseline() -> None:
    evidence = of_throughputs({"base": [30.0], "best": [50.0], "close": [49.8], "far": [40.0]})

    assert sorted(decide(evidence)) == ["base", "best", "close"]


def test_at_most_four_contend_and_the_baseline_comes_on_top() -> None:
    evidence = of_throughputs({"base": [30.0], **{f"c{place}": [50.0 + place / 1000] for place in range(8)}})

    lineup = decide(evidence)

    assert len(lineup) == MOST_CONTENDERS + 1
    assert "base" in lineup


def test_the_order_rotates_from_round_to_round() -> None:
    evidence = of_throughputs({"base": [30.0, 30.5, 29.5], "best": [50.0, 48.5, 51.5], "close": [49.9, 51.5, 48.0]})

    first, second = (decide(evidence, round_number=number, most_rounds=9) for number in (4, 5))

    assert sorted(first) == sorted(second)
    assert second[:-1] == first[1:]


def twice_as_fast(speeds: Sequence[float]) -> Evidence:
    """A winner with these tok/s, beside a baseline that is slower in all."""
    return make_evidence(
        {
            "base": [(number, 200.0, 10.0, 1000.0) for number in range(len(speeds))],
            "best": [(number, 100.0, speed, 1000.0) for number, speed in enumerate(speeds)],
            "far": [(0, 150.0, 15.0, 1000.0)],
        }
    )


def test_a_clear_winner_with_a_gain_known_closely_ends_it_before_the_rounds_are_spent() -> None:
    assert sorted(decide(twice_as_fast([50.0]))) == ["base", "best"]
    assert decide(twice_as_fast([50.0, 50.1, 50.0]), round_number=3, most_rounds=9) == ()


def test_a_small_gain_that_is_not_known_closely_goes_on_until_rounds_are_spent() -> None:
    noisy = of_throughputs({"base": [48.0, 50.0], "best": [55.0, 52.0]})

    assert decide(noisy, round_number=2)
    assert decide(noisy, round_number=4) == ()


def test_processes_far_apart_ask_for_another_round() -> None:
    assert decide(twice_as_fast([33.0, 26.0, 33.0]), round_number=3)
    assert decide(twice_as_fast([33.0, 32.8, 33.0]), round_number=3) == ()


def test_without_a_rival_or_a_baseline_there_is_nothing_to_confirm() -> None:
    assert decide(of_throughputs({"base": [30.0]})) == ()
    assert decide(of_throughputs({"only": [30.0]}), baseline_id=None) == ()


def test_one_that_may_not_win_is_not_confirmed_but_compared_with() -> None:
    evidence = make_evidence(
        {key: [(0, 100.0, speed, 1000.0)] for key, speed in (("base", 60.0), ("best", 50.0), ("barred", 55.0))},
        contenders=["best"],
    )

    assert decide(evidence) == ("best", "base")


def test_nothing_that_may_win_means_no_round() -> None:
    assert decide(make_evidence({"base": [(0, 100.0, 60.0, 1000.0)]}, contenders=[])) == ()
