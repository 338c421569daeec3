from __future__ import annotations

import datetime as dt

import pytest
from trial_samples import Scripted, ScriptedWatch, spec_of

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DType
from kvray.engines.base import Generation, ModelRequest
from kvray.testing.fake import FakeModel
from kvray.trial.measure import (
    MeasurementError,
    check_generation,
    decode_tok_s,
    itl_ms,
    measure_run,
    ttft_ms,
)
from kvray.workload import Cell

FOUR = Generation(started_s=10.0, token_s=(10.5, 10.6, 10.8, 11.0), tokens=((1, 2, 3, 4), (5, 6, 7, 8)))


def test_ttft_runs_from_the_prompt_to_the_first_token() -> None:
    assert ttft_ms(FOUR) == pytest.approx(500.0)


def test_inter_token_latencies_are_the_gaps_between_tokens() -> None:
    assert itl_ms(FOUR) == pytest.approx((100.0, 200.0, 200.0))


def test_throughput_leaves_the_first_token_out_and_counts_every_sequence() -> None:
    assert decode_tok_s(FOUR, batch_size=2) == pytest.approx(3 * 2 / 0.5)


STAGGERED = Generation.of_sequences(
    started_s=10.0,
    sequence_s=[(10.2, 10.3, 10.5), (10.4, 10.7, 10.8)],
    tokens=((1, 2, 3), (4, 5, 6)),
)


def test_sequences_that_are_not_in_lockstep_count_each_by_itself() -> None:
    assert STAGGERED.token_s == (10.4, 10.7, 10.8), "when every sequence has the token"
    assert STAGGERED.stamp_rows == ((10.2, 10.3, 10.5), (10.4, 10.7, 10.8))
    assert FOUR.stamp_rows == (FOUR.token_s,)
    assert ttft_ms(STAGGERED) == pytest.approx(300.0)
    assert itl_ms(STAGGERED) == pytest.approx((100.0, 200.0, 300.0, 100.0))
    assert decode_tok_s(STAGGERED, batch_size=2) == pytest.approx(2 * 2 / 0.6)
    check_generation(STAGGERED, 3, 2)


def test_a_missing_time_stamp_of_one_sequence_is_refused() -> None:
    for rows in ([(1.0, 2.0, 3.0)], [(1.0, 2.0, 3.0), (1.0, 2.0)]):
        torn = Generation.of_sequences(started_s=0.0, sequence_s=rows, tokens=STAGGERED.tokens)
        with pytest.raises(MeasurementError, match=r"2 × 3 tokens came with . × .* time stamps"):
            check_generation(torn, 3, 2)


def test_an_engine_whose_sequences_take_turns_is_measured_by_sequence() -> None:
    candidate = Candidate(
        engine="fake", cache=CacheStrategy.DYNAMIC, attention=AttentionBackend.SDPA, dtype=DType.FLOAT32, batch_size=2
    )
    for commands, rows in (("=staggered", 2), ("ok", 1)):
        model, cell = FakeModel(ModelRequest(model_id=f"fake:{commands}"), candidate), Cell(24, 4, 2)
        model.prepare(cell)
        run = measure_run(model, spec_of(batch_size=2), cell, rung=1, repeat=0, watch=ScriptedWatch())
        assert len(run.itl_ms) == rows * 3
        model.close()


@pytest.mark.parametrize(
    ("tokens", "batch", "message"),
    [(5, 2, r"asked for 2 × 5 tokens, got 2 × \[4\]"), (4, 3, r"asked for 3 × 4 tokens, got 2 × \[4\]")],
)
def test_a_generation_of_another_size_is_refused(tokens: int, batch: int, message: str) -> None:
    with pytest.raises(MeasurementError, match=message):
        check_generation(FOUR, tokens, batch)


def test_a_missing_time_stamp_is_refused() -> None:
    torn = Generation(started_s=0.0, token_s=(1.0, 2.0), tokens=((1, 2, 3),))
    with pytest.raises(MeasurementError, match="3 tokens came with 2 time stamps"):
        check_generation(torn, 3, 1)


def test_a_run_carries_its_cell_its_raw_gaps_and_its_own_peak() -> None:
    model = Scripted()
    model.prepare(Cell(24, 4, 2))
    run = measure_run(model, spec_of(batch_size=2), Cell(24, 4, 2), rung=2, repeat=1, watch=ScriptedWatch())
    assert run.cell == Cell(24, 4, 2)
    assert (run.rung, run.repeat) == (2, 1)
    assert run.ttft_ms == pytest.approx(1000.0)
    assert run.itl_ms == pytest.approx((100.0, 100.0, 100.0))
    assert run.peak_mib == 64.0
    assert run.reserved_peak_mib == 96.0
    assert run.started_at.tzinfo is dt.UTC
    assert model.calls[-3:] == ["reset_peak", "generate 4", "peak"]


def test_a_run_says_what_disturbed_it_and_what_energy_it_took() -> None:
    model = Scripted()
    watch = ScriptedWatch("thermal throttling", energy_j=12.5)
    first, second = (
        measure_run(model, spec_of(), Cell(24, 4, 1), rung=2, repeat=repeat, watch=watch) for repeat in range(2)
    )
    assert (first.disturbed, first.disturbance, first.energy_j) == (True, "thermal throttling", 12.5)
    assert (second.disturbed, second.disturbance) == (False, None)
