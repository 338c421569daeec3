"""What decides which candidate is launched, for each way to search."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kvray.analysis.launching import EveryCandidate, Launches
from kvray.candidate import Candidate
from kvray.config import SearchStrategy
from kvray.errors import EngineError
from kvray.workload import WorkloadProfile

if TYPE_CHECKING:
    from kvray.analysis.belief import Figures


def check_search(search: SearchStrategy) -> None:
    """Refuse a search that needs what is not installed; imports nothing.

    Raises:
        EngineError: Optuna is not installed.
    """
    if search is SearchStrategy.OPTUNA and importlib.util.find_spec("optuna") is None:
        raise EngineError("Optuna is not installed.", hint="Install it with pip install 'kvray[optuna]'.")


def make_launches(
    search: SearchStrategy,
    candidates: Sequence[Candidate],
    profile: WorkloadProfile,
    forecasts: Mapping[str, Figures],
    *,
    seed: int,
) -> Launches:
    """The `Launches` of a `search` over `candidates`, the baseline first; `forecasts` are by candidate id."""
    match search:
        case SearchStrategy.MODEL:
            from kvray.analysis.axis_search import AxisSearch  # scipy takes half a second

            return AxisSearch(candidates, profile=profile, forecasts=forecasts, seed=seed)
        case SearchStrategy.OPTUNA:
            from kvray.sweep.optuna import OptunaLaunches

            return OptunaLaunches(candidates, profile=profile, seed=seed)
        case SearchStrategy.GRID | SearchStrategy.ASHA:
            return EveryCandidate(candidates)
