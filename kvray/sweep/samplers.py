"""What decides which candidate is launched, for each way to search."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kvray.analysis.sampler import EveryCandidate, Sampler
from kvray.candidate import Candidate
from kvray.config import SearchStrategy
from kvray.errors import EngineError
from kvray.extras import Extra
from kvray.space.axis import Axis
from kvray.workload import WorkloadProfile

if TYPE_CHECKING:
    from kvray.analysis.metric_models import Figures


def check_search(search: SearchStrategy) -> None:
    """Refuse a search that needs what is not installed; imports nothing.

    Raises:
        EngineError: Optuna is not installed.
    """
    if search is SearchStrategy.OPTUNA and importlib.util.find_spec("optuna") is None:
        raise EngineError("Optuna is not installed.", hint=f"Install it: {Extra.OPTUNA.install_command}")


def make_sampler(
    search: SearchStrategy,
    candidates: Sequence[Candidate],
    profile: WorkloadProfile,
    forecasts: Mapping[str, Figures],
    *,
    axes: Sequence[Axis],
    seed: int,
) -> Sampler:
    """What decides in a `search`.

    Args:
        candidates: the space, the baseline first.
        forecasts: by candidate id.
        axes: what the engine lets one choose: it says which are numbers.
    """
    match search:
        case SearchStrategy.MODEL:
            from kvray.analysis.axis_values import number_axes
            from kvray.analysis.bayesian import BayesianSampler  # scipy takes half a second

            numbers = number_axes(candidates, axes)
            return BayesianSampler(candidates, profile=profile, forecasts=forecasts, numbers=numbers, seed=seed)
        case SearchStrategy.OPTUNA:
            from kvray.sweep.optuna import OptunaSampler

            return OptunaSampler(candidates, profile=profile, seed=seed)
        case SearchStrategy.GRID | SearchStrategy.ASHA:
            return EveryCandidate(candidates)
