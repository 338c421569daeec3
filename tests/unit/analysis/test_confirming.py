"""Who runs in the next confirming round, and when there is none."""

from __future__ import annotations

from collections.abc import Sequence

from evidence_samples import UTILITY_IS_THROUGHPUT, make_evidence, of_throughputs

from kvray.analysis.confirming import MOST_CONTENDERS, MOST_DOUBTFUL, next_round
from kvray.analysis.evidence import Evidence
from kvray.analysis.limits import Miss


def decide(
    evidence: Evidence,
    *,
    round_number: int = 1,
    most_rounds: int = 3,
    baseline_id: str | None = "base",
    defaults: Sequence[str] = (),
) -> tuple[str, ...]:
    return next_round(
        evidence,
        baseline_id=baseline_id,
        round_number=round_number,
        most_rounds=most_rounds,
        weights=UTILITY_IS_THROUGHPUT,
        defaults=defaults,
    )


def test_a_round_is_winner_close_rivals_and_baseline() -> None:
    evidence = of_throughputs({"base": [30.0], "best": [50.0], "close": [49.8], "far": [40.0]})

    assert sorted(decide(evidence)) == ["base", "best", "close"]


def test_what_the_winners_engine_does_with_nothing_set_runs_beside_it_and_no_other_engines_default() -> None:
    speeds = {"base": [30.0], "best": [50.0], "close": [49.8], "usual": [35.0], "other": [20.0], "third": [21.0]}
    engines = dict(zip(speeds, ("first", "second", "first", "second", "third", "third"), strict=True))
    evidence = of_throughputs(speeds, engines=engines)

    assert sorted(decide(evidence, defaults=["usual", "other"])) == ["base", "best", "close", "usual"]
    assert sorted(decide(evidence, defaults=["unmeasured"])) == ["base", "best", "close"]


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


def missing(ttft_ms: float, *, limit_ms: float = 100.0, is_disturbed: bool = False) -> tuple[Miss, ...]:
    return (
        Miss(
            limit_name="max_ttft_ms",
            metric="TTFT",
            unit="ms",
            limit=limit_ms,
            measured=ttft_ms,
            is_disturbed=is_disturbed,
        ),
    )


def test_whoever_misses_a_limit_by_no_more_than_noise_runs_again_if_it_may_be_the_best() -> None:
    evidence = make_evidence(
        {
            "base": [(0, 90.0, 30.0, 1000.0)],
            "best": [(0, 95.0, 50.0, 1000.0)],
            "near": [(0, 104.0, 55.0, 1000.0)],
            "near_and_slow": [(0, 104.0, 31.0, 1000.0)],
            "beyond": [(0, 150.0, 60.0, 1000.0)],
        },
        misses={"near": missing(104.0), "near_and_slow": missing(104.0), "beyond": missing(150.0)},
    )

    assert sorted(decide(evidence)) == ["base", "best", "near"]


def test_where_nothing_keeps_the_limits_the_near_misses_run_again() -> None:
    evidence = make_evidence(
        {"base": [(0, 160.0, 60.0, 1000.0)], "near": [(0, 104.0, 50.0, 1000.0)]},
        misses={"base": missing(160.0), "near": missing(104.0)},
    )

    assert decide(evidence) == ("near", "base")


def test_a_miss_is_one_when_more_processes_have_shown_it() -> None:
    again = [(number, 104.0, 50.0, 1000.0) for number in range(9)]
    evidence = make_evidence({"base": again, "near": again}, misses={"base": missing(104.0), "near": missing(104.0)})

    assert decide(evidence, round_number=9, most_rounds=20) == ()


def test_whoever_was_disturbed_in_all_its_processes_runs_again_whatever_it_showed() -> None:
    slow = {f"slow{number}": [(0, 900.0, 5.0 + number, 1000.0)] for number in range(4)}
    evidence = make_evidence(
        {"base": [(0, 90.0, 30.0, 1000.0)], "best": [(0, 90.0, 50.0, 1000.0)], **slow}, disturbed=slow
    )

    first = decide(evidence)

    assert sorted(first) == ["base", "best", "slow2", "slow3"]
    assert len(first) == 2 + MOST_DOUBTFUL


def test_those_that_are_still_in_doubt_let_others_go_first_and_keep_confirming_going() -> None:
    def processes(speed: float, number: int) -> list[tuple[int, float, float, float]]:
        return [(place, 100.0, speed, 1000.0) for place in range(number)]

    disturbed = {"a": processes(20.0, 2), "b": processes(19.0, 2), "c": processes(10.0, 1)}
    evidence = make_evidence({"base": processes(30.0, 5), "best": processes(50.0, 5), **disturbed}, disturbed=disturbed)

    assert {"a", "c"} < set(decide(evidence, round_number=5, most_rounds=9))
    assert decide(evidence, round_number=5, most_rounds=4) == ()


def test_a_miss_on_disturbed_runs_alone_is_settled_by_another_process_however_far_it_is() -> None:
    evidence = make_evidence(
        {"base": [(0, 90.0, 30.0, 1000.0)], "far": [(0, 900.0, 3.0, 1000.0)]},
        misses={"far": missing(900.0, is_disturbed=True)},
        disturbed=["far"],
    )

    assert sorted(decide(evidence)) == ["base", "far"]
