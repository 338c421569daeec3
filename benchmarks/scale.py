"""What a cluster of many GPUs, and a sweep of many trials, would cost: four parts, each of which can be run alone.

`efficiency`: how well 1 to 64 slots are kept busy with trials of about 5 s, on Ray nodes with GPUs that exist in name
only. `driver`: milliseconds and memory of the driver per trial, against bare Tune. `proposals`: seconds in which the
search's model chooses the next of 400 candidates for 64 slots. `rank`: `kvray rank` over 1,000,000 runs in 10,000 files
against a scan of the same files by DuckDB. With `--only PART,…` the other figures in the JSON file stay as they are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from output import Figure, make_parser, print_table, write_figures
from scale_proposals import measure_proposals
from scale_records import measure_rank
from scale_sweeps import measure_driver, measure_efficiency

PARTS: Mapping[str, Callable[[bool], dict[str, Figure]]] = {
    "efficiency": measure_efficiency,
    "driver": measure_driver,
    "proposals": measure_proposals,
    "rank": measure_rank,
}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--only", metavar="PART,…", help=f"some of {', '.join(PARTS)}")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",") if arguments.only else list(PARTS)
    if unknown := set(chosen) - PARTS.keys():
        parser.error(f"unknown part {', '.join(sorted(unknown))}; allowed: {', '.join(PARTS)}")
    figures: dict[str, Figure] = {}
    for part in chosen:
        started = time.monotonic()
        found = PARTS[part](arguments.quick)
        print_table(f"{part}: {time.monotonic() - started:.0f} s", ("figure", "value"), list(found.items()))
        figures |= found
        write_figures(arguments.json, {**_before(arguments.json), **figures}, quick=arguments.quick)


def _before(path: Path | None) -> dict[str, Figure]:
    """The figures that lie in `path` already."""
    if path is None or not path.exists():
        return {}
    known: dict[str, Figure] = json.loads(path.read_text(encoding="utf-8"))
    return known


if __name__ == "__main__":
    main()
