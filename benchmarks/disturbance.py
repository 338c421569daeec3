"""What kvray calls a disturbed run: shares of runs marked, without and beside other programs, by the length of a run.

A tiny Llama generates in runs of about 1, 10 and 100 ms while 0, 1 or as many programs as there are CPUs compute beside
it. Each row says how many times as long unmarked and marked runs took as unmarked ones beside no program. Where other
work cannot be stopped, `--isolated FOLDER` names a control group (version 1, high `cpu.shares`) to enter: it comes near
a quiet machine.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from output import make_parser, print_table, write_figures

from kvray.candidate import DeviceType
from kvray.probes.disturbance import TrialWatch

SHAPES: Mapping[str, tuple[int, int, int, int]] = {
    "1 ms": (64, 1, 32, 3),
    "10 ms": (64, 4, 128, 8),
    "100 ms": (256, 6, 512, 32),
}
"""Hidden size, layers, prompt and generated tokens of a run of about that length on two cores."""
BUSY = "while True: pass"
MOST_RUNS = 300


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One run."""

    seconds: float
    disturbed: bool


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--isolated", type=Path, metavar="FOLDER", help="a control group to enter")
    arguments = parser.parse_args()
    if arguments.isolated is not None:
        (arguments.isolated / "cgroup.procs").write_text(str(os.getpid()))
    seconds = 1.0 if arguments.quick else 5.0
    cpus = os.cpu_count() or 1
    runs = {
        (length, number): timed_runs(generation(*shape), number, seconds)
        for length, shape in SHAPES.items()
        for number in sorted({0, 1, cpus})
    }
    print_table(
        f"Runs that are marked, and how long they take, on {cpus} CPUs",
        ("run", "other programs", "runs", "marked", "unmarked take", "marked take"),
        [row(length, number, runs) for length, number in runs],
    )
    quiet = [one for (_, number), some in runs.items() if number == 0 for one in some]
    busy = [one for (_, number), some in runs.items() if number == cpus for one in some]
    figures = {"marked_share_quiet": marked_share(quiet), "marked_share_busy": marked_share(busy)}
    write_figures(arguments.json, figures, quick=arguments.quick)


def row(length: str, number: int, runs: Mapping[tuple[str, int], Sequence[Timed]]) -> tuple[object, ...]:
    """One line of the table."""
    some, calm = runs[length, number], [one.seconds for one in runs[length, 0] if not one.disturbed]
    usual = statistics.median(calm) if calm else float("nan")
    marked = [one.seconds / usual for one in some if one.disturbed]
    unmarked = [one.seconds / usual for one in some if not one.disturbed]
    return (
        length,
        number,
        len(some),
        marked_share(some),
        statistics.median(unmarked) if unmarked else "none",
        statistics.median(marked) if marked else "none",
    )


def marked_share(runs: Sequence[Timed]) -> float:
    """Share of `runs` that are marked as disturbed."""
    return sum(one.disturbed for one in runs) / len(runs)


def timed_runs(generate: Callable[[], None], programs: int, seconds: float) -> list[Timed]:
    """Runs for `seconds` beside as many other `programs`; one at least."""
    runs: list[Timed] = []
    for _ in range(5):
        generate()
    with others(programs):
        watch, end = TrialWatch(DeviceType.CPU), time.perf_counter() + seconds
        while not runs or (time.perf_counter() < end and len(runs) < MOST_RUNS):
            watched, started = watch.start_run(), time.perf_counter()
            generate()
            took = time.perf_counter() - started
            runs.append(Timed(seconds=took, disturbed=watched.finish().disturbance is not None))
    return runs


@contextmanager
def others(number: int) -> Iterator[None]:
    """So many programs compute meanwhile."""
    programs = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(number)]
    time.sleep(0.3)
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def generation(hidden: int, layers: int, context: int, tokens: int) -> Callable[[], None]:
    """A greedy generation of a Llama of that size with random weights."""
    import torch
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
    )
    model: Any = LlamaForCausalLM(config).eval()
    prompt = torch.ones(1, context, dtype=torch.long)

    def generate() -> None:
        cache, step = DynamicCache(config=config), prompt
        with torch.no_grad():
            for _ in range(tokens):
                step = model(step, past_key_values=cache).logits[:, -1:].argmax(-1)
                step.item()

    return generate


if __name__ == "__main__":
    main()
