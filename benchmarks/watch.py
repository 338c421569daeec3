"""Finds `kvray watch` a step of 6 % within a day, and how often does it call somebody for nothing?

Simulated years, four observations a day: a machine that drifts and that others use on working days, an anchor that sees
a part of that, a drift of the configuration of its own, and three steps of 6 % in the time to first token: worse, back,
worse again. Decode throughput and memory have none. Only the measurements are made up; every observation goes through
the watch's own change points and states, and each suspicion through its confirming rounds.

`benchmarks/watch.py [--quick] [--json FILE] [--noise PERCENT]...`
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kvray.analysis.comparison import ComparedMetric
from kvray.check.watch.events import EventKind, WatchEvent
from kvray.check.watch.levels import Watched
from kvray.check.watch.states import CONFIRMING, PROCESSES, Standing, judge
from kvray.check.watch.telling import events_of
from kvray.store.history import Observation, ObservationRole

START = dt.datetime(2027, 1, 1, tzinfo=dt.UTC)
EVERY_H = 6
YEAR = 365 * 24 // EVERY_H
STEP = 0.06
SIGNS = (1, -1, 1)
DAY_H = 24
LATEST_H = 7 * 24
"""Hours after a step, within which an alert is taken for its alert."""
NOISES = (1.5, 2.0, 3.0, 4.0)
HEADLINE = 2.0
"""Per cent: the standard deviation of one observation of three processes, drift and load left out."""
SESSION_SHARE = 0.6
"""The part of it that all processes of one observation have in common."""
LOAD = 0.03
"""How much slower it is from 8 to 18 on working days."""
ANCHOR_SD = 0.01
FIELDS = {
    ComparedMetric.TTFT: ("ttft_ms", 100.0, 1),
    ComparedMetric.DECODE: ("decode_tok_s", 40.0, -1),
    ComparedMetric.MEMORY: ("peak_mib", 2000.0, 1),
}


@dataclass(frozen=True, kw_only=True)
class Year:
    """Logarithms at each observation, more is worse, without the noise between processes."""

    at_h: np.ndarray[Any, np.dtype[np.float64]]
    means: Mapping[ComparedMetric, np.ndarray[Any, np.dtype[np.float64]]]
    process_sd: Mapping[ComparedMetric, float]
    machine: np.ndarray[Any, np.dtype[np.float64]]
    steps: tuple[int, ...]


@dataclass
class Outcome:
    """What one year came to.

    Attributes:
        delays_h: by number of the step, how long after it the alert came.
        false_alerts: alerts that are no step's, and those for which somebody was called a second time.
        notes: changes that were only logged: to the better, or the machine's.
    """

    delays_h: dict[int, float] = field(default_factory=dict)
    false_alerts: int = 0
    notes: int = 0
    suspicions: int = 0

    @property
    def found_within_a_day(self) -> int:
        """Steps that were told within 24 hours."""
        return sum(one <= DAY_H for one in self.delays_h.values())


def simulated_year(random: np.random.Generator, noise: float) -> Year:
    at_h = np.arange(YEAR) * EVERY_H + random.uniform(-0.2, 0.2, YEAR)
    week_h = (at_h + START.weekday() * 24) % 168
    is_load = (week_h < 120) & (week_h % 24 >= 8) & (week_h % 24 < 18)
    load = is_load * LOAD * random.uniform(0.8, 1.2, YEAR)
    walk = np.cumsum(random.normal(0, 0.00075, YEAR))
    drift = np.linspace(0, 0.02, YEAR)
    steps = tuple(int(random.integers(*span)) for span in ((240, 480), (600, 880), (1040, 1320)))
    level = np.zeros(YEAR)
    for start, sign in zip(steps, SIGNS, strict=True):
        level[start:] += sign * STEP
    sds = {ComparedMetric.TTFT: noise, ComparedMetric.DECODE: noise, ComparedMetric.MEMORY: noise / 10}
    own = {one: random.normal(0, SESSION_SHARE * sd, YEAR) for one, sd in sds.items()}
    return Year(
        at_h=at_h,
        means={
            ComparedMetric.TTFT: 0.9 * walk + load + drift + level + own[ComparedMetric.TTFT],
            ComparedMetric.DECODE: 0.7 * walk + load + own[ComparedMetric.DECODE],
            ComparedMetric.MEMORY: own[ComparedMetric.MEMORY],
        },
        process_sd={one: sd * np.sqrt(PROCESSES * (1 - SESSION_SHARE**2)) for one, sd in sds.items()},
        machine=walk + load / 2,
        steps=steps,
    )


def watched_year(seed: int, noise: float) -> Outcome:
    random = np.random.default_rng(seed)
    year, outcome = simulated_year(random, noise), Outcome()
    rows: list[Observation] = []
    standings: dict[Watched, Standing] = {}
    for place in range(YEAR):
        rows.append(_observation(year, place, ObservationRole.WINNER, PROCESSES, random))
        judged = judge(rows, standings, after_rounds=False)
        standings = {one.watched: one.standing for one in judged}
        if any(one.needs_rounds for one in judged):
            outcome.suspicions += 1
            rows.append(_observation(year, place, ObservationRole.CONFIRM, CONFIRMING, random))
            judged = judge(rows, standings, after_rounds=True)
            standings = {one.watched: one.standing for one in judged}
            alerts = [one for one in events_of(rows[-1], judged, rows, "simulated") if one.is_alert]
            outcome.notes += sum(one.is_new for one in judged) - len(alerts)
            for alert in alerts:
                _count(outcome, year, place, alert)
    return outcome


def _count(outcome: Outcome, year: Year, place: int, alert: WatchEvent) -> None:
    """The first right alert of a step is its alert; every other one is false."""
    for number, (start, sign) in enumerate(zip(year.steps, SIGNS, strict=True)):
        since_h = float(place - start) * EVERY_H
        kind = EventKind.CONFIRMED if sign > 0 else EventKind.RECOVERED
        is_its = alert.metric is ComparedMetric.TTFT and alert.kind is kind and 0 <= since_h <= LATEST_H
        if is_its and number not in outcome.delays_h:
            outcome.delays_h[number] = since_h
            return
    outcome.false_alerts += 1


def _observation(
    year: Year, place: int, role: ObservationRole, processes: int, random: np.random.Generator
) -> Observation:
    at = START + dt.timedelta(hours=float(year.at_h[place]))
    figures: dict[str, Any] = {}
    for metric, (name, level, sign) in FIELDS.items():
        logs = year.means[metric][place] + random.normal(0, year.process_sd[metric], processes)
        values = level * np.exp(sign * logs)
        figures |= {name: float(np.exp(np.log(values).mean())), f"{name}_each": tuple(values.tolist())}
    copy, matmul = np.exp(-(year.machine[place] + random.normal(0, ANCHOR_SD, 2)))
    return replace(
        ROW,
        observation_id=f"{place:05}-{role}",
        observed_at=at,
        role=role,
        processes=processes,
        copy_gb_s=20.0 * float(copy),
        matmul_gflop_s=80.0 * float(matmul),
        **figures,
    )


ROW = Observation(
    observation_id="",
    watch_id="simulated",
    observed_at=START,
    role=ObservationRole.WINNER,
    candidate_id="simulated",
    model_id="simulated",
    profile="simulated",
    engine="simulated",
    device_name="simulated",
    hardware="simulated",
    anchor="simulated",
)


def summed_up(outcomes: Sequence[Outcome]) -> dict[str, float | int | None]:
    delays = [one for outcome in outcomes for one in outcome.delays_h.values()]
    return {
        "years": len(outcomes),
        "steps_found": round(float(np.mean([one.found_within_a_day for one in outcomes])), 3),
        "steps_found_worst": min(one.found_within_a_day for one in outcomes),
        "steps_found_later_too": round(float(np.mean([len(one.delays_h) for one in outcomes])), 3),
        "delay_h": round(float(np.mean(delays)), 1) if delays else None,
        "delay_h_worst": round(max(delays), 1) if delays else None,
        "false_alerts": round(float(np.mean([one.false_alerts for one in outcomes])), 3),
        "false_alerts_worst": max(one.false_alerts for one in outcomes),
        "notes": round(float(np.mean([one.notes for one in outcomes])), 1),
        "suspicions": round(float(np.mean([one.suspicions for one in outcomes])), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one year, at the noise of the headline")
    parser.add_argument("--json", type=Path, help="where the figures go; rows that are there already are kept")
    parser.add_argument("--noise", type=float, action="append", help="per cent; may be repeated")
    parser.add_argument("--years", type=int, default=20)
    given = parser.parse_args()
    noises = [HEADLINE] if given.quick else given.noise or NOISES
    rows: dict[str, Any] = {}
    if given.json and given.json.exists():
        rows = json.loads(given.json.read_text(encoding="utf-8"))["by_noise_percent"]
    for noise in noises:
        started = time.monotonic()
        outcomes = [watched_year(seed, noise / 100) for seed in range(1 if given.quick else given.years)]
        rows[f"{noise:g}"] = {"first_year": summed_up(outcomes[:1]), **summed_up(outcomes)}
        print(f"noise {noise:g} %: {rows[f'{noise:g}']}, {time.monotonic() - started:.0f} s", flush=True)
    if given.json:
        headline = rows.get(f"{HEADLINE:g}", {}).get("first_year", {})
        keys = ("steps_found", "delay_h", "false_alerts")
        found = {**{key: headline.get(key) for key in keys}, "noise_percent": HEADLINE, "by_noise_percent": rows}
        given.json.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
