"""`Rest`: what a resumed sweep has still to measure, found out without starting anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from kvray.config import TuneConfig
from kvray.probes.environment import Environment
from kvray.record import Role
from kvray.store.parquet import ResultsStore
from kvray.tuning.attempt import Attempt, prepare_attempt
from kvray.tuning.preview import Preview, Rest
from kvray.tuning.resolved import Resolved


def with_rest(
    preview: Preview,
    config: TuneConfig,
    resolved: Sequence[Resolved],
    *,
    environments: Mapping[str, Environment] = MappingProxyType({}),
) -> Preview:
    """`preview` with what the records of the sweep that `config` resumes leave to be measured.

    Args:
        resolved: of each engine that takes part, the baseline's first.
        environments: by engine, what a node of the cluster that measures has; without a cluster there are none.

    Raises:
        ResultsError: there is no such sweep, or what it measured cannot be compared with this and nothing is forced.
    """
    store, run_id = ResultsStore(config.output_dir), config.resume or ""
    attempts = store.read_manifest(run_id).attempts
    before = attempts[-1].fingerprint if attempts else None
    attempt = prepare_attempt(
        store,
        config,
        _identified(preview, resolved),
        [one.adapter for one in resolved],
        run_id=run_id,
        # How Ray will divide the machine is not known here.
        threads=before.threads if before else None,
        slots=config.slots or (before.slots if before else None) or 1,
        pythons={name: python for one in resolved for name, python in one.pythons.items()},
        environments=environments,
    )
    return replace(preview, rest=_rest(run_id, attempt, preview))


def _identified(preview: Preview, resolved: Sequence[Resolved]) -> Preview:
    """`preview` with the very weights named, by which a resume compares. What was measured was hashed then."""
    first, *others = (one.adapter.identify_model(one.request, one.model) for one in resolved)
    named = (replace(one, model=model) for one, model in zip(preview.others, others, strict=True))
    return replace(preview, model=first, others=tuple(named))


def _rest(run_id: str, attempt: Attempt, preview: Preview) -> Rest:
    space = {one.candidate_id for one in preview.space.candidates}
    records = [one.record for one in attempt.recall.results]
    measured = {one.candidate_id for one in records if one.role is not Role.CONFIRM}
    return Rest(
        run_id=run_id,
        left=tuple(one for one in preview.space.candidates if one.candidate_id not in measured),
        again=tuple(key for key in attempt.recall.retry if key in space),
        measured=len(measured & space),
        confirming=sum(one.role is Role.CONFIRM for one in records),
        is_answered=attempt.manifest.is_complete is True,
    )
