"""Two sides: what became slower or larger, and whether by more than a margin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvray.analysis.comparison import ComparedMetric, Comparison, MetricComparison, SideSamples, Verdict, compare
from kvray.analysis.evidence import Array
from kvray.workload import Cell

TTFT, DECODE, MEMORY = ComparedMetric
CELLS = (Cell(128, 32, 1), Cell(512, 32, 1))
MARGINS = {TTFT: 0.05, DECODE: 0.05, MEMORY: 0.02}
USUAL = np.log([100.0, 50.0, 1000.0])
SPREAD = np.array([0.02, 0.01, 0.002])


def make_side(
    rounds: int = 8,
    *,
    seed: int = 0,
    session: str = "here",
    cells: tuple[Cell, ...] = CELLS,
    factors: tuple[float, float, float] = (1.0, 1.0, 1.0),
    common: Array | None = None,
) -> SideSamples:
    """A side whose metrics are `factors` times the usual ones; `common` is what the machine adds in each round."""
    noise = np.random.default_rng(seed).normal(size=(rounds, 1, 3)) * SPREAD
    shared = np.zeros(rounds) if common is None else common
    logs = USUAL + np.log(factors) + noise + shared[:, None, None] * np.array([1.0, -1.0, 0.0])
    return SideSamples(
        cells=cells,
        logs=np.repeat(logs, len(cells), axis=1),
        rounds=np.arange(1, rounds + 1),
        sessions=(session,) * rounds,
        disturbed=np.zeros(rounds, dtype=np.bool_),
    )


def changed(
    side: SideSamples, *, row: int | slice, cell: int | slice, metric: ComparedMetric, to: float
) -> SideSamples:
    """A copy in which a value is `to` (logarithms)."""
    logs = side.logs.copy()
    logs[row, cell, metric.column] = to
    return SideSamples(
        cells=side.cells, logs=logs, rounds=side.rounds, sessions=side.sessions, disturbed=side.disturbed
    )


def of(comparison: Comparison, metric: ComparedMetric) -> MetricComparison:
    return next(one for one in comparison.metrics if one.metric is metric)


def test_the_same_code_passes() -> None:
    found = compare(make_side(), make_side(seed=1), margins=MARGINS)
    assert found.verdict is Verdict.PASS
    assert [one.verdict for one in found.metrics] == [Verdict.PASS] * 3
    assert found.rounds == 8
    assert found.more_rounds is None
    assert found.problems == ()
    assert of(found, TTFT).before == pytest.approx(100.0, rel=0.03)
    assert of(found, TTFT).change.low < 0 < of(found, TTFT).change.high


@pytest.mark.parametrize(
    ("metric", "factors"),
    [(TTFT, (1.15, 1.0, 1.0)), (DECODE, (1.0, 0.85, 1.0)), (MEMORY, (1.0, 1.0, 1.05))],
)
def test_what_is_worse_than_its_margin_fails(metric: ComparedMetric, factors: tuple[float, float, float]) -> None:
    found = compare(make_side(), make_side(seed=1, factors=factors), margins=MARGINS)
    assert found.verdict is Verdict.FAIL
    assert [one.metric for one in found.metrics if one.verdict is Verdict.FAIL] == [metric]
    assert of(found, metric).change.value == pytest.approx(
        dict(zip(ComparedMetric, factors, strict=True))[metric] - 1, abs=0.02
    )


def test_what_is_better_passes() -> None:
    found = compare(make_side(), make_side(seed=1, factors=(0.8, 1.3, 0.9)), margins=MARGINS)
    assert found.verdict is Verdict.PASS


def test_what_lies_on_the_margin_is_inconclusive_and_says_what_it_would_take() -> None:
    found = compare(make_side(4), make_side(4, seed=1, factors=(1.03, 1.0, 1.0)), margins=MARGINS)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert of(found, TTFT).verdict is Verdict.INCONCLUSIVE
    assert 1 <= (found.more_rounds or 0) <= 100


def test_what_fails_alone_is_not_certain_enough_among_many() -> None:
    before, slower = make_side(6), make_side(6, seed=1, factors=(1.1, 1.0, 1.0))
    alone, among = (compare(before, slower, margins=MARGINS, together=count) for count in (1, 27))
    assert (of(alone, TTFT).verdict, of(among, TTFT).verdict) == (Verdict.FAIL, Verdict.INCONCLUSIVE)
    assert of(alone, TTFT).change == of(among, TTFT).change
    assert (of(among, TTFT).more_rounds or 0) > 0
    much = compare(before, make_side(6, seed=1, factors=(1.3, 1.0, 1.0)), margins=MARGINS, together=27)
    assert much.verdict is Verdict.FAIL


def test_one_cell_that_fails_alone_is_not_certain_enough_among_many() -> None:
    before, now = make_side(6), make_side(6, seed=1)
    slower = changed(now, row=slice(None), cell=0, metric=TTFT, to=now.logs[:, 0, 0] + np.log(1.11))
    alone, among = (compare(before, slower, margins=MARGINS, together=count) for count in (1, 27))
    assert (len(alone.cells), among.cells) == (1, ())


def test_what_passes_is_the_same_among_many() -> None:
    before, now = make_side(), make_side(seed=1)
    alone, among = (compare(before, now, margins=MARGINS, together=count) for count in (1, 100))
    assert among == alone


def test_what_is_better_alone_is_not_certain_enough_among_many() -> None:
    before, faster = make_side(), make_side(seed=1, factors=(0.95, 1.0, 1.0))
    alone, among = (compare(before, faster, margins=MARGINS, together=count) for count in (1, 27))
    assert [one.is_better for one in alone.metrics] == [True, False, False]
    assert [one.is_better for one in among.metrics] == [False] * 3
    much = compare(before, make_side(seed=1, factors=(0.8, 1.0, 1.0)), margins=MARGINS, together=27)
    assert of(much, TTFT).is_better


def test_what_is_better_needs_the_certainty_of_all_its_metrics() -> None:
    """The 95 % interval alone is below 0 here."""
    before, faster = make_side(), make_side(seed=1, factors=(0.967, 1.0, 1.0))
    found = of(compare(before, faster, margins=MARGINS), TTFT)
    assert found.change.high < 0
    assert not found.is_better


def test_a_metric_without_a_margin_is_shown_and_not_judged() -> None:
    found = compare(make_side(), make_side(seed=1, factors=(2.0, 1.0, 1.0)), margins={DECODE: 0.05})
    assert of(found, TTFT).verdict is None
    assert of(found, TTFT).change.value > 0.9
    assert found.verdict is Verdict.PASS


def test_pairs_take_out_what_the_machine_does_to_both_sides() -> None:
    """The machine became half as fast in the course of the rounds."""
    drift = np.linspace(0, 0.7, 8)
    found = compare(make_side(common=drift), make_side(seed=1, common=drift), margins=MARGINS)
    assert found.verdict is Verdict.PASS


def test_a_record_of_another_session_is_less_certain() -> None:
    pairs = compare(make_side(), make_side(seed=1), margins=MARGINS)
    record = compare(make_side(session="then"), make_side(seed=1), margins=MARGINS)
    for metric in ComparedMetric:
        assert width(record, metric) > 1.3 * width(pairs, metric)


def test_more_rounds_cannot_undo_what_differs_between_sessions() -> None:
    found = compare(make_side(session="then"), make_side(seed=1, factors=(1.03, 1.0, 1.0)), margins={TTFT: 0.05})
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.more_rounds is None


def test_rounds_of_another_session_are_no_pairs() -> None:
    """A round that both happen to have does not take out what the machine did in two sittings."""
    drift = np.linspace(0, 0.7, 8)
    record = compare(make_side(session="then", common=drift), make_side(seed=1, common=drift), margins=MARGINS)
    assert record.verdict is Verdict.INCONCLUSIVE


def width(comparison: Comparison, metric: ComparedMetric) -> float:
    change = of(comparison, metric).change
    return change.high - change.low


def test_one_outlying_process_decides_nothing() -> None:
    outlier = changed(make_side(seed=1), row=3, cell=slice(None), metric=TTFT, to=USUAL[0] + np.log(2.0))
    found = compare(make_side(), outlier, margins=MARGINS)
    assert found.verdict is not Verdict.FAIL
    assert of(found, TTFT).change.value < 0.03


@pytest.mark.parametrize("slow_side", [0, 1])
def test_the_values_of_both_sides_tell_of_the_same_change_as_the_interval_does(slow_side: int) -> None:
    sides = [make_side(), make_side(seed=1)]
    sides[slow_side] = changed(sides[slow_side], row=0, cell=slice(None), metric=TTFT, to=USUAL[0] + np.log(4.0))
    found = compare(*sides, margins=MARGINS)
    for one in found.metrics:
        assert one.now / one.before == pytest.approx(1 + one.change.value)
    assert of(found, TTFT).before == pytest.approx(100.0, rel=0.03), "the outlier moves neither side's value"
    assert of(found, TTFT).now == pytest.approx(100.0, rel=0.06)


def test_two_modes_are_not_taken_for_outliers() -> None:
    """Three of eight processes are 60 % slower: the mean tells, the median would not."""
    modes = changed(make_side(seed=1), row=slice(0, 3), cell=slice(None), metric=TTFT, to=USUAL[0] + np.log(1.6))
    found = compare(make_side(), modes, margins=MARGINS)
    assert found.verdict is not Verdict.PASS
    assert of(found, TTFT).change.value > 0.12


def test_one_cell_that_is_much_worse_does_not_hide_in_the_mean() -> None:
    cells = tuple(Cell(128 * number, 32, 1) for number in range(1, 10))
    now = make_side(seed=1, cells=cells)
    slow = changed(now, row=slice(None), cell=2, metric=TTFT, to=now.logs[:, 2, TTFT.column] + np.log(1.3))
    found = compare(make_side(cells=cells), slow, margins=MARGINS)
    assert of(found, TTFT).verdict is not Verdict.FAIL
    assert [(one.cell, one.metric, one.verdict) for one in found.cells] == [(cells[2], TTFT, Verdict.FAIL)]
    assert found.cells[0].change.low < 0.3 < found.cells[0].change.high
    assert found.verdict is Verdict.FAIL


def test_a_cell_that_is_missing_now_is_a_failure() -> None:
    found = compare(make_side(), make_side(seed=1, cells=CELLS[:1]), margins=MARGINS)
    assert found.verdict is Verdict.FAIL
    assert found.problems == ("The cell 512→32 was measured before, but not now.",)


def test_a_cell_that_was_missing_before_is_never_a_pass() -> None:
    found = compare(make_side(cells=CELLS[:1]), make_side(seed=1), margins=MARGINS)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.problems == ("The cell 512→32 was not measured before.",)


@pytest.mark.parametrize(("side", "verdict"), [("now", Verdict.FAIL), ("before", Verdict.INCONCLUSIVE)])
def test_a_metric_that_one_side_lacks_is_never_a_pass(side: str, verdict: Verdict) -> None:
    sides = {"before": make_side(), "now": make_side(seed=1)}
    sides[side] = changed(sides[side], row=slice(None), cell=slice(None), metric=MEMORY, to=np.nan)
    found = compare(sides["before"], sides["now"], margins=MARGINS)
    assert found.verdict is verdict
    assert [one.metric for one in found.metrics] == [TTFT, DECODE]
    assert "Peak memory" in found.problems[0]


def test_a_metric_that_neither_side_has_is_not_judged() -> None:
    sides = [
        changed(make_side(seed=seed), row=slice(None), cell=slice(None), metric=MEMORY, to=np.nan) for seed in (0, 1)
    ]
    assert compare(*sides, margins=MARGINS).verdict is Verdict.PASS


@pytest.mark.parametrize("value", [np.nan, -np.inf, USUAL[0] + np.log(3.1)], ids=["nan", "zero", "three times"])
def test_a_collapsed_process_forbids_a_pass_and_two_are_a_failure(value: float) -> None:
    one = changed(make_side(seed=1), row=2, cell=0, metric=TTFT, to=value)
    found = compare(make_side(), one, margins=MARGINS)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.problems[0].startswith("1 of 8 processes collapsed now: time to first token of 128→32 is missing")
    two = changed(one, row=5, cell=1, metric=TTFT, to=value)
    assert compare(make_side(), two, margins=MARGINS).verdict is Verdict.FAIL


@pytest.mark.parametrize("rounds", [1, 8])
def test_no_failure_rests_on_processes_of_now_that_were_all_disturbed(rounds: int) -> None:
    """Other programs may have slowed them. That a value is missing is not their fault, nor is memory."""
    calm = changed(make_side(rounds, seed=1), row=slice(None), cell=0, metric=TTFT, to=USUAL[0] + np.log(4.0))
    disturbed = replace(calm, disturbed=np.ones(rounds, dtype=np.bool_))
    found = compare(make_side(rounds), disturbed, margins=MARGINS)
    assert found.problems[0].startswith(f"{rounds} of {rounds} processes collapsed now")
    assert found.verdict is Verdict.INCONCLUSIVE
    assert compare(make_side(rounds), calm, margins=MARGINS).verdict is Verdict.FAIL
    missing = replace(disturbed, logs=np.where(np.arange(3) == TTFT.column, np.nan, disturbed.logs))
    assert compare(make_side(rounds), missing, margins=MARGINS).verdict is Verdict.FAIL
    larger = make_side(8, seed=1, factors=(1.0, 1.0, 1.1))
    larger = replace(larger, disturbed=np.ones(8, dtype=np.bool_))
    assert of(compare(make_side(), larger, margins=MARGINS), MEMORY).verdict is Verdict.FAIL
    both = replace(make_side(), disturbed=np.ones(8, dtype=np.bool_))
    slower = replace(make_side(8, seed=1, factors=(1.2, 1.0, 1.0)), disturbed=np.ones(8, dtype=np.bool_))
    assert compare(both, slower, margins=MARGINS).verdict is Verdict.FAIL, "both took turns on the busy machine"


def test_where_the_spread_between_sittings_is_known_it_is_that_which_counts() -> None:
    sides = make_side(session="then"), make_side(seed=1, session="now")
    usual = of(compare(*sides, margins=MARGINS), TTFT).change
    own = dict.fromkeys(ComparedMetric, 0.01)
    known = of(compare(*sides, margins=MARGINS, session_sd=own), TTFT).change
    assert usual.high - usual.low > 3 * (known.high - known.low)


def test_what_files_of_libraries_take_of_the_memory_is_not_compared() -> None:
    """The second copy of the libraries takes 50 MiB less of each process, and 2 % more is the program's own."""
    before = replace(make_side(), library_mib=np.full(8, 120.0))
    peaks = np.exp(make_side(seed=1).logs)
    peaks[..., MEMORY.column] = np.exp(before.logs[..., MEMORY.column]) * 1.02 - 50.0
    now = replace(make_side(seed=1), logs=np.log(peaks), library_mib=np.full(8, 70.0))
    found = of(compare(before, now, margins=MARGINS), MEMORY)
    assert found.change.value == pytest.approx(0.02, abs=1e-9)
    assert found.now == pytest.approx(1.02 * found.before)
    unknown = of(compare(replace(before, library_mib=None), now, margins=MARGINS), MEMORY)
    assert unknown.change.value < 0.02


def test_nothing_in_common_is_never_a_pass() -> None:
    other = make_side(seed=1, cells=(Cell(1024, 32, 1),))
    found = compare(make_side(), other, margins=MARGINS)
    assert found.metrics == ()
    assert found.verdict is Verdict.FAIL
    empty = make_side(0)
    assert compare(empty, make_side(), margins=MARGINS).verdict is Verdict.INCONCLUSIVE
    assert compare(make_side(), empty, margins=MARGINS).verdict is Verdict.FAIL


def test_a_single_process_a_side_is_too_little_to_tell_ten_per_cent() -> None:
    found = compare(make_side(1), make_side(1, seed=1, factors=(1.1, 1.0, 1.0)), margins=MARGINS)
    assert of(found, TTFT).verdict is Verdict.INCONCLUSIVE


def test_two_rounds_are_too_few_for_any_verdict_by_the_intervals() -> None:
    """Nobody can tell an outlying process from a change."""
    found = compare(make_side(2), make_side(2, seed=1, factors=(2.0, 1.0, 0.5)), margins={TTFT: 0.05, MEMORY: 0.02})
    assert [one.verdict for one in found.metrics] == [Verdict.INCONCLUSIVE, None, Verdict.INCONCLUSIVE]
    assert of(found, MEMORY).more_rounds == 1


def test_disturbed_processes_count_only_where_there_are_no_others() -> None:
    now = changed(make_side(seed=1), row=2, cell=slice(None), metric=TTFT, to=USUAL[0] + np.log(4.0))
    now.disturbed[2] = True
    found = compare(make_side(), now, margins=MARGINS)
    assert (found.verdict, found.rounds) == (Verdict.PASS, 7)
    now.disturbed[:] = True
    assert compare(make_side(), now, margins=MARGINS).rounds == 8
