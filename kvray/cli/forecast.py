"""`kvray forecast`: what fits, how fast it would be, and how long a context may get. Loads no weights."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvray.candidate import AttentionBackend, AttentionChoice, Candidate
from kvray.cli import options
from kvray.cli.parsing import parse_memory_limit
from kvray.cli.preview import print_notes
from kvray.cli.progress import MEASURING
from kvray.cli.sweep_options import (
    LoadingOptions,
    MachineOptions,
    SpaceOptions,
    SweepOptions,
    WorkloadOptions,
    tune_config,
)
from kvray.engines.offline import offline_environment
from kvray.engines.registry import get_engine
from kvray.errors import InvalidValueError, ModelError
from kvray.forecast.cost_model import CostModel
from kvray.forecast.prediction import Forecast, does_not_fit, longest_context
from kvray.record import short_model_name
from kvray.report.formats import quantity
from kvray.tuning.preview import Preview, forecast_only
from kvray.tuning.resolved import check_request, resolve, with_measured_rates

app = typer.Typer(add_completion=False)


@app.command()
@options.with_groups
def forecast(
    model: options.Model,
    workload: WorkloadOptions,
    space: SpaceOptions,
    loading: LoadingOptions,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory to plan with, instead of what is free now: 8GiB.")
    ] = None,
    engine_python: options.EnginePython = None,
    as_json: options.AsJson = False,
) -> None:
    """Predict what fits and how fast it is from the model's config and this device's measured rates.

    The device is measured at the first call. Nothing of the model is loaded.
    """
    machine = MachineOptions(engine_python=engine_python)
    config = tune_config(model, SweepOptions(workload=workload, space=space, loading=loading, machine=machine))
    planned_mib = None if memory is None else parse_memory_limit(memory, option="--memory")
    if len(config.engines) > 1:
        raise InvalidValueError(
            f"A forecast is made for one engine, not for {config.engine!r}.", hint="Name one of them."
        )
    checked = check_request(config, get_engine(config.engine))
    with offline_environment(enabled=config.offline):
        # Whether the model can be loaded on this device is not asked: the forecast may be for another.
        resolved = with_measured_rates(
            resolve(checked, for_this_device=False),
            before_measuring=lambda: typer.echo(f"kvray: {MEASURING}", err=True),
        )
        preview = forecast_only(resolved, free_mib=planned_mib)
    if preview.costs is None:
        raise ModelError(
            f"Nothing can be forecast of {preview.model.name}: "
            f"{preview.model.shape_unknown or f'engine {config.engine} forecasts nothing of it'}.",
            hint="kvray tune measures it.",
        )
    if as_json:
        typer.echo(json.dumps(_as_dict(preview), indent=2))
    else:
        _print(Console(), preview)


def _all_forecast(preview: Preview) -> list[tuple[Candidate, Forecast]]:
    """Everything that was forecast, the baseline first and what was rejected for its forecast last."""
    space = preview.space
    candidates = (*space.candidates, *(rejected.candidate for rejected in space.rejected))
    return [(one, preview.forecasts[one.candidate_id]) for one in candidates if one.candidate_id in preview.forecasts]


def _objection(preview: Preview, forecast: Forecast) -> str | None:
    return does_not_fit(forecast, preview.hardware, preview.free_mib)


def _print(console: Console, preview: Preview) -> None:
    model, device = preview.model, preview.device
    name = short_model_name(model.model_id)
    console.print(Text(f"{name} ({model.architecture}) on {device.device_name} ({device.device})", style="bold"))
    print_notes(console, preview)
    free = "unknown" if preview.free_mib is None else f"{quantity(preview.free_mib)} MiB"
    console.print(Text(f"profile {preview.profile.name} · free memory {free}"))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("candidate", overflow="fold")
    table.add_column("fits")
    for heading in ("mean\nTTFT ms", "mean\ntok/s", "highest\npeak MiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for candidate, one in _all_forecast(preview):
        fits = _objection(preview, one) is None
        table.add_row(
            Text(candidate.label + ("  baseline" if candidate == preview.space.baseline else "")),
            Text("yes", "green") if fits else Text("no", "red"),
            *(
                "–" if value is None else quantity(value)
                for value in (one.ttft_ms, one.decode_tok_s, one.highest_peak_mib)
            ),
        )
    console.print(table)
    _print_objections(console, preview)
    _print_limits(console, preview)
    console.print("These are predictions; kvray tune measures.", style="dim")


def _print_objections(console: Console, preview: Preview) -> None:
    """Why the leanest of those that do not fit does not: that is, how much memory would let one more fit."""
    too_large = [one for _, one in _all_forecast(preview) if _objection(preview, one) is not None]
    leanest = min(too_large, key=lambda one: one.highest_peak_mib, default=None)
    if leanest is not None:
        console.print(Text(f"The leanest that does not fit {_objection(preview, leanest)}."), style="dim")


def _print_limits(console: Console, preview: Preview) -> None:
    limits = _limits(preview)
    if not limits:
        return
    new = max(preview.profile.output_lengths)
    attentions = {one["attention"] for one in limits}
    assumed = f" and {attentions.pop()} attention" if len(attentions) == 1 else ""
    console.print(Text(f"\nLongest prompt that fits, with {new} new tokens after it{assumed}", style="bold"))
    columns = list(dict.fromkeys(one["column"] for one in limits))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("cache", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    for cache in dict.fromkeys(one["cache"] for one in limits):
        texts = {one["column"]: _limit_text(one, preview, assumed) for one in limits if one["cache"] == cache}
        table.add_row(Text(cache), *(texts.get(column, "") for column in columns))
    console.print(table)


def _limit_text(limit: dict[str, Any], preview: Preview, assumed: str) -> str:
    """The tokens, with the attention where it is not `assumed` for all."""
    tokens = limit["context_tokens"]
    attention = "" if assumed else f" ({limit['attention']})"
    if tokens == _longest_prompt(preview):
        return f"{tokens:,}, the model's limit{attention}"
    return f"{tokens:,}{attention}" if tokens else f"none{attention}"


def _longest_prompt(preview: Preview) -> int | None:
    """The longest prompt that the model holds together with the longest answer; `None` if it has no limit."""
    most = preview.model.max_context
    return None if most is None else max(0, most - max(preview.profile.output_lengths))


def _limits(preview: Preview) -> list[dict[str, Any]]:
    """For every cache, dtype and batch size, with the leanest attention that is forecast; empty without a memory."""
    costs, free_mib = preview.costs, preview.free_mib
    if costs is None or free_mib is None:
        return []
    leanest: dict[tuple[str, str], Candidate] = {}
    for candidate, _ in sorted(_all_forecast(preview), key=lambda pair: pair[0].attention is AttentionBackend.EAGER):
        batch = f" ×{candidate.batch_size}" if candidate.batch_size > 1 else ""
        leanest.setdefault((str(candidate.cache_choice), f"{candidate.dtype}{batch}"), candidate)
    return [
        {
            "cache": cache,
            "column": column,
            "candidate_id": candidate.candidate_id,
            "attention": str(AttentionChoice(candidate.attention, candidate.hub_kernel)),
            "context_tokens": _fitting_prompt(candidate, preview, costs, free_mib),
        }
        for (cache, column), candidate in leanest.items()
    ]


def _fitting_prompt(candidate: Candidate, preview: Preview, costs: CostModel, free_mib: float) -> int:
    """How many prompt tokens memory and model allow."""
    tokens = longest_context(
        costs,
        candidate,
        output_tokens=max(preview.profile.output_lengths),
        device=preview.device.device,
        hardware=preview.hardware,
        free_mib=free_mib,
    )
    most = _longest_prompt(preview)
    return tokens if most is None else min(tokens, most)


def _as_dict(preview: Preview) -> dict[str, object]:
    return {
        "model_id": preview.model.model_id,
        "architecture": preview.model.architecture,
        "max_context": preview.model.max_context,
        "notes": list(preview.model.notes),
        "device": preview.device.device_name,
        "free_mib": preview.free_mib,
        "hardware": None if preview.hardware is None else dataclasses.asdict(preview.hardware),
        "profile": preview.profile.name,
        "baseline": preview.space.baseline.candidate_id,
        "candidates": [
            {
                "candidate_id": candidate.candidate_id,
                "label": candidate.label,
                "objection": _objection(preview, one),
                **dataclasses.asdict(one),
            }
            for candidate, one in _all_forecast(preview)
        ],
        "longest_contexts": [
            {name: one[name] for name in ("cache", "candidate_id", "attention", "context_tokens")}
            for one in _limits(preview)
        ],
    }
