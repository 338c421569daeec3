"""Puts the task of one trial together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from kvray.candidate import Candidate
from kvray.engines.base import EngineAdapter, ModelRequest
from kvray.engines.interpreter import EnginePython
from kvray.forecast.prediction import Forecast
from kvray.record import Role
from kvray.sweep.trial_task import TrialTask
from kvray.trial.spec import ReferenceSpec, TrialSpec


class TaskMaker:
    """The `sweep.trial_queue.MakeTask` of a sweep.

    Args:
        spec: what all trials of the sweep have in common.
        reference: what quality is compared with. Confirming trials measure none: it is the same in every process.
        forecasts: by candidate id, for those of which there are any.
        trial_suffix: ends every trial id (see `SweepManifest`).
        trial_ids: by candidate id, the id that its searched trial has in the records and that is to be replaced.
        adapters: every engine of which there are candidates.
        requests: by engine, the model as that names it, where it is not the one in `spec`.
        pythons: by engine, in which trials run; of an engine that has none in kvray's own.
        threads, scratch, libraries: as `TrialTask` has them.
    """

    def __init__(
        self,
        spec: TrialSpec,
        *,
        reference: ReferenceSpec,
        forecasts: Mapping[str, Forecast],
        adapters: Iterable[EngineAdapter],
        threads: int | None,
        scratch: Path | None,
        pythons: Mapping[str, EnginePython] = MappingProxyType({}),
        trial_suffix: str = "",
        trial_ids: Mapping[str, str] = MappingProxyType({}),
        requests: Mapping[str, ModelRequest] = MappingProxyType({}),
        libraries: tuple[str, ...] | None = None,
    ) -> None:
        self._spec = spec
        self._reference = reference
        self._forecasts = forecasts
        self._adapters = {adapter.name: adapter for adapter in adapters}
        self._requests = requests
        self._pythons = pythons
        self._threads = threads
        self._scratch = scratch
        self._trial_suffix = trial_suffix
        self._trial_ids = trial_ids
        self._libraries = libraries

    def __call__(
        self,
        candidate: Candidate,
        *,
        role: Role,
        trial_id: str,
        rungs: tuple[int, ...],
        confirm_round: int | None = None,
    ) -> TrialTask:
        """The task of one trial of `candidate`; its spec says what the trial is called in the end."""
        recorded = None if role is Role.CONFIRM else self._trial_ids.get(candidate.candidate_id)
        spec = replace(
            self._spec,
            candidate=candidate,
            request=self._requests.get(candidate.engine, self._spec.request),
            role=role,
            confirm_round=confirm_round,
            trial_id=recorded or f"{trial_id}{self._trial_suffix}",
            rungs=rungs,
            reference=None if role is Role.CONFIRM else self._reference,
            forecast=self._forecasts.get(candidate.candidate_id),
        )
        return TrialTask(
            spec=spec,
            adapter=self._adapters[candidate.engine],
            python=self._pythons.get(candidate.engine),
            threads=self._threads,
            scratch=self._scratch,
            libraries=self._libraries,
        )
