"""A sweep that is ready to begin: its model is described, its weights are here and checked. Needs no Ray."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kvray.config import TuneConfig, warn_of_closed_cache
from kvray.engines.base import EngineAdapter
from kvray.engines.interpreter import EnginePython
from kvray.errors import KvrayError
from kvray.extras import Extra
from kvray.store.batch_manifest import BatchSweep
from kvray.store.parquet import ResultsStore
from kvray.sweep.remote_device import NodeFacts
from kvray.sweep.samplers import check_search
from kvray.tuning.engines import EnginePart, SweepEngines, ready_parts
from kvray.tuning.local_device import warn_of_disturbed_rates
from kvray.tuning.preview import Preview
from kvray.tuning.resolved import CheckedRequest, Resolved, with_measured_rates

_logger = logging.getLogger("kvray.tuning")


@dataclass(frozen=True, kw_only=True)
class ReadySweep:
    """What is known of a sweep before it begins.

    Attributes:
        parts: what each engine contributes, the baseline's first.
        pythons: by engine, in which its trials run, where that is not kvray's own.
        node: of the cluster, what one that will measure says of itself; `None` without a cluster.
    """

    config: TuneConfig
    preview: Preview
    parts: tuple[EnginePart, ...]
    pythons: dict[str, EnginePython]
    node: NodeFacts | None = None

    @property
    def gpu_type(self) -> str | None:
        """Ray's accelerator type of the GPUs that it is to be measured on, where that is known."""
        return None if self.node is None else self.node.gpu_type

    @property
    def adapters(self) -> tuple[EngineAdapter, ...]:
        """The engines that take part."""
        return tuple(part.adapter for part in self.parts)


def look_at(
    config: TuneConfig,
    store: ResultsStore,
    *,
    node: NodeFacts | None = None,
    before_rates: Callable[[CheckedRequest], None] | None = None,
) -> ReadySweep:
    """Describe the model, fetch its weights and check them; may take long.

    Args:
        node: what a node of the cluster that will measure says of itself.
        before_rates: called before the device's rates are measured; `None` leaves them as they are known, because
            something else runs on the device.

    Raises:
        KvrayError: the model, the engine or the profile cannot be used, or no candidate is left.
    """
    engines = SweepEngines.named(config.engines)
    recorded = {} if config.resume is None else store.read_manifest(config.resume).engine_pythons
    checked = engines.check(config, recorded_pythons=recorded, node=node)
    Extra.TUNE.require("Measuring")
    check_search(config.search)
    resolved = engines.resolve(checked)
    if before_rates is not None:
        before_rates(checked[0])
        resolved = with_rates(engines, resolved)
    return made_ready(config, engines, resolved, node=node)


def made_ready(
    config: TuneConfig, engines: SweepEngines, resolved: Sequence[Resolved], *, node: NodeFacts | None = None
) -> ReadySweep:
    """Fetch the weights and check them, and warn of what is known to stand in the way.

    Raises:
        KvrayError: no candidate is left, or the weights cannot be had.
    """
    preview, parts = ready_parts(engines, resolved)
    engines.tell_refused()
    if preview.hint is not None:
        _logger.info("%s", preview.hint)
    for told in preview.unreachable_limits:
        _logger.warning("%s", told)
    warn_of_closed_cache()
    pythons = {name: python for one in resolved for name, python in one.pythons.items()}
    return ReadySweep(config=config, preview=preview, parts=parts, pythons=pythons, node=node)


def with_rates(
    engines: SweepEngines, resolved: Sequence[Resolved], *, before: Callable[[], None] = lambda: None
) -> list[Resolved]:
    """`resolved` of all engines with the rates of the device; before the first are measured, `before` is called once.

    Raises:
        KvrayError: the error of the first engine, where it fails for all.
    """

    before_first = functools.cache(before)

    def measured(one: Resolved) -> Resolved:
        def before_measuring() -> None:
            # What the weights rule out is told first: it takes less time.
            one.adapter.check_weights(one.request)
            before_first()

        return with_measured_rates(one, before_measuring=before_measuring, warns=False)

    found = engines.each(resolved, measured)
    warn_of_disturbed_rates((one.rates_key, one.hardware) for one in found if one.rates_key is not None)
    return found


def engines_first(sweeps: Sequence[BatchSweep], configs: Mapping[str, TuneConfig]) -> tuple[list[BatchSweep], int]:
    """The sweeps with the first one of each engine at their head, and how many those are."""
    ids = set({configs[sweep.run_id].engines: sweep.run_id for sweep in reversed(sweeps)}.values())
    return sorted(sweeps, key=lambda sweep: sweep.run_id not in ids), len(ids)


def named_adapters(configs: Sequence[TuneConfig]) -> list[EngineAdapter]:
    """The engines that are asked for; one that is not there fails where its sweep is looked at."""
    found: dict[str, EngineAdapter] = {}
    for names in dict.fromkeys(config.engines for config in configs):
        try:
            found |= {adapter.name: adapter for adapter in SweepEngines.named(names).adapters}
        except KvrayError:
            continue
    return list(found.values())
