"""What a sweep would do, found out without starting anything: device, model, fitted profile, space."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvray.candidate import CompileMode, DeviceType, DType
from kvray.config import TuneConfig
from kvray.engines.base import AxisValue, DeviceFacts, EngineAdapter, ModelInfo, ModelRequest
from kvray.errors import NoCandidatesError, SweepError
from kvray.probes.cpu import cpu_name
from kvray.probes.gpu import visible_gpus
from kvray.space.constraints import SpaceFacts
from kvray.space.search_space import Axes, SearchSpace, build_space
from kvray.workload import WorkloadProfile

_logger = logging.getLogger("kvray.preview")


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a sweep would do.

    Attributes:
        profile: fitted to the model: without the context lengths in `dropped_contexts`.
        menu: every value of every axis, with what stands in its way.
    """

    model: ModelInfo
    device: DeviceFacts
    profile: WorkloadProfile
    dropped_contexts: tuple[int, ...]
    space: SearchSpace
    menu: tuple[AxisValue, ...]

    @property
    def left_out(self) -> tuple[AxisValue, ...]:
        """Values that could be measured but were not asked for. What was, and cannot be, is in `space.rejected`."""
        asked_for = {
            (axis, str(getattr(candidate, axis)))
            for candidate in (*self.space.candidates, *(rejected.candidate for rejected in self.space.rejected))
            for axis in ("cache", "attention", "dtype", "compile")
        }
        return tuple(
            entry
            for entry in self.menu
            if entry.on_request and entry.obstacle is None and (entry.axis, entry.value) not in asked_for
        )


def check_request(config: TuneConfig, adapter: EngineAdapter) -> None:
    """Refuse what this machine and engine cannot do, and a model that is not there, without reading it: takes no time.

    Raises:
        ModelError: the model's name means nothing.
        NoCandidatesError: nothing of what an axis is narrowed to can be had here.
        SweepError: CUDA is asked for, without a cluster that might have it.
    """
    adapter.check_model_id(config.model_id)
    device = detect_device(config.device)
    if device.device is DeviceType.CUDA and device.gpu_count == 0 and config.address is None:
        raise SweepError(
            "Device 'cuda' was asked for, and this machine has no GPU that NVML can see.",
            hint="Use cpu, or the address of a Ray cluster with GPUs.",
        )
    _check_obstacles(config, adapter.menu(device))


def preview_sweep(config: TuneConfig, adapter: EngineAdapter) -> Preview:
    """Resolve `config` against the machine and the model's configuration.

    Raises:
        KvrayError: model, engine, device or profile cannot be used, or no candidate is left.
    """
    device = detect_device(config.device)
    menu = adapter.menu(device)
    _check_obstacles(config, menu)
    request = ModelRequest(model_id=config.model_id, trust_remote_code=config.trust_remote_code)
    model = adapter.describe_model(request)
    profile, dropped = config.profile.fit_to_context_limit(model.max_context)
    if dropped:
        _logger.warning("%s", _dropped_line(profile, dropped, model.max_context))
    axes = _narrow(adapter.axes(model, device, profile, compile=config.compile), config)
    if config.compile and not set(axes.compiles) - {CompileMode.OFF}:
        raise NoCandidatesError(
            f"Engine {adapter.name!r} compiles nothing on {device.device}.", hint="Leave --compile out."
        )
    space = build_space(
        axes,
        baseline=adapter.baseline(model, device, batch_size=min(profile.batch_sizes)),
        facts=SpaceFacts(device=device.device, dtypes=_available_dtypes(menu), gpu_count=device.gpu_count),
        engine_rules=adapter.rules(),
    )
    if space.asked_for == 0:
        reasons = sorted({rejected.reason for rejected in space.rejected})
        raise NoCandidatesError(
            f"No valid candidate is left: {'; '.join(reasons)}.", hint="Widen --cache, --attention or --dtype."
        )
    return Preview(model=model, device=device, profile=profile, dropped_contexts=dropped, space=space, menu=menu)


def detect_device(asked: DeviceType | None) -> DeviceFacts:
    """What this machine measures on: `asked`, or CUDA where there is a GPU that programs may use, else the CPU."""
    gpus = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES")) if asked is not DeviceType.CPU else ()
    if asked is DeviceType.CPU or (asked is None and not gpus):
        return DeviceFacts(device=DeviceType.CPU, device_name=cpu_name())
    if not gpus:
        # A cluster may have what the driver's machine lacks; Ray's resources are checked before the first trial.
        return DeviceFacts(device=DeviceType.CUDA, device_name="GPU of the cluster")
    return DeviceFacts(
        device=DeviceType.CUDA,
        device_name=gpus[0].name,
        gpu_count=len(gpus),
        compute_capability=min(gpu.compute_capability for gpu in gpus),
    )


def _narrow(axes: Axes, config: TuneConfig) -> Axes:
    return replace(
        axes,
        caches=config.caches or axes.caches,
        attentions=config.attentions or axes.attentions,
        dtypes=config.dtypes or axes.dtypes,
    )


def _check_obstacles(config: TuneConfig, menu: Sequence[AxisValue]) -> None:
    """Refuse an explicitly narrowed axis of which nothing can be had here, with the reasons."""
    for axis, asked in (("cache", config.caches), ("attention", config.attentions), ("dtype", config.dtypes)):
        obstacles = {entry.value: entry.obstacle for entry in menu if entry.axis == axis}
        reasons = [f"{value}: {obstacles.get(value, 'unknown to this engine')}" for value in asked]
        if asked and all(obstacles.get(value, "unknown") for value in asked):
            available = ", ".join(value for value, obstacle in obstacles.items() if obstacle is None)
            raise NoCandidatesError(
                f"No valid candidate is left: {'; '.join(reasons)}.", hint=f"Available here: {available}."
            )


def _available_dtypes(menu: Sequence[AxisValue]) -> frozenset[DType]:
    return frozenset(DType(entry.value) for entry in menu if entry.axis == "dtype" and not entry.obstacle)


def _dropped_line(profile: WorkloadProfile, dropped: Sequence[int], max_context: int | None) -> str:
    prompts = ", ".join(str(context) for context in dropped)
    return (
        f"Prompts of {prompts} tokens are left out: with up to {max(profile.output_lengths)} new ones they are more "
        f"than the {max_context} that the model holds."
    )
