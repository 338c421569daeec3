"""From records to a decision, as pure functions: no clock, no file, no randomness but a seed."""

from __future__ import annotations

from dataclasses import dataclass

from kvray.analysis.confidence import Confidence
from kvray.analysis.fallback import Fallback
from kvray.analysis.ranking import Ranking


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything that plan and report need to know of a sweep."""

    ranking: Ranking
    confidence: Confidence | None
    fallbacks: tuple[Fallback, ...]
