"""`kvray profiles`: the built-in workload profiles."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from kvray.workload import get_profile, list_profiles

app = typer.Typer(add_completion=False)


@app.command()
def profiles(
    name: Annotated[str | None, typer.Argument(help="Print this profile as JSON, a start for one of your own.")] = None,
) -> None:
    """List the built-in workload profiles, or print one as JSON."""
    if name is not None:
        typer.echo(get_profile(name).model_dump_json(indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for heading in ("profile", "contexts", "outputs", "runs", "weights*"):
        table.add_column(heading, no_wrap=True)
    table.add_column("for")
    for known in list_profiles():
        profile = get_profile(known)
        weights = (profile.weight_ttft, profile.weight_throughput, profile.weight_memory)
        table.add_row(
            known,
            "/".join(str(length) for length in profile.context_lengths),
            "/".join(str(length) for length in profile.output_lengths),
            str(profile.repeats),
            "/".join(f"{weight * 100:.0f}" for weight in weights),
            profile.description,
        )
    console = Console()
    console.print(table)
    console.print("* of TTFT, throughput and memory in the score, in per cent", style="dim")
