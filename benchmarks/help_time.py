"""Seconds until `kvray --help` has answered, against a bare `python -c pass`, in turn."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from output import parse_arguments, print_table, write_figures

COMMANDS = {
    "bare_python_s": [sys.executable, "-c", "pass"],
    "help_s": [sys.executable, "-m", "kvray", "--help"],
}


def main() -> None:
    arguments = parse_arguments(__doc__)
    repeats = 3 if arguments.quick else 15
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(repeats):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print_table(
        f"Seconds until it has answered, {repeats} times in turn",
        ("command", "median", "min", "max"),
        [(" ".join(COMMANDS[name][1:]), medians[name], min(values), max(values)) for name, values in seconds.items()],
    )
    extra = statistics.median(
        helped - bare for helped, bare in zip(seconds["help_s"], seconds["bare_python_s"], strict=True)
    )
    print(f"\nkvray --help takes {extra:.3f} s more than a bare interpreter")
    write_figures(arguments.json, {**medians, "extra_s": extra}, quick=arguments.quick)


if __name__ == "__main__":
    main()
