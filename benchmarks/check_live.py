"""Whether `kvray check` tells the truth on this machine: the same code against itself, and slowed by real causes.

First `kvray tune` measures a baseline: llama.cpp with the demo's model in one small cell, so that a trial takes about a
second. Then the real command judges A against B, in turn, in fresh processes:

* the same code 40 times against itself: nothing has changed, so FAIL is a false alarm;
* B slowed 20 times by what happens to people: one thread less, or all threads on one CPU. FAIL is right, and the
  result should name what differs;
* with `--other-python PATH`, B in another virtual environment 10 times, whose llama.cpp is an older version or was not
  compiled for this machine. FAIL is right if that one is slower, which its own `llama-bench` can tell.

With `--records FILE` each check adds a line to FILE, beside which the baseline lies, and the next call goes on from
there; with `--seconds S` it stops early, so that all of it can be measured in pieces.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from output import Figure, make_parser, print_table, write_figures
from overhead import demo_model

SAME = "same code"
SLOWED: Mapping[str, tuple[str, str]] = {
    "one thread less": ("OMP_NUM_THREADS", "1"),
    "all threads on one CPU": ("GOMP_CPU_AFFINITY", "0"),
}
OTHER_LIBRARY = "another llama.cpp"
CHECKS_OF_OTHER_LIBRARY = 10
CHECKS_OF_SLOWED = 20
"""Twice as many are of the same code."""
BUDGET = "60s"
CELL = ("--context", "192", "--output-len", "48", "--repeats", "1")
CANDIDATE = {"engine": "llama_cpp", "cache": "static", "attention": "flash", "dtype": "float32"}
"""The engine's default, which leaves the number of threads to the environment."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """What one check found.

    Attributes:
        cause: what was done to side B.
        is_named: whether the result names it.
    """

    cause: str
    verdict: str
    rounds: int
    seconds: float
    is_named: bool


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        records = arguments.records or Path(folder) / "checks.jsonl"
        checks = read_checks(records)
        begun = time.monotonic()
        for cause in left_to_do(planned(arguments), checks):
            if arguments.seconds is not None and time.monotonic() - begun > arguments.seconds:
                break
            if not (baseline := records.with_name("baseline")).exists():
                measure_baseline(baseline)
            checks.append(run_check(baseline, cause, Path(folder), arguments.other_python))
            with records.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(asdict(checks[-1])) + "\n")
    show(checks)
    write_figures(arguments.json, figures(checks), quick=arguments.quick)


class _Arguments:
    quick: bool
    json: Path | None
    records: Path | None
    seconds: float | None
    other_python: Path | None


def parse() -> _Arguments:
    parser = make_parser(__doc__)
    parser.add_argument("--records", type=Path, metavar="FILE", help="JSON lines to add to")
    parser.add_argument("--seconds", type=float, metavar="S", help="begin no further check after S seconds")
    parser.add_argument("--other-python", type=Path, metavar="PATH", help="of an environment with another llama.cpp")
    return parser.parse_args(namespace=_Arguments())


def read_checks(records: Path) -> list[Check]:
    """What earlier calls have found."""
    if not records.exists():
        return []
    return [Check(**json.loads(line)) for line in records.read_text(encoding="utf-8").splitlines()]


def left_to_do(causes: Sequence[str], checks: Sequence[Check]) -> Iterator[str]:
    """The causes whose checks are not yet made."""
    done = Counter(one.cause for one in checks)
    for cause in causes:
        if done[cause]:
            done[cause] -= 1
        else:
            yield cause


def planned(arguments: _Arguments) -> Sequence[str]:
    """The causes in an order in which every stretch has some of each."""
    slowed = [cause for _ in range(CHECKS_OF_SLOWED // len(SLOWED)) for cause in SLOWED]
    other = [OTHER_LIBRARY] * CHECKS_OF_OTHER_LIBRARY if arguments.other_python else []
    if arguments.quick:
        slowed, other = slowed[: len(SLOWED)], other[:1]
    return [*(one for cause in slowed for one in (SAME, cause, SAME)), *other]


def measure_baseline(folder: Path) -> None:
    """What every check is of: the engine's default alone."""
    listed = folder.with_name("candidate.json")
    listed.write_text(json.dumps([CANDIDATE]), encoding="utf-8")
    what = ("--engine", "llama_cpp", *CELL, "--candidates", str(listed), "--confirm", "0")
    run_kvray("tune", str(demo_model()), *what, "--output", str(folder))


def run_check(baseline: Path, cause: str, folder: Path, other_python: Path | None) -> Check:
    """One check of A against B, in which `cause` acts on B."""
    name, value = SLOWED.get(cause, ("", ""))
    variables, output = folder / "b.env", folder / "check"
    variables.write_text(f"{name}={value}\n" if name else "# nothing\n", encoding="utf-8")
    side = f"python={other_python}" if cause == OTHER_LIBRARY else f"env={variables}"
    named_by = {SAME: (), OTHER_LIBRARY: ("build_leaves_out",)}.get(cause, (name, "threads"))
    started = time.monotonic()
    run_kvray(
        "check",
        str(baseline),
        "--against",
        side,
        "--budget",
        BUDGET,
        "--output",
        str(output),
        allowed=(1, 14),
    )
    seconds = time.monotonic() - started
    result = json.loads((output / "check.json").read_text(encoding="utf-8"))
    (checked,) = result["candidates"]
    told = json.dumps([result["differences"], checked["reasons"], checked["differences"]])
    return Check(
        cause=cause,
        verdict=result["verdict"],
        rounds=checked["rounds"],
        seconds=seconds,
        is_named=any(word in told for word in named_by),
    )


def run_kvray(*arguments: str, allowed: Sequence[int] = ()) -> None:
    """The command as a user gives it on a shared machine: with as many threads as its libraries choose, which do not
    spin while they wait."""
    left_out = ("OMP_NUM_THREADS", "GOMP_CPU_AFFINITY")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment["OMP_WAIT_POLICY"] = "passive"
    done = subprocess.run(
        [sys.executable, "-m", "kvray", *arguments, "--offline"], capture_output=True, check=False, env=environment
    )
    if done.returncode not in (0, *allowed):
        raise SystemExit(f"kvray {arguments[0]} ended with {done.returncode}: {done.stderr.decode()[-2000:]}")


def figures(checks: Sequence[Check]) -> dict[str, Figure]:
    """What README quotes."""
    same = [one for one in checks if one.cause == SAME]
    slowed = [one for one in checks if one.cause in SLOWED]
    other = [one for one in checks if one.cause == OTHER_LIBRARY]
    return {
        "same": len(same),
        "false_fails": count(same, "fail"),
        "inconclusive_same": count(same, "inconclusive"),
        "slowed": len(slowed),
        "slowed_fails": count(slowed, "fail"),
        "slowed_named": sum(one.is_named for one in slowed),
        "other_library": len(other),
        "other_library_fails": count(other, "fail"),
        "other_library_named": sum(one.is_named for one in other),
        "rounds_median": statistics.median(one.rounds for one in checks),
        "seconds_median": round(statistics.median(one.seconds for one in checks), 1),
        "same_rounds_median": statistics.median(one.rounds for one in same),
        "slowed_rounds_median": statistics.median(one.rounds for one in slowed),
        "same_seconds_median": round(statistics.median(one.seconds for one in same), 1),
    }


def count(checks: Iterable[Check], verdict: str) -> int:
    """How many ended with `verdict`."""
    return sum(one.verdict == verdict for one in checks)


def show(checks: Sequence[Check]) -> None:
    rows = []
    for cause in dict.fromkeys(one.cause for one in checks):
        own = [one for one in checks if one.cause == cause]
        verdicts = Counter(one.verdict for one in own)
        rows.append(
            (
                cause,
                len(own),
                *(verdicts[verdict] for verdict in ("pass", "fail", "inconclusive")),
                sum(one.is_named for one in own),
                statistics.median(one.rounds for one in own),
                round(statistics.median(one.seconds for one in own), 1),
            )
        )
    heads = ("side B", "checks", "PASS", "FAIL", "INCONCLUSIVE", "named", "rounds", "seconds")
    print_table("kvray check, A against B on this machine (medians of rounds and seconds)", heads, rows)


if __name__ == "__main__":
    main()
