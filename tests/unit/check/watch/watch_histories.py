"""Histories of watches as they may come out: for the tests of the page, of sinks, and to look at."""

from __future__ import annotations

import datetime as dt
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from observations import plain_observation

from kvray.analysis.comparison import ComparedMetric
from kvray.analysis.intervals import Interval
from kvray.check.watch.events import (
    ChangePoint,
    EventKind,
    Observation,
    ObservationRole,
    WatchEvent,
    WatchIdentity,
    WatchState,
)

START = dt.datetime(2026, 10, 1, tzinfo=dt.UTC)
VERSIONS = {"torch": "2.11.0", "transformers": "5.22.0"}
IDENTITY = WatchIdentity(
    watch_id="w0",
    model_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    engine="transformers",
    profile="chat-agent",
    device_name="AMD EPYC 7B13, 2 CPUs",
)


def at(number: float) -> dt.datetime:
    """The moment of the observation `number`, four a day."""
    return START + dt.timedelta(hours=6 * number)


def observation(number: int = 0, *, speed: float = 1.0, **changes: Any) -> Observation:
    """`speed` 2 halves times."""
    values: dict[str, Any] = {
        "observation_id": f"{at(number):%Y%m%d-%H%M%S}-{number:04}",
        "observed_at": at(number),
        "candidate_id": "c1",
        "model_id": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "profile": "chat-agent",
        "engine": "transformers",
        "device_name": "AMD EPYC 7B13, 2 CPUs",
        "host": "node-7",
        "processes": 2,
        "ttft_ms": 120.0 / speed,
        "decode_tok_s": 41.0 * speed,
        "peak_mib": 812.0,
        "ttft_ms_each": (119.0 / speed, 121.0 / speed),
        "decode_tok_s_each": (40.9 * speed, 41.1 * speed),
        "peak_mib_each": (812.0, 812.0),
        "copy_gb_s": 11.2,
        "matmul_gflop_s": 96.0,
        "anchor": "copy of 64 MiB, matrix product of 1024 x 1024",
        "engine_versions": VERSIONS,
        "python_version": "3.11.7",
        "kvray_version": "0.1.0",
        "kernels": "sdpa_flash, sdpa_math, DynamicCache",
    }
    return plain_observation(**{**values, **changes})


def not_measured(number: int, message: str = "the engine needs 900 MiB more") -> Observation:
    """An observation of the anchor alone."""
    missing: dict[str, Any] = {
        **dict.fromkeys(("ttft_ms", "decode_tok_s", "peak_mib")),
        **dict.fromkeys(("ttft_ms_each", "decode_tok_s_each", "peak_mib_each"), ()),
    }
    return observation(number, role=ObservationRole.ANCHOR, processes=0, message=message, **missing)


def event(
    number: int,
    kind: EventKind,
    metric: ComparedMetric | None = ComparedMetric.TTFT,
    *,
    change: float = 0.12,
    before: float = 120.0,
    **changes: Any,
) -> WatchEvent:
    """An event of a step at the observation `number`."""
    interval = Interval(value=change, low=change - 0.02, high=change + 0.02)
    point = ChangePoint(metric=metric, at=at(number), before=before, after=before * (1 + change), change=interval)
    values: dict[str, Any] = {
        "event_id": f"e{number}-{kind.value}",
        "kind": kind,
        "at": at(number) + dt.timedelta(minutes=5),
        "plan": "SmolLM2-135M-Instruct, static/sdpa_flash",
        "watch_id": "w1",
        "text": f"{metric.title if metric else 'The machine'} changed by {change:+.0%}.",
        "metric": metric,
        "state": WatchState(kind.value) if kind.value in list(WatchState) else None,
        "change": interval,
        "change_point": point,
    }
    return WatchEvent(**{**values, **changes})


def with_events(one: Observation, events: Sequence[WatchEvent], **changes: Any) -> Observation:
    """The observation with what became known at it."""
    return replace(one, events=json.dumps([found.to_dict() for found in events]), **changes)


def regression(
    length: int = 40, step: int = 20, *, recovered_at: int | None = None, seed: int = 1
) -> list[Observation]:
    """A history with a step of 12 % in TTFT, where the library was changed."""
    luck = random.Random(seed)
    found: list[Observation] = []
    for number in range(length):
        worse = step <= number < (recovered_at if recovered_at is not None else length)
        noise = luck.gauss(0, 0.012)
        machine = luck.gauss(0, 0.006)
        disturbed = luck.random() < 0.06
        one = observation(
            number,
            ttft_ms=120.0 * (1.12 if worse else 1.0) * (1 + noise) * (1.3 if disturbed else 1),
            decode_tok_s=41.0 * (1 + luck.gauss(0, 0.01)) / (1.2 if disturbed else 1),
            disturbed=disturbed,
            copy_gb_s=11.2 * (1 + machine),
            matmul_gflop_s=96.0 * (1 + luck.gauss(0, 0.004)),
            engine_versions={**VERSIONS, "transformers": "5.23.0"} if worse else VERSIONS,
            ttft_state="confirmed" if worse else "ok",
        )
        if number == step:
            confirm = event(step, EventKind.CONFIRMED)
            one = with_events(one, [event(step, EventKind.SUSPECTED), confirm], role=ObservationRole.WINNER)
        if number == recovered_at:
            one = with_events(
                one, [event(number, EventKind.RECOVERED, change=-0.107, before=134.4)], ttft_state="recovered"
            )
        found.append(not_measured(number) if luck.random() < 0.02 and number not in (step, recovered_at) else one)
    return found
