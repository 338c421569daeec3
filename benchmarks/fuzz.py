"""Feeds kvray broken and hostile input of every kind that it reads, as many as asked, and counts the inputs.

The properties are those of `tests/fuzz`, which `make test` runs with few inputs. Here each module of them runs in a
process of its own with memory limited, so that a native crash or a hang in native code is counted too: the input that
it met lies in the folder that is printed then. Any other broken promise is shown by Hypothesis, shrunk, and ends that
property.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from output import Figure, make_parser, print_table, write_figures

INPUTS, QUICK_INPUTS = 10_000, 100
MEMORY_MIB = 6_000
NOTES, INPUTS_VARIABLE = "KVRAY_FUZZ_NOTES", "KVRAY_FUZZ_INPUTS"
FAILED = 1
"""Exit code of pytest where properties do not hold."""
MODULES = sorted((Path(__file__).parents[1] / "tests" / "fuzz").glob("test_*.py"))
Tallies = dict[str, tuple[int, int, float]]
"""For each kind: the inputs, how many were accepted, the seconds."""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--inputs", type=int, help=f"of each property (default {INPUTS:,}; {QUICK_INPUTS} with --quick)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="modules that are fed at the same time")
    parser.add_argument("--only", default="", help="only modules whose name contains this")
    arguments = parser.parse_args()
    inputs = arguments.inputs or (QUICK_INPUTS if arguments.quick else INPUTS)
    folder = Path(tempfile.mkdtemp(prefix="kvray-fuzz-"))
    modules = [module for module in MODULES if arguments.only in module.name]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        codes = list(pool.map(lambda module: feed(module, inputs, folder), modules))
    tallies = read_tallies(folder / "notes")
    report(tallies)
    write_figures(arguments.json, figures(tallies, codes), quick=arguments.quick)
    sys.exit(any(codes))


def feed(module: Path, inputs: int, folder: Path) -> int:
    """Exit code of the process that runs the properties of `module`; negative where a signal ended it."""
    notes, place = folder / "notes", folder / module.stem
    notes.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pytest", str(module), "--hypothesis-profile=deep", f"--basetemp={place}"]
    command += ["--timeout=0"]  # each input has its own
    environment = {**os.environ, NOTES: str(notes), INPUTS_VARIABLE: str(inputs), "OMP_NUM_THREADS": "1"}
    environment |= {"TRANSFORMERS_VERBOSITY": "critical", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, cwd=module.parents[2], preexec_fn=_limit_memory, check=False)
    if done.returncode not in (0, FAILED):
        print(f"{module.name} ended with {done.returncode}; its last input lies in {place}", file=sys.stderr)
        for stalled in place.glob("*/stalled.txt"):
            print(stalled.read_text(encoding="utf-8"), file=sys.stderr)
    return done.returncode


def _limit_memory() -> None:
    """Let allocations fail beyond that much private memory, before the machine does."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_MIB << 20, MEMORY_MIB << 20))


def read_tallies(folder: Path) -> Tallies:
    """What the processes had noted when they ended, however they did."""
    notes = {path.name: path.read_text(encoding="utf-8").split() for path in sorted(folder.iterdir())}
    return {kind: (int(one[0]), int(one[1]), float(one[2])) for kind, one in notes.items() if len(one) == 3}


def report(tallies: Tallies) -> None:
    """The table for people."""
    print_table(
        "Broken and hostile input",
        ("kind", "inputs", "accepted", "seconds"),
        [(kind, inputs, accepted, seconds) for kind, (inputs, accepted, seconds) in tallies.items()],
    )


def figures(tallies: Tallies, codes: list[int]) -> dict[str, Figure]:
    """Totals, and inputs by kind."""
    ends = Counter("broken" if code == FAILED else "crashed" for code in codes if code)
    return {
        "inputs": sum(inputs for inputs, _, _ in tallies.values()),
        "modules_with_broken_promises": ends["broken"],
        "modules_crashed_or_stalled": ends["crashed"],
        **{f"inputs_{kind}": inputs for kind, (inputs, _, _) in tallies.items()},
        **{f"accepted_{kind}": accepted for kind, (_, accepted, _) in tallies.items()},
        **{f"seconds_{kind}": seconds for kind, (_, _, seconds) in tallies.items()},
    }


if __name__ == "__main__":
    main()
