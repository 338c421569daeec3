"""What a sweep of several engines says of each: its best candidate, and what that gains over the engine's own default.

Also in one sentence whether the engines ran the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvray.analysis.evidence import Evidence
from kvray.analysis.ranking import Gain, RankedCandidate, Ranking, UnrankedTrial, measured_gains
from kvray.record import short_model_name
from kvray.store.manifest import SweepManifest


@dataclass(frozen=True, kw_only=True)
class EngineBest:
    """The best ranked candidate of one engine.

    Attributes:
        default: what the engine does with nothing set; `None` where that was not measured completely.
        gain: over `default`; `None` without one.
    """

    engine: str
    best: RankedCandidate
    default: RankedCandidate | UnrankedTrial | None = None
    gain: Gain | None = None

    @property
    def is_default(self) -> bool:
        """Whether the engine is best with nothing set."""
        return self.default is not None and self.default.record.candidate_id == self.best.record.candidate_id


def best_of_each_engine(ranking: Ranking, evidence: Evidence, defaults: Mapping[str, str]) -> tuple[EngineBest, ...]:
    """For each engine that is ranked, in the order of `defaults`; nothing where one engine was asked alone.

    Args:
        defaults: by engine, the candidate id of what it does with nothing set.
    """
    best: dict[str, RankedCandidate] = {}
    for entry in ranking.entries:
        best.setdefault(entry.record.candidate.engine, entry)
    names = [name for name in dict.fromkeys((*defaults, *best)) if name in best]
    if len({*defaults, *best}) < 2:
        return ()
    return tuple(_told(name, best[name], ranking, evidence, defaults.get(name)) for name in names)


def _told(
    engine: str, best: RankedCandidate, ranking: Ranking, evidence: Evidence, default_id: str | None
) -> EngineBest:
    default = next((one for one in ranking.listed if one.record.candidate_id == default_id and one.metrics), None)
    if default is None or default.metrics is None:
        return EngineBest(engine=engine, best=best)
    key, other = best.record.candidate_id, default.record.candidate_id
    gains = measured_gains({key: best.metrics, other: default.metrics}, other, evidence)
    return EngineBest(engine=engine, best=best, default=default, gain=gains[key])


def unlike_weights(manifest: SweepManifest, ranking: Ranking) -> str | None:
    """A sentence on what each engine of the ranking ran, where their weights are not of one file; `None` where they
    are: weights that an engine unpacks from the file of the others are theirs up to rounding."""
    ranked = {entry.record.candidate.engine for entry in ranking.entries}
    models = {name: manifest.model_of(name) for name in manifest.engines if name in ranked}
    if len({one.model_id for one in models.values()}) < 2:
        return None
    files = {name: short_model_name(manifest.shown_model(one.model_id)) for name, one in models.items()}
    kinds = {name: one.weights or files[name] for name, one in models.items()}
    counts = _counts_cost(ranking, first=next(iter(models)))
    if len({kind.casefold() for kind in kinds.values()}) > 1:  # engines write GPTQ in their own way
        cost = "their quality (KL) counts what that costs" if counts else "what that costs was not measured"
        return f"The engines ran unlike weights: {_listed(kinds)}; {cost}."
    cost = "their quality (KL) shows how far these differ" if counts else "whether these differ was not measured"
    return f"The engines ran weights of different files: {_listed(files)}; {cost}."


def _counts_cost(ranking: Ranking, *, first: str) -> bool:
    """Whether the output of any other engine than the `first` one was compared."""
    records = (entry.record for entry in ranking.entries)
    return any(record.kl_mean is not None and record.candidate.engine != first for record in records)


def _listed(told: Mapping[str, str]) -> str:
    return ", ".join(f"{engine} {what}" for engine, what in told.items())
