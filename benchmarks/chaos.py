"""A sweep of 60 trials in which a third of them misbehave, slots are killed, and the driver is killed three times.

The fake engine misbehaves as told: raises, runs out of memory, exits, segfaults, is killed, hangs, leaves processes.
Meanwhile slots are killed under their trials, half-written files are put into the results folder, and the driver is
killed at random moments and resumed. Every record is then compared with what the trial was told to do, and with what
was recorded before each kill. The seconds lost are those of all attempts over those of the same sweep left in peace,
one right after the other on the same machine; most of them are Ray's starts. Needs the test folder's `drivers`.
"""

from __future__ import annotations

import contextlib
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from output import make_parser, print_table, write_figures

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "faults"))

from drivers import FAKE, Driver, recorded

from kvray.record import TrialRecord, TrialResult, TrialStatus
from kvray.store.parquet import ResultsStore

TRIALS = 60
DRIVER_KILLS = 3
SHARE_OF_FAULTS = 1 / 3
TIMEOUT_S = 2.0
ORPHANS_GONE_WITHIN_S = 5.0
AXES = (
    *("--cache", "dynamic,static", "--attention", "eager,sdpa,sdpa_flash,sdpa_math"),
    *("--dtype", "float32,float16,bfloat16", "--compile", "off,default", "--batch-sizes", "1,2"),
    *("--search", "grid", "--confirm", "0", "--timeout", str(TIMEOUT_S)),
)
ENDS: Mapping[str, TrialStatus] = {
    "raise": TrialStatus.ERROR,
    "oom": TrialStatus.OOM,
    "unsupported": TrialStatus.UNSUPPORTED,
    "substituted": TrialStatus.SUBSTITUTED,
    "exit": TrialStatus.CRASHED,
    "segv": TrialStatus.CRASHED,
    "kill": TrialStatus.CRASHED,
    "hang": TrialStatus.TIMEOUT,
    "stubborn": TrialStatus.TIMEOUT,
    "children": TrialStatus.OK,
}
SLOT_TITLES = ("ray::Slot", "ray::ResourceTrainable")


@dataclass
class Tally:
    """What chaos has cost so far."""

    lost: int = 0
    wrong: int = 0
    orphans: list[str] = field(default_factory=list)
    driver_kills: int = 0
    slot_kills: int = 0
    seconds: float = 0.0


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of what goes wrong, and when")
    arguments = parser.parse_args()
    logging.getLogger("kvray.store").setLevel(logging.ERROR)  # it names the litter at every look
    trials = 18 if arguments.quick else TRIALS
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="kvray-chaos-") as folder:
        labels = all_labels(Path(folder) / "probe", trials)
        told = {label: chance.choice(list(ENDS)) for label in chance.sample(labels, round(trials * SHARE_OF_FAULTS))}
        command = sweep_command(told, trials)
        peace = Tally()
        undisturbed = attempt(peace, command, Path(folder) / "peace", {}, None, chance)
        tally = Tally()
        results = chaos(tally, command, Path(folder) / "chaos", chance, per_kill_s=peace.seconds / (DRIVER_KILLS + 1))
    tally.wrong += sum(not is_as_told(one.record, told) for one in results.values())
    tally.lost += len(undisturbed.keys() - results.keys())
    statuses = Counter(one.record.status.value for one in results.values())
    faults = sum(one.record.candidate.label in told for one in results.values()) + tally.slot_kills
    print_table("Statuses", ("status", "trials"), sorted(statuses.items()))
    figures = {
        "trials": len(results),
        "faults": faults,
        "driver_kills": tally.driver_kills,
        "slot_kills": tally.slot_kills,
        "lost": tally.lost,
        "wrong": tally.wrong,
        "orphans": len(tally.orphans),
        "seconds": round(tally.seconds, 1),
        "seconds_undisturbed": round(peace.seconds, 1),
        "seconds_lost": round(tally.seconds - peace.seconds, 1),
    }
    print_table("Chaos", ("figure", "value"), list(figures.items()))
    for orphan in tally.orphans:
        print(f"orphan: {orphan}")
    more = {f"status_{name}": number for name, number in statuses.items()}
    write_figures(arguments.json, {**figures, **more, "seed": arguments.seed}, quick=arguments.quick)
    if tally.lost or tally.wrong or tally.orphans:
        sys.exit(1)


def all_labels(folder: Path, trials: int) -> list[str]:
    """The labels of the candidates, by a sweep in which nothing is told to go wrong."""
    driver = Driver("fake:ok", *FAKE, *AXES, "--max-trials", str(trials), "--output", folder, **of(folder))
    if driver.wait():
        sys.exit("\n".join(driver.lines))
    return sorted(one.record.candidate.label for one in launched(folder).values())


def sweep_command(told: Mapping[str, str], trials: int) -> tuple[str, ...]:
    # A label is part of its compiled sibling's, whose own command must come first.
    longest_first = sorted(told.items(), key=lambda item: -len(item[0]))
    model = "fake:" + ",".join(f"{label}={how}" for label, how in longest_first)
    return (model, *FAKE, *AXES, "--max-trials", str(trials))


def chaos(
    tally: Tally, command: Sequence[str], folder: Path, chance: random.Random, *, per_kill_s: float
) -> dict[str, TrialResult]:
    """The sweep, killed and resumed until it comes to its end."""
    results: dict[str, TrialResult] = {}
    for _ in range(DRIVER_KILLS):
        results = attempt(tally, command, folder, results, per_kill_s * chance.uniform(0.5, 1.0), chance)
        litter(folder)
    return attempt(tally, command, folder, results, None, chance)


def attempt(
    tally: Tally,
    command: Sequence[str],
    folder: Path,
    before: Mapping[str, TrialResult],
    kill_after_s: float | None,
    chance: random.Random,
) -> dict[str, TrialResult]:
    """Run or resume the sweep, killing its driver as many seconds after its first trial; with it all that it has
    started must be gone."""
    run_ids = ResultsStore(folder).run_ids()
    started = time.monotonic()
    driver = Driver(*command, "--output", folder, *(("--resume", run_ids[-1]) if run_ids else ()), **of(folder))
    try:
        if kill_after_s is None:
            if driver.wait(timeout_s=600):
                sys.exit("\n".join(driver.lines))
        else:
            driver.wait_for("start ")
            time.sleep(kill_after_s / 2)
            tally.slot_kills += kill_slot(driver)
            time.sleep(kill_after_s / 2 + chance.uniform(0.0, 0.5))
            driver.kill()
            tally.driver_kills += 1
        tally.seconds += time.monotonic() - started
        tally.orphans += driver.orphans(ORPHANS_GONE_WITHIN_S)
    finally:
        driver.end()
    after = launched(folder)
    tally.lost += len(before.keys() - after.keys())
    tally.wrong += sum(after[name] != one for name, one in before.items() if name in after)
    return after


def kill_slot(driver: Driver) -> int:
    """Kill the process that holds a trial; returns how many there were to kill."""
    for one in psutil.Process(driver.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it may end meanwhile
            if (one.cmdline() or [""])[0].startswith(SLOT_TITLES):
                one.kill()
                return 1
    return 0


def litter(folder: Path) -> None:
    """What a crash, or somebody else, may leave among the records."""
    (trials,) = (folder / "trials").iterdir()
    whole = min(trials.glob("*.parquet")).read_bytes()
    (trials / "9998-torn.parquet").write_bytes(whole[: len(whole) // 2])
    (trials / "9999-foreign.parquet").write_bytes(b"not a table")


def launched(folder: Path) -> dict[str, TrialResult]:
    return {name: one for name, one in recorded(folder).items() if one.record.status.was_launched}


def is_as_told(record: TrialRecord, told: Mapping[str, str]) -> bool:
    """Whether a record tells the truth about its trial: a fault's own status, or a complete measurement."""
    how = next((told[label] for label in sorted(told, key=len, reverse=True) if label in record.candidate.label), None)
    expected = TrialStatus.OK if how is None else ENDS[how]
    is_complete = record.ttft_ms is not None and record.decode_tok_s is not None and record.rung == 2
    return record.status is expected and (is_complete if expected is TrialStatus.OK else bool(record.message))


def of(folder: Path) -> dict[str, str]:
    """The environment of a sweep in `folder`."""
    return {"KVRAY_CACHE": str(folder.parent / "cache")}


if __name__ == "__main__":
    main()
