"""`kvray tune --dry-run`: cells, limits, search, candidates with what is forecast of them, rejections with reasons."""

from __future__ import annotations

import dataclasses
import json

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kvray.candidate import Candidate
from kvray.config import TuneConfig
from kvray.forecast.prediction import Forecast
from kvray.jobs.sent_model import as_typed, is_sent
from kvray.record import short_model_name
from kvray.report.facts import limits_text, weights_text
from kvray.report.formats import clean_line, duration_range, listed, plural, quantity
from kvray.report.searching import confirming_text, strategy_text
from kvray.sweep.outlook import Range, expected_launches, expected_seconds
from kvray.tuning.preview import Preview, Rest


def print_preview(preview: Preview, config: TuneConfig, *, as_json: bool) -> None:
    """Show what a sweep of `config` would measure, and how it would search."""
    if as_json:
        others = [_as_dict(one, config) for one in preview.other_types]
        told = _as_dict(preview, config)
        typer.echo(json.dumps({**told, "other_gpu_types": others} if others else told, indent=2))
        return
    console = Console()
    for one in (preview, *preview.other_types):
        _print_one(console, one, config)
    console.print("Nothing was started.", style="dim")


def expected_time(preview: Preview, config: TuneConfig) -> Range | None:
    """What the sweep will take by forecast, within the budget; `None` where no times are forecast."""
    space, forecasts = preview.space, preview.forecasts
    if not forecasts or (preview.rest is not None and preview.rest.is_answered):
        return None
    expected = expected_seconds(
        forecasts[space.baseline.candidate_id],
        [forecasts[one.candidate_id] for one in space.candidates if one != space.baseline],
        launches=expected_launches(config.search, len(space.candidates), most=config.max_trials),
        repeats=preview.profile.repeats,
        confirm_rounds=config.confirm_rounds,
        slots=1 if config.exclusive else config.slots or max(1, preview.device.gpu_count),
        measured=0 if preview.rest is None else preview.rest.measured,
    )
    if expected is None or config.budget_s is None:
        return expected
    return min(expected[0], config.budget_s), min(expected[1], config.budget_s)


def _print_one(console: Console, preview: Preview, config: TuneConfig) -> None:
    """What is measured on one type of GPU."""
    model, device, space = preview.model, preview.device, preview.space
    name = short_model_name(as_typed(config.model_id) if is_sent(config.model_id) else model.model_id)
    console.print(Text(f"{name} ({model.architecture}) on {device.device_name} ({device.device})", style="bold"))
    if preview.others:
        console.print(Text(f"engines: {', '.join(preview.engines)}; the baseline is the first one's default"))
        _print_models(console, preview)
    for one in preview.refused:
        console.print(Text(f"left out: {one.engine}: {clean_line(one.reason)}", style="yellow"), soft_wrap=True)
    print_notes(console, preview)
    cells = sorted({cell for size in preview.profile.batch_sizes for cell in preview.profile.cells(size, rung=2)})
    runs, labels = plural(preview.profile.repeats, "run"), ", ".join(cell.label for cell in cells)
    console.print(Text(f"profile {preview.profile.name}, {runs} of each cell: {labels}"))
    console.print(Text(f"score by {weights_text(preview.profile)}"))
    console.print(Text(f"limits: {limits_text(preview.profile.limits) or 'none'}"))
    for told in preview.unreachable_limits:
        console.print(Padding(Text(told, style="yellow"), (0, 0, 0, 2), expand=False))
    if preview.rest is not None:
        console.print(Text(_rest_text(preview.rest, max_trials=config.max_trials), style="bold"))
    strategy = strategy_text(
        config.search, len(space.candidates), max_trials=config.max_trials, budget_s=config.budget_s
    )
    console.print(Text(f"search by {strategy}"))
    console.print(Text(f"confirming: {confirming_text(config.confirm_rounds)}"))
    if config.exclusive:
        console.print(Text("exclusive: one trial at a time on each machine"))
    if (expected := expected_time(preview, config)) is not None:
        console.print(Text(f"expected to take {duration_range(*expected)}, by forecast{_too_long(preview)}"))
    _print_candidates(console, preview, config)
    if space.rejected:
        _print_rejected(console, preview)
    if preview.left_out:
        pairs = [(f"{axis} {value}", reason) for axis, value, reason in preview.left_out]
        # One engine fits on a screen; what several lack has few reasons.
        (_print_by_reason if preview.others else _print_pairs)(console, "Not in this space", pairs)


def _too_long(preview: Preview) -> str:
    every = (one.hardware.disturbance for one in (preview, *preview.others) if one.hardware is not None)
    told = next(filter(None, every), None)
    return f". That is more than it will take: while this device's rates were measured, {told}" if told else ""


def _rest_text(rest: Rest, *, max_trials: int | None) -> str:
    """What is left of a sweep that is resumed."""
    known = f"{rest.measured} of {plural(rest.measured + len(rest.left), 'candidate')}"
    confirmed = f", and {plural(rest.confirming, 'confirming trial')}" if rest.confirming else ""
    begin = f"going on with sweep {rest.run_id}: {known} measured before{confirmed}"
    if rest.is_answered:
        return f"{begin}; nothing new is asked, so nothing is left to measure"
    if not rest.left:
        return f"{begin}; what is left is confirming"
    if max_trials is not None and rest.measured >= max_trials:
        return f"{begin}; --max-trials {max_trials} is reached, so what is left is confirming"
    again = f", {len(rest.again)} of them again" if rest.again else ""
    most = len(rest.left) if max_trials is None else max_trials - rest.measured
    if most < len(rest.left):
        return f"{begin}; --max-trials {max_trials} lets the search launch {most} of the other {len(rest.left)}{again}"
    return f"{begin}; the search may launch the other {len(rest.left)}{again}"


def _print_models(console: Console, preview: Preview) -> None:
    """Which file each engine takes, where they are not the same."""
    models = {one.space.baseline.engine: one.model for one in (preview, *preview.others)}
    if len({one.model_id for one in models.values()}) > 1:
        told = (f"{engine} {one.name} ({one.weights})" for engine, one in models.items())
        console.print(Text(clean_line(f"models: {', '.join(told)}")))


def print_notes(console: Console, preview: Preview) -> None:
    """What a reader of the figures must know of the model, as any engine has it."""
    for note in preview.notes:
        console.print(Text(f"note: {clean_line(note)}"))
    if preview.hint is not None:
        console.print(Text(f"hint: {clean_line(preview.hint)}"))


def _print_candidates(console: Console, preview: Preview, config: TuneConfig) -> None:
    shown = _to_launch(preview)
    if not shown:
        return
    title = "Candidates" if preview.rest is None else "Not measured yet"
    console.print(Text(f"\n{title} ({len(shown)})", style="bold"))
    if preview.forecasts:
        _print_forecasts(console, preview, config)
        return
    for candidate in shown:
        console.print(Text(f"  {candidate.candidate_id}  {candidate.label}{_mark(candidate, preview)}"), soft_wrap=True)


def _print_forecasts(console: Console, preview: Preview, config: TuneConfig) -> None:
    """Predicted means over the cells, and the highest peak of any."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("  id", no_wrap=True)
    table.add_column("forecast:", overflow="fold")
    for heading in ("TTFT ms", "tok/s", "peak MiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for candidate in _to_launch(preview):
        one = preview.forecasts[candidate.candidate_id]
        figures = (one.ttft_ms, one.decode_tok_s, one.highest_peak_mib)
        table.add_row(
            Text(f"  {candidate.candidate_id}"),
            Text(f"{candidate.label}{_mark(candidate, preview)}"),
            *(quantity(figure) for figure in figures),
        )
    console.print(table)
    unmeasured = [one.space.baseline.engine for one in (preview, *preview.others) if one.hardware is None]
    if unmeasured:
        where = ", run on the node" if config.address else ""
        by = f" by {listed(unmeasured)}" if preview.others else ""
        console.print(
            "No times are forecast, and peaks lack what the engine's library holds itself, because this device was "
            f"not measured{by} yet. kvray forecast measures it{where}.",
            style="dim",
        )


def _to_launch(preview: Preview) -> tuple[Candidate, ...]:
    if preview.rest is None:
        return preview.space.candidates
    return () if preview.rest.is_answered else preview.rest.left


def _mark(candidate: Candidate, preview: Preview) -> str:
    again = preview.rest is not None and candidate.candidate_id in preview.rest.again
    default = "  its engine's default" if candidate in preview.defaults else ""
    return ("  baseline" if candidate == preview.space.baseline else default) + ("  again" if again else "")


def _print_rejected(console: Console, preview: Preview) -> None:
    rejected = [(one.candidate.label, one.reason) for one in preview.space.rejected]
    _print_by_reason(console, f"Rejected ({len(rejected)})", rejected)


def _print_by_reason(console: Console, title: str, pairs: list[tuple[str, str]]) -> None:
    """Each reason once, above the names that it concerns."""
    console.print(Text(f"\n{title}", style="bold"))
    for reason in dict.fromkeys(reason for _, reason in pairs):
        names = [name for name, own in pairs if own == reason]
        console.print(Padding(Text(reason), (0, 0, 0, 2), expand=False))
        console.print(Padding(Text(", ".join(names), style="dim"), (0, 0, 0, 4), expand=False))


def _print_pairs(console: Console, title: str, pairs: list[tuple[str, str]]) -> None:
    console.print(Text(f"\n{title}", style="bold"))
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
    table.add_column(no_wrap=True)
    for name, reason in pairs:
        table.add_row(Text(f"  {name}"), Text(reason))
    console.print(table)


def _as_dict(preview: Preview, config: TuneConfig) -> dict[str, object]:
    profile, space, forecasts = preview.profile, preview.space, preview.forecasts
    return {
        "model": dataclasses.asdict(preview.model),
        **({"engines": list(preview.engines)} if len(preview.engines) > 1 else {}),
        **(
            {"other_models": {one.space.baseline.engine: dataclasses.asdict(one.model) for one in preview.others}}
            if preview.others
            else {}
        ),
        "device": preview.device.device_name,
        "profile": profile.model_dump(),
        "dropped_contexts": list(preview.dropped_contexts),
        "unreachable_limits": list(preview.unreachable_limits),
        "cells": [list(cell) for size in profile.batch_sizes for cell in profile.cells(size, rung=2)],
        "search": {
            "strategy": config.search.value,
            "budget_s": config.budget_s,
            "max_trials": config.max_trials,
            "confirm_rounds": config.confirm_rounds,
            "seed": config.seed,
            "exclusive": config.exclusive,
        },
        **({} if preview.rest is None else {"resumes": _rest_as_dict(preview.rest)}),
        "expected_s": expected_time(preview, config),
        "baseline": space.baseline.candidate_id,
        "candidates": [
            {
                "candidate_id": one.candidate_id,
                "label": one.label,
                **one.to_dict(),
                "forecast": _forecast_as_dict(forecasts.get(one.candidate_id)),
            }
            for one in space.candidates
        ],
        "rejected": [{"label": one.candidate.label, "reason": one.reason} for one in space.rejected],
        "not_in_space": [{"axis": axis, "value": value, "reason": reason} for axis, value, reason in preview.left_out],
    }


def _rest_as_dict(rest: Rest) -> dict[str, object]:
    return {
        "run_id": rest.run_id,
        "measured": rest.measured,
        "confirming_trials": rest.confirming,
        "is_answered": rest.is_answered,
        "left": [one.candidate_id for one in rest.left],
        "again": list(rest.again),
    }


def _forecast_as_dict(forecast: Forecast | None) -> dict[str, float | None] | None:
    if forecast is None:
        return None
    return {
        "ttft_ms": forecast.ttft_ms,
        "decode_tok_s": forecast.decode_tok_s,
        "peak_mib": forecast.peak_mib,
        "highest_peak_mib": forecast.highest_peak_mib,
    }
