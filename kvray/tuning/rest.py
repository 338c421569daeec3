"""`Rest`: what a resumed sweep has still to measure, found out without starting anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvray.config import TuneConfig
from kvray.record import Role
from kvray.store.fingerprint import SweepFingerprint
from kvray.store.parquet import ResultsStore
from kvray.store.resuming import Recall
from kvray.sweep.remote_device import NodeFacts
from kvray.tuning.attempt import Conditions, prepare_attempt
from kvray.tuning.preview import Preview, Rest
from kvray.tuning.resolved import Resolved


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What would be measured on one type of GPU, or on the one device that there is.

    Attributes:
        resolved: of each engine that takes part, the baseline's first.
        node: of the cluster, where there is one.
    """

    preview: Preview
    resolved: tuple[Resolved, ...]
    node: NodeFacts | None = None


def with_rest(seen: Sequence[Seen], config: TuneConfig) -> list[Seen]:
    """The same with what the records of the sweep that `config` resumes leave to be measured.

    Raises:
        ResultsError: there is no such sweep, or what it measured cannot be compared with this and nothing is forced.
    """
    store, run_id = ResultsStore(config.output_dir), config.resume or ""
    attempts = store.read_manifest(run_id).attempts
    before = attempts[-1].fingerprint if attempts else None
    attempt = prepare_attempt(
        store,
        config,
        [_conditions(one, config, before) for one in seen],
        run_id=run_id,
        pythons={name: python for one in seen for each in one.resolved for name, python in each.pythons.items()},
    )
    is_answered = attempt.manifest.is_complete is True
    return [
        replace(one, preview=replace(one.preview, rest=_rest(run_id, found, one.preview, is_answered=is_answered)))
        for one, found in zip(seen, attempt.recalls, strict=True)
    ]


def _conditions(seen: Seen, config: TuneConfig, before: SweepFingerprint | None) -> Conditions:
    """How Ray will divide the machine is not known here."""
    return Conditions(
        preview=_identified(seen.preview, seen.resolved),
        adapters=tuple(one.adapter for one in seen.resolved),
        threads=before.threads if before else None,
        slots=1 if config.exclusive else config.slots or (before.slots if before else None) or 1,
        gpu_type=seen.node.gpu_type if seen.node else None,
        environments=seen.node.environments if seen.node else {},
    )


def _identified(preview: Preview, resolved: Sequence[Resolved]) -> Preview:
    """`preview` with the very weights named, by which a resume compares. What was measured was hashed then."""
    first, *others = (one.models.identified(one.adapter, one.request, one.model) for one in resolved)
    named = (replace(one, model=model) for one, model in zip(preview.others, others, strict=True))
    return replace(preview, model=first, others=tuple(named))


def _rest(run_id: str, found: Recall, preview: Preview, *, is_answered: bool) -> Rest:
    space = {one.candidate_id for one in preview.space.candidates}
    records = [one.record for one in found.results]
    measured = {one.candidate_id for one in records if one.role is not Role.CONFIRM}
    return Rest(
        run_id=run_id,
        left=tuple(one for one in preview.space.candidates if one.candidate_id not in measured),
        again=tuple(key for key in found.retry if key in space),
        measured=len(measured & space),
        confirming=sum(one.role is Role.CONFIRM for one in records),
        is_answered=is_answered,
    )
