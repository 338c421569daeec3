"""What a request comes to on this machine, found out once: device, axes, model, workload, and the device's rates.

A sweep, its preview and a forecast are made from it, so that nothing is detected, read or measured twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from kvray.candidate import DeviceType
from kvray.config import TuneConfig
from kvray.engines.base import DeviceFacts, EngineAdapter, ModelInfo, ModelRequest
from kvray.engines.interpreter import EnginePython
from kvray.engines.model_access import ModelAccess
from kvray.engines.offline import is_offline_environment
from kvray.errors import SweepError
from kvray.forecast.hardware import Hardware, HardwareKey, load_hardware
from kvray.models.source import absolute_id
from kvray.space.asked import asked_values, check_parallelism, check_settings
from kvray.space.axis import Axis
from kvray.space.menu import check_any_available
from kvray.space.search_space import SpaceBlock
from kvray.space.space_file import load_space
from kvray.sweep.remote_device import NodeFacts
from kvray.tuning.engine_pythons import found_pythons
from kvray.tuning.local_device import detect_device, measured_hardware, rates_key, warn_of_disturbed_rates
from kvray.workload import WorkloadProfile

_logger = logging.getLogger("kvray.tuning.preview")


@dataclass(frozen=True, kw_only=True)
class CheckedRequest:
    """What is asked for, checked as far as that takes no time.

    Attributes:
        device: what is measured on.
        axes: what the engine lets one choose, with every value and what stands in its way.
        narrowed: the values that an axis is narrowed to, by its name.
        request: the model, with what the user allows.
        pythons: by engine, in which its trials run, where that is not kvray's own.
        models: reads the model's files where trials run.
        node_rates: the rates that a node of the cluster knows of itself; `None` without a cluster, or where it was
            never measured.
    """

    config: TuneConfig
    adapter: EngineAdapter
    device: DeviceFacts
    axes: tuple[Axis, ...]
    narrowed: Mapping[str, tuple[Any, ...]]
    request: ModelRequest
    pythons: Mapping[str, EnginePython]
    models: ModelAccess
    node_rates: Hardware | None = None


@dataclass(frozen=True, kw_only=True)
class Resolved(CheckedRequest):
    """The same with the model, and what follows from it.

    Attributes:
        profile: fitted to the model: without the context lengths in `dropped_contexts`.
        rates_key: by what the device's rates are known; `None` where forecasts do without.
        hardware: the device's rates; `None` where they have not been measured.
    """

    model: ModelInfo
    profile: WorkloadProfile
    dropped_contexts: tuple[int, ...]
    rates_key: HardwareKey | None
    hardware: Hardware | None


def check_request(
    config: TuneConfig,
    adapter: EngineAdapter,
    *,
    recorded_pythons: Mapping[str, str] = MappingProxyType({}),
    is_only_engine: bool = True,
    device: DeviceFacts | None = None,
    node: NodeFacts | None = None,
) -> CheckedRequest:
    """Refuse what this machine and engine cannot do, and a model that is not there or not whole: takes no time.

    Args:
        recorded_pythons: by engine, the path of the Python that the sweep had which is to go on.
        is_only_engine: whether the engine must have every axis that is named: it may be another engine's otherwise.
        device: what this machine measures on, where that is known already.
        node: what a node of the cluster that will measure says of itself; it counts instead of this machine.

    Raises:
        EngineError: the engine's library is not installed, or its Python cannot run it.
        ModelError: the model's name means nothing, or its files cannot be loaded.
        NoCandidatesError: nothing of what an axis is narrowed to can be had here.
        InvalidValueError: the engine has no such axis or value, or the space file cannot be read.
        SweepError: CUDA is asked for, without a cluster that might have it.
    """
    pythons = found_pythons(config, [adapter], recorded=recorded_pythons)
    if adapter.name not in pythons:
        adapter.check_installed()
    request, models = requested_model(config, adapter.name), node.models if node else ModelAccess()
    models.check(adapter, request)
    device = (node.device if node else device) or detect_device(config.device, slots=config.slots_beside)
    if device.device is DeviceType.CUDA and device.gpu_count == 0 and config.address is None:
        raise SweepError(
            "Device 'cuda' was asked for, but this machine has no GPU that NVML can see.",
            hint="Use cpu, or the address of a Ray cluster with GPUs.",
        )
    axes = node.axes[adapter.name] if node else tuple(adapter.axes(device))
    if is_only_engine:
        check_settings(config, axes)
        check_parallelism(config, axes)
    narrowed = asked_values(config, axes)
    check_any_available(narrowed, axes)
    if config.has_space_file:
        load_space(config.space, axes=axes, otherwise=SpaceBlock(caches=(), attentions=(), dtypes=()))
    return CheckedRequest(
        config=config,
        adapter=adapter,
        device=device,
        axes=axes,
        narrowed=narrowed,
        request=request,
        pythons=pythons,
        models=models,
        node_rates=None if node is None else node.rates.get(adapter.name),
    )


def requested_model(config: TuneConfig, engine: str) -> ModelRequest:
    """The model of `config` for `engine`, with what the user allows; the user's environment may forbid the network as
    well. To the nodes of a cluster a path means what it means here."""
    model_id = config.model_for(engine)
    return ModelRequest(
        model_id=model_id if config.address is None else absolute_id(model_id),
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
        offline=config.offline or is_offline_environment(),
    )


def resolve(checked: CheckedRequest, *, for_this_device: bool = True) -> Resolved:
    """Read what the model says of itself, fit the workload to it, and recall the device's rates. Nothing is measured.

    Args:
        for_this_device: whether the model is to run here, so that it is refused where it cannot.

    Raises:
        ModelError: the model cannot be described, or not loaded on this device.
        InvalidValueError: no context length of the profile fits the model.
    """
    config, adapter = checked.config, checked.adapter
    device = checked.device if config.address is None else None
    model = checked.models.described(adapter, checked.request, adapts=for_this_device, device=device)
    profile, dropped = config.profile.fit_to_context_limit(model.max_context)
    if model.random_weights:
        profile = profile.without_quality_limit()
    if dropped:
        _logger.warning("%s", _dropped_line(profile, dropped, model.max_context))
    key = rates_key(config, adapter, checked.device, checked.pythons.get(adapter.name))
    return Resolved(
        **vars(checked),
        model=model,
        profile=profile,
        dropped_contexts=dropped,
        rates_key=key,
        hardware=checked.node_rates if key is None else load_hardware(key),
    )


def with_measured_rates(
    resolved: Resolved,
    *,
    before_measuring: Callable[[], None] = lambda: None,
    warns: bool = True,
    clock: Callable[[], float] = time.time,
) -> Resolved:
    """`resolved` with the rates of the device, measured now if they never were, or hours ago while other programs ran;
    `before_measuring` is called then.

    They stay as they are where nothing is to be forecast, where the engine does not measure, and on a cluster, whose
    nodes may differ from this machine.

    Args:
        warns: of rates that were disturbed while they were measured.
    """
    if resolved.rates_key is None:
        return resolved
    hardware = measured_hardware(
        resolved.rates_key,
        resolved.adapter,
        resolved.hardware,
        python=resolved.pythons.get(resolved.adapter.name),
        before_measuring=before_measuring,
        clock=clock,
    )
    if warns:
        warn_of_disturbed_rates([(resolved.rates_key, hardware)], clock=clock)
    return replace(resolved, hardware=hardware)


def _dropped_line(profile: WorkloadProfile, dropped: Sequence[int], max_context: int | None) -> str:
    prompts = ", ".join(str(context) for context in dropped)
    return (
        f"Prompts of {prompts} tokens are left out: with up to {max(profile.output_lengths)} new ones they "
        f"exceed the {max_context} that the model holds."
    )
