"""What limits are compared with: the worst cell, the 95th percentile of gaps, the memory that must be free."""

from __future__ import annotations

import math

import pytest
from analysis_samples import make_candidate, make_record, make_run
from evidence_samples import make_evidence

from kvray.analysis.aggregate import CellMetrics, aggregate_cells
from kvray.analysis.evidence import DECODE, PEAK, TTFT
from kvray.analysis.intervals import metric_interval
from kvray.analysis.limits import ONE_PROCESS_95, Miss, is_loss_in_doubt, kept_limits, missed_limits, missed_quality
from kvray.workload import Cell, Limits

SHORT, LONG = Cell(128, 32, 1), Cell(8192, 32, 1)
RECORD = make_record(make_candidate())


def two_cells(short: dict[str, float | None], long: dict[str, float | None]) -> tuple[CellMetrics, ...]:
    runs = [make_run(cell=SHORT, **short), make_run(cell=LONG, **long)]  # type: ignore[arg-type]
    return aggregate_cells(runs)


def test_a_limit_must_hold_in_the_slowest_cell_and_not_in_the_mean() -> None:
    cells = two_cells({"ttft_ms": 50.0}, {"ttft_ms": 512.0})

    (miss,) = missed_limits(RECORD, cells, Limits(max_ttft_ms=400.0))

    assert (miss.cell, miss.measured) == (LONG, 512.0)
    assert miss.text == "TTFT 512 ms at 8192→32, 28 % over the limit of 400 ms"
    assert missed_limits(RECORD, cells, Limits(max_ttft_ms=512.0)) == ()


def test_the_least_throughput_of_any_cell_must_reach_the_limit() -> None:
    cells = two_cells({"decode_tok_s": 90.0}, {"decode_tok_s": 30.0})

    (miss,) = missed_limits(RECORD, cells, Limits(min_decode_tok_s=40.0))

    assert miss.text == "decode throughput 30 tok/s at 8192→32, 25 % under the limit of 40 tok/s"
    assert missed_limits(RECORD, cells, Limits(min_decode_tok_s=30.0)) == ()


def test_the_memory_of_the_hungriest_cell_must_fit() -> None:
    cells = two_cells({"peak_mib": 1000.0}, {"peak_mib": 9000.0})

    (miss,) = missed_limits(RECORD, cells, Limits(max_peak_mib=8000.0))

    assert miss.text == "peak memory 9,000 MiB at 8192→32, 12 % over the limit of 8,000 MiB"


def test_on_a_gpu_what_the_process_holds_beside_its_allocator_must_fit_too() -> None:
    cells = two_cells({"peak_mib": 1000.0}, {"peak_mib": 7800.0})
    on_gpu = RECORD.with_(reserved_peak_mib=9000.0, device_peak_mib=9500.0)

    (miss,) = missed_limits(on_gpu, cells, Limits(max_peak_mib=8000.0))

    assert miss.measured == 8300.0
    assert missed_limits(RECORD, cells, Limits(max_peak_mib=8000.0)) == ()
    given_back = RECORD.with_(reserved_peak_mib=9000.0, device_peak_mib=8000.0)
    assert missed_limits(given_back, cells, Limits(max_peak_mib=8000.0)) == ()


def test_on_several_gpus_the_one_that_holds_most_must_have_the_memory() -> None:
    cells = two_cells({"peak_mib": 1000.0}, {"peak_mib": 11000.0})
    spread = RECORD.with_(parallelism=2, reserved_peak_mib=11000.0, device_peak_mib=12000.0, device_peak_gpu_mib=9000.0)

    (miss,) = missed_limits(spread, cells, Limits(max_peak_mib=8000.0))

    assert miss.text == "peak memory of one GPU 9,000 MiB at 8192→32, 12 % over the limit of 8,000 MiB"
    even = spread.with_(device_peak_gpu_mib=6000.0)
    assert missed_limits(even, cells, Limits(max_peak_mib=8000.0)) == ()
    (miss,) = missed_limits(spread.with_(device_peak_gpu_mib=None), cells, Limits(max_peak_mib=8000.0))
    assert miss.measured == 12000.0, "an older record, or a driver that does not tell"


def test_gaps_between_tokens_are_judged_by_their_95th_percentile() -> None:
    steady_but_one = (20.0,) * 30 + (500.0,)
    one_in_ten = ((20.0,) * 9 + (60.0,)) * 3
    limits = Limits(max_itl_ms=50.0)

    assert missed_limits(RECORD, aggregate_cells([make_run(itl_ms=steady_but_one)]), limits) == ()
    (miss,) = missed_limits(RECORD, aggregate_cells([make_run(itl_ms=one_in_ten)]), limits)
    assert miss.text == "ITL (p95) 60 ms at 128→32, 20 % over the limit of 50 ms"


def test_what_was_not_measured_in_every_cell_cannot_be_within_a_limit() -> None:
    cells = two_cells({"peak_mib": 1000.0}, {"peak_mib": None})

    (miss,) = missed_limits(RECORD, cells, Limits(max_peak_mib=8000.0))

    assert miss.text == "peak memory was not measured, so the limit of 8,000 MiB cannot be checked"
    assert miss.factor == math.inf


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        ({"kl_mean": 0.1, "kl_decode": 1.0}, []),
        ({"kl_mean": None, "kl_decode": None}, []),
        ({"kl_mean": 0.2, "kl_decode": 2.0}, ["quality loss 0.2 nats per token, 2.00× the limit of 0.1"]),
        ({"kl_mean": 0.05, "kl_decode": 2.0}, ["quality loss over the tokens decoded one by one 2"]),
    ],
)
def test_a_loss_of_quality_that_a_record_has_is_judged_by_the_limit(
    loss: dict[str, float | None], told: list[str]
) -> None:
    misses = missed_limits(RECORD.with_(**loss), two_cells({}, {}), Limits(max_quality_loss=0.1))
    assert [miss.limit_name for miss in misses] == ["max_quality_loss"] * len(told)
    assert all(miss.text.startswith(text) for miss, text in zip(misses, told, strict=True))
    assert missed_limits(RECORD.with_(**loss), two_cells({}, {}), Limits(max_quality_loss=None)) == ()


def test_without_limits_nothing_is_missed() -> None:
    assert missed_limits(RECORD, two_cells({}, {}), Limits()) == ()


@pytest.mark.parametrize(("measured", "limit"), [(800.0, 400.0), (20.0, 40.0)])
def test_twice_the_time_and_half_the_speed_are_equally_far_beyond(measured: float, limit: float) -> None:
    assert Miss(limit_name="l", metric="m", unit="u", limit=limit, measured=measured).factor == 2.0


@pytest.mark.parametrize(
    ("measured", "limit", "text"),
    [
        (400.4, 400.0, "m 400 u, less than 1 % over the limit of 400 u"),
        (0.0125, 0.01, "m 0.0125 u, 25 % over the limit of 0.01 u"),
        (12345.6, 1000.0, "m 12,346 u, 12.3× the limit of 1,000 u"),
        (34.1, 100.0, "m 34.1 u, 0.34× the limit of 100 u"),
    ],
)
def test_a_miss_tells_three_figures_or_whole_numbers(measured: float, limit: float, text: str) -> None:
    assert Miss(limit_name="l", metric="m", unit="u", limit=limit, measured=measured).text == text


def test_a_miss_on_disturbed_runs_alone_is_doubtful_and_says_so() -> None:
    cells = aggregate_cells([make_run(cell=SHORT, ttft_ms=50.0), make_run(cell=LONG, ttft_ms=900.0, disturbed=True)])

    (miss,) = missed_limits(RECORD, cells, Limits(max_ttft_ms=400.0))

    assert miss.is_disturbed
    assert miss.is_doubtful()
    assert miss.text == "TTFT 900 ms at 8192→32 (every run of it disturbed), 2.25× the limit of 400 ms"


def test_undisturbed_runs_of_a_cell_decide_whatever_disturbed_ones_showed() -> None:
    calm = make_run(cell=LONG, ttft_ms=390.0)
    cells = aggregate_cells([calm, make_run(cell=LONG, ttft_ms=900.0, disturbed=True)])
    assert missed_limits(RECORD, cells, Limits(max_ttft_ms=400.0)) == ()


def test_where_an_undisturbed_cell_misses_too_it_is_the_one_that_is_told_and_there_is_no_doubt() -> None:
    cells = aggregate_cells([make_run(cell=SHORT, ttft_ms=600.0), make_run(cell=LONG, ttft_ms=900.0, disturbed=True)])

    (miss,) = missed_limits(RECORD, cells, Limits(max_ttft_ms=400.0))

    assert (miss.cell, miss.measured, miss.is_disturbed) == (SHORT, 600.0, False)
    assert not miss.is_doubtful()


def test_other_programs_leave_no_doubt_about_memory() -> None:
    cells = aggregate_cells([make_run(cell=LONG, peak_mib=9000.0, disturbed=True)])

    (miss,) = missed_limits(RECORD, cells, Limits(max_peak_mib=8000.0))

    assert not miss.is_doubtful()


@pytest.mark.parametrize(
    ("limit_name", "measured", "is_doubtful"),
    [
        ("max_ttft_ms", 450.0, True),
        ("max_ttft_ms", 470.0, False),
        ("min_decode_tok_s", 385.0, True),
        ("min_decode_tok_s", 380.0, False),
        ("max_peak_mib", 406.0, True),
        ("max_peak_mib", 407.0, False),
        ("max_ttft_ms", None, False),
    ],
)
def test_a_miss_by_less_than_the_noise_of_one_process_is_doubtful(
    limit_name: str, measured: float | None, is_doubtful: bool
) -> None:
    assert (
        Miss(limit_name=limit_name, metric="m", unit="u", limit=400.0, measured=measured).is_doubtful() is is_doubtful
    )


def test_the_noise_of_one_process_is_that_which_confidence_rests_on() -> None:
    alone = make_evidence({f"c{number}": [(0, 100.0, 50.0, 1000.0)] for number in range(4)})
    columns = {"max_ttft_ms": TTFT, "min_decode_tok_s": DECODE, "max_peak_mib": PEAK}
    for limit_name, column in columns.items():
        assert ONE_PROCESS_95[limit_name] == pytest.approx(metric_interval(alone, "c0", column).half_width, rel=0.1)


@pytest.mark.parametrize(
    ("loss", "missed", "in_doubt"),
    [
        ({"kl_mean": 0.02, "kl_upper": 0.05, "kl_decode": 0.1, "kl_decode_upper": 0.9}, [], False),
        ({"kl_mean": 0.02, "kl_upper": 0.3, "kl_decode": 0.1, "kl_decode_upper": 0.9}, [], True),
        ({"kl_mean": 0.02, "kl_upper": 0.05, "kl_decode": 0.1, "kl_decode_upper": 2.0}, [], True),
        (
            {"kl_mean": 0.2, "kl_upper": 3.0},
            ["quality loss of at least 0.2 nats per token, 2.00× the limit of 0.1 nats per token"],
            False,
        ),
        ({"kl_mean": 0.02}, [], False),
    ],
)
def test_bounds_of_a_loss_miss_the_limit_by_the_lower_one_and_leave_doubt_by_the_upper_one(
    loss: dict[str, float], missed: list[str], in_doubt: bool
) -> None:
    limits = Limits(max_quality_loss=0.1)
    record = RECORD.with_(**loss)
    assert [miss.text for miss in missed_quality(record, limits)] == missed
    assert is_loss_in_doubt(record, limits) is in_doubt
    assert not is_loss_in_doubt(record, Limits(max_quality_loss=None))


def test_kept_limits_tell_the_worst_cell_and_not_a_mean() -> None:
    cells = aggregate_cells(
        [make_run(cell=SHORT, ttft_ms=90.0, peak_mib=800.0), make_run(cell=LONG, ttft_ms=223.0, peak_mib=700.0)]
    )
    assert kept_limits(RECORD, cells, Limits(max_ttft_ms=400.0, max_peak_mib=1024.0)) == (
        f"TTFT 223 ms at {LONG.label} (limit 400 ms)",
        f"peak memory 800 MiB at {SHORT.label} (limit 1,024 MiB)",
    )
    assert kept_limits(RECORD, cells, Limits()) == ()
