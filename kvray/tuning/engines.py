"""The engines of a sweep: each looks at the model for itself, and one that cannot take it is left out with the reason.

The first engine that is left gives the baseline and the reference of quality.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Protocol, TypeVar

from kvray.config import TuneConfig
from kvray.engines.base import EngineAdapter, ModelRequest
from kvray.engines.registry import get_engine
from kvray.errors import EngineError, InvalidValueError, KvrayError, ModelError, NoCandidatesError
from kvray.models.source import is_absent_path
from kvray.space.asked import check_parallelism, check_settings
from kvray.sweep.remote_device import NodeFacts
from kvray.tuning.local_device import detect_device
from kvray.tuning.preview import Preview, Refusal, preview_sweep
from kvray.tuning.resolved import CheckedRequest, Resolved, check_request, resolve

_logger = logging.getLogger("kvray.tuning.engines")
_OWN_ERRORS = (EngineError, ModelError, NoCandidatesError, InvalidValueError)
"""What one engine may say while others go on."""


class _OfAnEngine(Protocol):
    @property
    def adapter(self) -> EngineAdapter: ...


One = TypeVar("One", bound=_OfAnEngine)
Subject = TypeVar("Subject")
T = TypeVar("T")


class SweepEngines:
    """The engines that were asked for, in that order. One that fails at a step is `refused` and left out from then."""

    def __init__(self, adapters: Sequence[EngineAdapter]) -> None:
        self.adapters = tuple(adapters)
        self.refused: tuple[Refusal, ...] = ()
        self._first_error: KvrayError | None = None

    @classmethod
    def named(cls, names: Sequence[str]) -> SweepEngines:
        """Those that are installed of the registry's engines called `names`.

        Raises:
            EngineError: none of them is known.
        """
        engines = cls(())
        adapters = [adapter for name in names if (adapter := engines._asked(name, get_engine, name))]
        engines.adapters = tuple(adapters)
        engines._check_any_left()
        return engines

    def check(
        self,
        config: TuneConfig,
        *,
        recorded_pythons: Mapping[str, str] = MappingProxyType({}),
        node: NodeFacts | None = None,
    ) -> list[CheckedRequest]:
        """What is asked of each engine, as `resolved.check_request` has it. This machine's device is detected once.

        Args:
            node: what a node of the cluster that will measure says of itself; it counts instead of this machine.

        Raises:
            KvrayError: the error of the first engine, where it fails for all.
        """
        _check_models_for(config)
        is_only = len(self.adapters) == 1 and not self.refused
        check = partial(
            check_request,
            config,
            recorded_pythons=recorded_pythons,
            is_only_engine=is_only,
            device=None if node else detect_device(config.device, slots=config.slots_beside),
            node=node,
        )
        answers = [self._asked(one.name, check, one) for one in self.adapters]
        self._check_any_left()
        checked = [answer for answer in answers if answer is not None]
        left_out = {one.engine: one.reason for one in self.refused}
        check_settings(config, [axis for one in checked for axis in one.axes], left_out=left_out)
        check_parallelism(config, [axis for one in checked for axis in one.axes])
        return checked

    def resolve(self, checked: Sequence[CheckedRequest]) -> list[Resolved]:
        """What that comes to, over the workload that all engines can take.

        Raises:
            KvrayError: the error of the first engine, where it fails for all.
        """
        resolved = self.each(checked, resolve)
        shortest = min(resolved, key=lambda one: len(one.profile.context_lengths))
        profile, dropped = shortest.profile, shortest.dropped_contexts
        if any(one.model.random_weights for one in resolved):
            profile = profile.without_quality_limit()
        return [replace(one, profile=profile, dropped_contexts=dropped) for one in resolved]

    def each(self, asked: Sequence[One], ask: Callable[[One], T]) -> list[T]:
        """What `ask` says of every one, each of another engine; those for which it fails are refused.

        Raises:
            KvrayError: the error of the first engine, where it fails for all.
        """
        answers = [self._asked(one.adapter.name, ask, one) for one in asked]
        self._check_any_left()
        return [answer for answer in answers if answer is not None]

    def tell_refused(self) -> None:
        """Warn of each engine that takes no part."""
        for one in self.refused:
            _logger.warning("Engine %s is left out: %s", one.engine, one.reason)

    def _asked(self, name: str, ask: Callable[[Subject], T], of: Subject) -> T | None:
        """What `ask` says `of` something; `None` where that refuses the engine called `name`."""
        try:
            return ask(of)
        except _OWN_ERRORS as error:
            self.adapters = tuple(adapter for adapter in self.adapters if adapter.name != name)
            self.refused += (Refusal(engine=name, reason=str(error)),)
            self._first_error = self._first_error or error
            return None

    def _check_any_left(self) -> None:
        if self._first_error is not None and not self.adapters:
            raise self._first_error


def _check_models_for(config: TuneConfig) -> None:
    """Refuse a path that is not there: an engine that is left out for a typing error would be missed too late. The
    paths of a cluster are asked for there.

    Raises:
        ModelError
    """
    for engine, model_id in config.models_for.items():
        if config.address is None and is_absent_path(model_id):
            raise ModelError(
                f"--model-for {engine}: {model_id!r} does not exist.", hint="Give a file or folder, or a hub id."
            )


@dataclass(frozen=True, kw_only=True)
class EnginePart:
    """What one engine contributes to a sweep.

    Attributes:
        request: the model as this engine names it, of the very version that it described.
    """

    adapter: EngineAdapter
    preview: Preview
    request: ModelRequest


def preview_engines(engines: SweepEngines, resolved: Sequence[Resolved]) -> Preview:
    """What a sweep of all `engines` would measure.

    Raises:
        KvrayError: no candidate is left, or no engine has whole weights.
    """
    parts = engines.each(resolved, _quickly_checked)
    return _joined(engines, [part.preview for part in parts])


def ready_parts(engines: SweepEngines, resolved: Sequence[Resolved]) -> tuple[Preview, tuple[EnginePart, ...]]:
    """The same with the weights identified and on this machine, and each engine's own part of it."""
    parts = tuple(engines.each(resolved, _ready))
    return _joined(engines, [part.preview for part in parts]), parts


def _quickly_checked(resolved: Resolved) -> EnginePart:
    part = EnginePart(adapter=resolved.adapter, preview=preview_sweep(resolved), request=resolved.request)
    resolved.models.check_quickly(resolved.adapter, resolved.request)
    return part


def _ready(resolved: Resolved) -> EnginePart:
    adapter, preview = resolved.adapter, preview_sweep(resolved)
    model, request = resolved.models.readied(adapter, resolved.request, preview.model)
    return EnginePart(adapter=adapter, preview=replace(preview, model=model), request=request)


def _joined(engines: SweepEngines, previews: Sequence[Preview]) -> Preview:
    """One space: the first engine's candidates, its baseline at their head, then each other engine's, likewise."""
    first, *others = previews
    if not others:
        return replace(first, refused=engines.refused)
    space = replace(
        first.space,
        candidates=tuple(candidate for one in previews for candidate in one.space.candidates),
        rejected=tuple(rejected for one in previews for rejected in one.space.rejected),
        asked_for=sum(one.space.asked_for for one in previews),
    )
    forecasts = {key: value for one in previews for key, value in one.forecasts.items()}
    # Where an engine forecasts nothing, its candidates could not be held against the others by forecast.
    if not all(one.forecasts for one in previews):
        forecasts = {}
    return replace(first, space=space, forecasts=forecasts, others=tuple(others), refused=engines.refused)
