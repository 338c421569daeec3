"""What a report says of how sure the ranking is."""

from __future__ import annotations

import re
from dataclasses import replace

from report_sweeps import BASELINE, WINNER, info_of, measured

from kvray.analysis.choice import Choice, Reason
from kvray.analysis.confidence import Confidence
from kvray.analysis.intervals import Interval
from kvray.record import Role
from kvray.report.certainty import confidence_sentence
from kvray.report.info import ReportInfo
from kvray.report.rows import Row

CONFIRMED = Confidence(
    choice=Choice(candidate_id="c", over="c", reason=Reason.BEST),
    winner_share=0.97,
    near_share=0.99,
    replicates=2000,
    processes=3,
    runs=9,
    ties=(),
    ttft_ms=Interval(value=100.0, low=90.0, high=110.0),
    decode_tok_s=Interval(value=50.0, low=49.0, high=51.0),
)
ONE_PROCESS = replace(CONFIRMED, processes=1, runs=3, assumed_process_noise=True)


def ranked(pairs: int = 0) -> tuple[Row, ...]:
    """A winner and the baseline, with `pairs` confirming rounds each."""
    trials = [measured(BASELINE, role=Role.BASELINE), measured(WINNER, speed=1.9)]
    for number in range(1, pairs + 1):
        trials += [
            measured(BASELINE, role=Role.CONFIRM, process=number),
            measured(WINNER, speed=1.9, role=Role.CONFIRM, process=number),
        ]
    return info_of(trials).rows


def test_confidence_of_repeated_processes_says_how_many() -> None:
    sentence = confidence_sentence(CONFIRMED, ranked())
    assert sentence.startswith(
        "Confidence 97 %: in 97 % of 2,000 resamplings of the measurements it won; in 99 % nothing was better than it "
        "by more than 2 %. The winner, its ties and the baseline each ran in at least 3 fresh processes, with at least "
        "9 timed runs of each cell."
    )
    assert "assumed" not in sentence


def test_to_win_every_resampling_is_not_certainty() -> None:
    assert confidence_sentence(replace(CONFIRMED, winner_share=1.0), ranked()).startswith("Confidence over 99 %: ")


def test_without_a_gain_the_share_is_that_in_which_nothing_was_better() -> None:
    no_gain = replace(CONFIRMED, choice=Choice(candidate_id="b", over="c", reason=Reason.NO_GAIN), near_share=0.84)
    sentence = confidence_sentence(no_gain, ranked())
    assert sentence.startswith(
        "In 84 % of 2,000 resamplings of the measurements nothing was better than the baseline by more than 2 %."
    )


def test_a_disturbed_sweep_claims_no_confidence() -> None:
    sentence = confidence_sentence(replace(CONFIRMED, is_disturbed=True, winner_share=0.5), ranked())
    assert sentence.startswith("How sure this order is cannot be said, because too many runs were disturbed.")
    assert "Confidence" not in sentence


def test_gains_say_where_they_come_from_and_how_far_to_trust_them() -> None:
    assert "The 95 % intervals of its gains are 1." in confidence_sentence(CONFIRMED, ranked())
    paired = confidence_sentence(CONFIRMED, ranked(pairs=2))
    assert (
        "Its gains come from 2 confirming rounds, in which it and the baseline ran one after the other; their 95 % "
        "intervals are 1."
    ) in paired


def test_a_first_token_that_takes_longer_has_an_interval_of_the_time_it_takes() -> None:
    info = info_of([measured(BASELINE, role=Role.BASELINE), measured(WINNER, speed=40.0, prefill=1 / 3.4)])
    assert "× as long" in info.headline.sentence
    told = re.search(r"are ([\d.]+)× to ([\d.]+)× as long for the first token, ", info.headline.confidence)
    assert told is not None, info.headline.confidence
    assert float(told[1]) < 3.4 < float(told[2])


def test_confidence_of_one_process_says_that_the_spread_is_assumed() -> None:
    sentence = confidence_sentence(ONE_PROCESS, ranked())
    assert "Each candidate ran in one process (at least 3 timed runs of each cell)" in sentence
    assert "how much processes differ is assumed, not measured" in sentence


def test_candidates_with_one_process_are_named_where_others_have_more() -> None:
    rows = ranked(pairs=1)
    rows = (replace(rows[0], processes=1), *rows[1:])
    assert (
        f"{WINNER.label} ran in one process only, so how much its processes differ is assumed from the others', not "
        "measured; the least measured cell has 9 timed runs."
    ) in confidence_sentence(CONFIRMED, rows)


def test_the_confidence_says_how_many_it_leaves_out() -> None:
    rows = ranked()
    assert confidence_sentence(ONE_PROCESS, rows, stopped=7).endswith(" The 7 stopped early are not included.")
    assert confidence_sentence(ONE_PROCESS, rows, stopped=1).endswith(" The 1 stopped early is not included.")
    both = confidence_sentence(ONE_PROCESS, rows, stopped=3, skipped=40)
    assert both.endswith(" The 3 stopped early and 40 not launched are not included.")
    assert "included" not in confidence_sentence(ONE_PROCESS, rows)


def test_an_analysis_without_confidence_is_said_to_have_none() -> None:
    assert confidence_sentence(None, ranked()) == "How sure this order is was not computed."


def test_a_whole_report_states_its_confidence(realistic: ReportInfo) -> None:
    assert realistic.headline.confidence.startswith("Confidence ")
