"""A dry run: how it would search, and what is forecast of each candidate."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from kvray.candidate import DeviceType
from kvray.cli.batch_preview import sweep_lines
from kvray.cli.preview import print_preview
from kvray.config import CONFIRM_ROUNDS, TuneConfig
from kvray.forecast.prediction import CellForecast, Forecast
from kvray.space.search_space import RejectedCandidate
from kvray.testing.fake import FakeAdapter
from kvray.tuning.preview import Preview, Refusal, preview_sweep
from kvray.tuning.resolved import check_request, resolve
from kvray.workload import Cell, Limits, create_custom_profile


def config(**values: Any) -> TuneConfig:
    return TuneConfig(model_id="fake:ok", profile="ci-micro", device=DeviceType.CPU, engine="fake", **values)


def previewed(given: TuneConfig) -> Preview:
    return preview_sweep(resolve(check_request(given, FakeAdapter())))


def with_forecasts(preview: Preview, ttft_ms: float | None) -> Preview:
    """`preview` as if the model's shape were known, and `ttft_ms` if the device were, too."""
    cell = CellForecast(
        cell=Cell(512, 32, 1),
        ttft_ms=ttft_ms,
        decode_tok_s=11.2,
        peak_mib=731.0,
        held_mib=700.0,
        ideal_decode_tok_s=9.0,
    )
    forecasts = {one.candidate_id: Forecast.of([cell]) for one in preview.space.candidates}
    return replace(preview, forecasts=forecasts)


def shown(capsys: pytest.CaptureFixture[str], preview: Preview, given: TuneConfig) -> str:
    print_preview(preview, given, as_json=False)
    return capsys.readouterr().out


def test_a_dry_run_says_how_it_would_search(capsys: pytest.CaptureFixture[str]) -> None:
    given = config(search="asha", budget_s=90.0, max_trials=10, confirm_rounds=0)
    text = " ".join(shown(capsys, previewed(given), given).split())
    assert (
        "search by asha: every candidate is launched; successive halving stops poor ones; at most 10 launches; at most "
        "1.5 min, confirming included. confirming: none."
    ) in text


def test_a_dry_run_says_first_which_engine_takes_no_part(capsys: pytest.CaptureFixture[str]) -> None:
    given = config()
    refused = (Refusal(engine="other", reason="It is not installed. Install it."),)
    text = shown(capsys, replace(previewed(given), refused=refused), given)
    assert text.splitlines()[1] == "left out: other: It is not installed. Install it."
    assert "left out" not in shown(capsys, previewed(given), given)


def test_a_dry_run_says_how_long_a_sweep_would_take(capsys: pytest.CaptureFixture[str]) -> None:
    given, short = config(), config(budget_s=30.0)
    preview = previewed(given)
    assert "expected to take" not in shown(capsys, with_forecasts(preview, None), given)
    assert "expected to take about " in shown(capsys, with_forecasts(preview, 512.0), given)
    assert "expected to take about 30 s, by forecast" in shown(capsys, with_forecasts(preview, 512.0), short)


def test_without_forecasts_candidates_are_listed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    given = config()
    text = shown(capsys, previewed(given), given)
    assert "dynamic/sdpa/float32  baseline\n" in text
    assert "forecast" not in text


def test_forecasts_stand_beside_the_candidates(capsys: pytest.CaptureFixture[str]) -> None:
    given = config()
    text = shown(capsys, with_forecasts(previewed(given), 1146.0), given)
    (line,) = [line for line in text.splitlines() if line.rstrip().endswith("731") and "baseline" in line]
    assert line.split()[1:] == ["dynamic/sdpa/float32", "baseline", "1,146", "11.2", "731"]


def test_a_device_that_was_not_measured_is_said_to_be_so(capsys: pytest.CaptureFixture[str]) -> None:
    given = config()
    assert "this device was not measured" in shown(capsys, with_forecasts(previewed(given), None), given)


def test_as_json_search_and_forecasts_are_there_too(capsys: pytest.CaptureFixture[str]) -> None:
    given = config(max_trials=3, seed=5)
    print_preview(with_forecasts(previewed(given), 1146.0), given, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["search"] == {
        "strategy": "model",
        "budget_s": None,
        "max_trials": 3,
        "confirm_rounds": CONFIRM_ROUNDS,
        "seed": 5,
        "exclusive": False,
    }
    assert told["candidates"][0]["forecast"]["highest_peak_mib"] == 731.0


def test_a_dry_run_shows_what_is_to_be_known_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    given = config()
    preview = previewed(given)
    preview = replace(preview, model=replace(preview.model, notes=("Its weights are packed.",)))
    assert "note: Its weights are packed.\n" in shown(capsys, preview, given)
    print_preview(preview, given, as_json=True)
    assert json.loads(capsys.readouterr().out)["model"]["notes"] == ["Its weights are packed."]


def test_a_limit_that_nothing_is_forecast_to_keep_is_told_and_cells_are_in_order(
    capsys: pytest.CaptureFixture[str],
) -> None:
    profile = create_custom_profile(
        "mine",
        context_lengths=(64, 2048, 512),
        output_lengths=(8,),
        weight_ttft=1.0,
        weight_throughput=0.0,
        weight_memory=0.0,
        limits=Limits(max_peak_mib=100.0),
    )
    given = TuneConfig(model_id="fake:ok", profile=profile, device=DeviceType.CPU, engine="fake")
    preview = with_forecasts(previewed(given), 5.0)
    text = " ".join(shown(capsys, preview, given).split())
    assert "3 runs of each cell: 64→8, 512→8, 2048→8" in text
    told = "No candidate is forecast to keep --max-vram 100 MiB in every cell: the leanest, "
    assert told in text
    print_preview(preview, given, as_json=True)
    assert json.loads(capsys.readouterr().out)["unreachable_limits"][0].startswith(told)


def test_a_batch_tells_of_each_model_what_is_forecast_and_what_stands_in_its_way() -> None:
    given = config(max_trials=4)
    preview = previewed(given)
    reasons = ["too large", "too large", "no such kernel", "odd", "rare"]
    pairs = zip(preview.space.candidates, reasons, strict=False)
    rejected = [RejectedCandidate(candidate=one, reason=reason) for one, reason in pairs]
    preview = replace(
        with_forecasts(preview, 512.0),
        space=replace(preview.space, rejected=tuple(rejected)),
        refused=(Refusal(engine="other", reason="It is not installed."),),
    )
    first, forecast, *rest = sweep_lines(preview, given)
    assert first.startswith(f"at most 4 of {len(preview.space.candidates)} candidates on ")
    assert re.fullmatch(r"forecast: about .*; peak 731 MiB; without the library's own memory .*", forecast)
    assert rest == [
        "engine other is left out: It is not installed.",
        "2 candidates rejected: too large",
        "1 candidate rejected: no such kernel",
        "1 candidate rejected: odd",
        "1 candidate rejected for 1 other reason",
    ]


def test_of_several_engines_each_reason_is_one_line_above_what_it_keeps_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = config()
    preview = previewed(given)
    several = replace(preview, others=(replace(preview, others=()),))
    told = shown(capsys, several, given)
    told = " ".join(told[told.index("Not in this space") :].split())
    reasons = [reason for _, _, reason in several.left_out]
    assert len(set(reasons)) < len(reasons)
    for reason in set(reasons):
        names = [f"{axis} {value}" for axis, value, own in several.left_out if own == reason]
        assert told.count(f"{reason} {', '.join(names)}") == 1
