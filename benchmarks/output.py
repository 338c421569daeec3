"""How every benchmark speaks: a table for people, and with `--json FILE` one flat JSON object of figures."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kvray.probes.cpu import cpu_name, total_memory_mib
from kvray.probes.gpu import list_gpus

Figure = float | int | str | None | list[object]
PACKAGES = ("kvray", "torch", "transformers", "llama-cpp-python", "ray")


def parse_arguments(description: str | None) -> argparse.Namespace:
    """The arguments of a benchmark that has none of its own."""
    return make_parser(description).parse_args()


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """`--quick` for a run of fewer repeats, `--json FILE` for the figures."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer repeats: to see that it runs, not to quote")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    return parser


def print_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table with columns as wide as their widest cell; numbers to the right."""
    cells = [[_text(value) for value in row] for row in rows]
    widths = [max(len(head), *(len(row[column]) for row in cells)) for column, head in enumerate(heads)]
    print(f"\n{title}")
    print("  ".join(head.ljust(width) for head, width in zip(heads, widths, strict=True)))
    for row, texts in zip(rows, cells, strict=True):
        print("  ".join(_aligned(*column) for column in zip(row, texts, widths, strict=True)))


def write_figures(path: Path | None, figures: Mapping[str, Figure], *, quick: bool) -> None:
    """Write `figures` with the date, the hardware and the versions beside them."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**figures, "quick": quick, **machine()}, indent=2) + "\n", encoding="utf-8")
    print(f"\nfigures: {path}")


def machine() -> dict[str, Figure]:
    """Date, hardware and versions."""
    gpus = list_gpus()
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "memory_mib": round(total_memory_mib()),
        "gpu": gpus[0].name if gpus else None,
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _text(value: object) -> str:
    return f"{value:,.3f}" if isinstance(value, float) else str(value)


def _aligned(value: object, text: str, width: int) -> str:
    return text.rjust(width) if isinstance(value, int | float) else text.ljust(width)
