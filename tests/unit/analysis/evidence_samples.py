"""Evidence made of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np

from kvray.analysis.evidence import Evidence
from kvray.analysis.limits import Miss

Process = tuple[int, float, float, float]
"""Round, TTFT ms, tok/s, peak MiB."""
UTILITY_IS_THROUGHPUT = np.array([0.0, 1.0, 0.0])


def make_evidence(
    processes: Mapping[str, Iterable[Process]],
    *,
    contenders: Iterable[str] | None = None,
    within: float = 0.0,
    disturbed: Iterable[str] = (),
    misses: Mapping[str, tuple[Miss, ...]] = MappingProxyType({}),
    engines: Mapping[str, str] | None = None,
) -> Evidence:
    """All processes of the candidates in `disturbed` were; those in `misses` are no contenders.

    Args:
        engines: by candidate; `None` where there is one engine.
    """
    rows = [(place, *one) for place, of in enumerate(processes.values()) for one in of]
    logs = np.log([row[2:] for row in rows])
    return Evidence(
        ids=tuple(processes),
        contenders=frozenset(processes if contenders is None else contenders) - misses.keys(),
        misses=dict(misses),
        owner=np.array([row[0] for row in rows]),
        rounds=np.array([row[1] for row in rows]),
        logs=logs,
        within=np.full_like(logs, within),
        disturbed=np.isin([row[0] for row in rows], [list(processes).index(key) for key in disturbed]),
        engines=() if engines is None else tuple(engines[key] for key in processes),
    )


def of_throughputs(
    processes: Mapping[str, Iterable[float]], *, confirmed: bool = True, engines: Mapping[str, str] | None = None
) -> Evidence:
    """The first value of each is the search's, the others are of rounds 1, 2, …"""
    return make_evidence(
        {
            key: [(place if confirmed else 0, 100.0, value, 1000.0) for place, value in enumerate(values)]
            for key, values in processes.items()
        },
        engines=engines,
    )
