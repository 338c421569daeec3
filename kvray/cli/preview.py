"""`kvray tune --dry-run`: candidates, rejections with reasons, cells."""

from __future__ import annotations

import dataclasses
import json

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kvray.preview import Preview
from kvray.report.facts import limits_text, weights_text


def print_preview(preview: Preview, *, as_json: bool) -> None:
    """Show what a sweep would measure."""
    if as_json:
        typer.echo(json.dumps(_as_dict(preview), indent=2))
        return
    console = Console()
    model, device, space = preview.model, preview.device, preview.space
    console.print(
        Text(f"{model.model_id} ({model.architecture}) on {device.device_name} ({device.device})", style="bold")
    )
    cells = sorted({cell.label for size in preview.profile.batch_sizes for cell in preview.profile.cells(size, rung=2)})
    console.print(
        Text(f"profile {preview.profile.name}, {preview.profile.repeats} runs of each cell: {', '.join(cells)}")
    )
    console.print(Text(f"score by {weights_text(preview.profile)}"))
    console.print(Text(f"limits: {limits_text(preview.profile.limits) or 'none'}"))
    _print_candidates(console, preview)
    if space.rejected:
        _print_rejected(console, preview)
    if preview.left_out:
        _print_pairs(
            console,
            "Not in this space",
            [(f"{axis} {value}", reason) for axis, value, reason in preview.left_out],
        )
    console.print("Nothing was started.", style="dim")


def _print_candidates(console: Console, preview: Preview) -> None:
    space = preview.space
    console.print(Text(f"\nCandidates ({len(space.candidates)})", style="bold"))
    for candidate in space.candidates:
        mark = "  baseline" if candidate == space.baseline else ""
        console.print(Text(f"  {candidate.candidate_id}  {candidate.label}{mark}"), soft_wrap=True)


def _print_rejected(console: Console, preview: Preview) -> None:
    """Each reason once, above those whom it concerns."""
    rejected = preview.space.rejected
    console.print(Text(f"\nRejected ({len(rejected)})", style="bold"))
    for reason in dict.fromkeys(one.reason for one in rejected):
        labels = [one.candidate.label for one in rejected if one.reason == reason]
        console.print(Padding(Text(reason), (0, 0, 0, 2), expand=False))
        console.print(Padding(Text(", ".join(labels), style="dim"), (0, 0, 0, 4), expand=False))


def _print_pairs(console: Console, title: str, pairs: list[tuple[str, str]]) -> None:
    console.print(Text(f"\n{title}", style="bold"))
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
    table.add_column(no_wrap=True)
    for name, reason in pairs:
        table.add_row(Text(f"  {name}"), Text(reason))
    console.print(table)


def _as_dict(preview: Preview) -> dict[str, object]:
    profile, space = preview.profile, preview.space
    return {
        "model": dataclasses.asdict(preview.model),
        "device": preview.device.device_name,
        "profile": profile.model_dump(),
        "dropped_contexts": list(preview.dropped_contexts),
        "cells": [list(cell) for size in profile.batch_sizes for cell in profile.cells(size, rung=2)],
        "baseline": space.baseline.candidate_id,
        "candidates": [
            {"candidate_id": one.candidate_id, "label": one.label, **one.to_dict()} for one in space.candidates
        ],
        "rejected": [{"label": one.candidate.label, "reason": one.reason} for one in space.rejected],
        "not_in_space": [{"axis": axis, "value": value, "reason": reason} for axis, value, reason in preview.left_out],
    }
