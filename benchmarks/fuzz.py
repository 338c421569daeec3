"""Feeds kvray broken and hostile input of every kind that it reads, and counts what it does not meet as promised.

Promised: a result, or one line that names the problem; never a traceback, code of the input run, a write outside the
output and cache folders, a process or connection nobody asked for, a hang, or memory without bound. Inputs are
mutations of what kvray's own code has written. Each kind is fed in a process of its own, so that a native crash is
counted; `--only KIND --seed SEED --first NUMBER --inputs 1` repeats one input.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from output import Figure, make_parser, print_table, write_figures

if TYPE_CHECKING:
    from fuzz_mutator import Mutator
    from fuzz_plain import Kind

INPUTS, QUICK_INPUTS = 10_000, 100
STALLED_S = 120.0
MEMORY_MIB = 6_000
KINDS = (
    *("plans", "profiles", "spaces", "command_lines", "model_ids", "manifests", "records", "caches"),
    *("configs", "tokenizers", "weights", "gguf"),
)
PROMISES = ("tracebacks", "escapes", "hangs", "crashes")


@dataclass
class Tally:
    """What became of the inputs of one kind."""

    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0
    broken: Counter[str] = field(default_factory=Counter)
    examples: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By what was found: the first input's number, and how many there were."""

    def note(self, what: str, where: str, number: int) -> None:
        """A promise that was not kept."""
        self.broken[what] += 1
        first, count = self.examples.get(f"{what}: {where}", (number, 0))
        self.examples[f"{what}: {where}"] = first, count + 1


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--only", help="kinds with commas between; by default all", default=",".join(KINDS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--inputs", type=int, help=f"of each kind (default {INPUTS:,}; {QUICK_INPUTS} with --quick)")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--jobs", type=int, default=1, help="kinds that are fed at the same time")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    count = arguments.inputs or (QUICK_INPUTS if arguments.quick else INPUTS)
    if arguments.worker is not None:
        work(arguments.only, arguments.worker, arguments.seed, range(arguments.first, count))
        return
    kinds = arguments.only.split(",")
    with ThreadPoolExecutor(arguments.jobs) as pool:
        feeding = {kind: pool.submit(fuzz, kind, arguments.seed, arguments.first, count) for kind in kinds}
        tallies = {kind: one.result() for kind, one in feeding.items()}
    report(tallies)
    write_figures(arguments.json, figures(tallies, arguments.seed), quick=arguments.quick)
    sys.exit(1 if any(tally.broken for tally in tallies.values()) else 0)


def fuzz(kind: str, seed: int, first: int, count: int) -> Tally:
    """Feed `count` inputs of `kind`; a worker that dies or stalls is counted, and the next goes on behind it."""
    tally, started, number, end = Tally(), time.monotonic(), first, first + count
    while number < end:
        with tempfile.TemporaryDirectory(prefix="kvray-fuzz-") as folder:
            number = _one_worker(kind, seed, number, end, Path(folder), tally)
    tally.seconds = time.monotonic() - started
    report_findings(kind, tally, seed)
    return tally


def _one_worker(kind: str, seed: int, first: int, end: int, folder: Path, tally: Tally) -> int:
    """Run a worker as far as it comes; returns the number of the next input."""
    said, errors = folder / "said", folder / "errors"
    command = [sys.executable, __file__, "--only", kind, "--seed", str(seed), "--first", str(first)]
    command += ["--inputs", str(end), "--worker", str(folder / "place")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "critical", "COLUMNS": "120"}
    environment |= {"KVRAY_CACHE": str(folder / "place" / "cache"), "HF_HOME": str(folder / "place" / "hf")}
    environment |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    with said.open("wb") as out, errors.open("wb") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        stalled = _wait(process, said)
    number = first
    for line in said.read_text(encoding="utf-8", errors="replace").splitlines():
        number = _hear(line, tally, number)
    if number < end:
        tally.inputs += 1
        told = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = next((line for line in told if "Fatal" in line or "panicked" in line), told[-1] if told else "")
        tally.note("hangs" if stalled else "crashes", f"exit code {process.returncode}: {reason[:200]}", number)
        if number == first and first == 0 and not stalled:
            print("\n".join(told[-20:]), file=sys.stderr)
        number += 1
    return number


def _hear(line: str, tally: Tally, number: int) -> int:
    """One input's end, as the worker told it; returns the next number."""
    try:
        told = json.loads(line)
    except ValueError:  # torn by a kill
        return number
    tally.inputs += 1
    tally.accepted += told["accepted"]
    if told["what"]:
        tally.note(told["what"], told["where"], told["number"])
    return int(told["number"]) + 1


def _wait(process: subprocess.Popen[bytes], said: Path) -> bool:
    """Wait for the end; a worker that says nothing for `STALLED_S` is killed, and `True` returned."""
    size, since = -1, time.monotonic()
    while process.poll() is None:
        time.sleep(0.05)
        if (now := said.stat().st_size) != size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > STALLED_S:
            process.kill()
            process.wait()
            return True
    return False


def work(kind: str, root: Path, seed: int, numbers: range) -> None:
    """In a worker's process: feed the inputs, say what became of each."""
    sys.dont_write_bytecode = True
    _remember_what_no_input_changes()
    from fuzz_mutator import Mutator
    from fuzz_watch import Place, Watch, limit_memory

    place = Place(root)
    os.chdir(place.cwd)
    fed = _kind(kind)(place, Watch(place))
    limit_memory(MEMORY_MIB)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as voice:
        for number in numbers:
            accepted, what, where = _feed(fed, Mutator(f"{seed}/{kind}/{number}"))
            told = {"number": number, "accepted": accepted, "what": what, "where": where}
            voice.write(json.dumps(told) + "\n")
            voice.flush()


def _kind(name: str) -> type[Kind]:
    if name in ("configs", "tokenizers", "weights", "gguf"):
        import fuzz_models

        return fuzz_models.KINDS[name]
    import fuzz_plain
    import fuzz_results

    if name == "command_lines":
        from fuzz_models import quicken

        quicken()
    return {**fuzz_plain.KINDS, **fuzz_results.KINDS}[name]


def _remember_what_no_input_changes() -> None:
    """Installed packages, and commands by their functions: reading them anew is half of a short command line's time."""
    importlib.metadata.version = functools.cache(importlib.metadata.version)
    importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)  # type: ignore[assignment]
    typer.main.get_command = functools.cache(typer.main.get_command)


def _feed(kind: Kind, mutator: Mutator) -> tuple[bool, str | None, str]:
    from fuzz_watch import BrokenPromiseError, TimedOutError, described

    try:
        return kind.feed(mutator), None, ""
    except BrokenPromiseError as finding:
        return False, finding.what, finding.where
    except TimedOutError as error:
        return False, "hangs", described(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  (a panic of native code is no Exception)
        return False, "tracebacks", described(error)


def report_findings(kind: str, tally: Tally, seed: int) -> None:
    """Each finding once, with the first input that shows it."""
    for text, (number, count) in sorted(tally.examples.items(), key=lambda pair: -pair[1][1]):
        print(f"{kind}, {count} times, first by --seed {seed} --first {number} --inputs 1: {text}", file=sys.stderr)


def report(tallies: dict[str, Tally]) -> None:
    """The table for people."""
    print_table(
        "Broken and hostile input",
        ("kind", "inputs", "accepted", *PROMISES, "seconds"),
        [
            (kind, one.inputs, one.accepted, *(one.broken[what] for what in PROMISES), round(one.seconds, 1))
            for kind, one in tallies.items()
        ],
    )


def figures(tallies: dict[str, Tally], seed: int) -> dict[str, Figure]:
    """Totals, and inputs by kind. A hang and a native crash are tracebacks too: nothing told the user what is wrong."""
    totals = Counter[str]()
    for tally in tallies.values():
        totals.update(tally.broken)
    return {
        "inputs": sum(tally.inputs for tally in tallies.values()),
        "tracebacks": totals["tracebacks"] + totals["hangs"] + totals["crashes"],
        "escapes": totals["escapes"],
        "hangs": totals["hangs"],
        "crashes": totals["crashes"],
        "seed": seed,
        **{f"inputs_{kind}": tally.inputs for kind, tally in tallies.items()},
        **{f"accepted_{kind}": tally.accepted for kind, tally in tallies.items()},
        **{f"seconds_{kind}": round(tally.seconds, 1) for kind, tally in tallies.items()},
    }


if __name__ == "__main__":
    main()
