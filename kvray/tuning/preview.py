"""What a sweep would do, found out without starting anything: device, model, fitted profile, space."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kvray.candidate import CacheChoice, Candidate, DeviceType, DType
from kvray.config import FULL_SPACE, TuneConfig
from kvray.engines.base import DeviceFacts, EngineAdapter, ModelInfo, ModelRequest
from kvray.engines.offline import is_offline_environment
from kvray.errors import NoCandidatesError, SweepError
from kvray.forecast.hardware import Hardware, free_memory_mib, load_hardware
from kvray.forecast.limits import unreachable_limits
from kvray.forecast.prediction import Forecast, does_not_fit, forecast
from kvray.space.asked import asked_values
from kvray.space.axis import Axis, canonical_form
from kvray.space.constraints import ON_ONE_GPU, SpaceFacts
from kvray.space.menu import available_here, check_any_available, lines_of, menu_of
from kvray.space.narrowing import narrowed
from kvray.space.search_space import RejectedCandidate, SearchSpace, SpaceBlock, build_space
from kvray.space.space_file import load_space
from kvray.tuning.local_device import detect_device, rates_key
from kvray.workload import WorkloadProfile

_logger = logging.getLogger("kvray.tuning.preview")


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a sweep would do.

    Attributes:
        profile: fitted to the model: without the context lengths in `dropped_contexts`.
        axes: what the engine lets one choose, with every value and what stands in its way.
        hardware: the device's rates, `None` where they have not been measured.
        free_mib: memory that a trial could take on the device, `None` where nothing tells.
        forecasts: by candidate id, of all that is measured or that cannot fit; empty where the model's shape is not
            known, or nothing is to be forecast.
    """

    model: ModelInfo
    device: DeviceFacts
    profile: WorkloadProfile
    dropped_contexts: tuple[int, ...]
    space: SearchSpace
    axes: tuple[Axis, ...]
    hardware: Hardware | None = None
    free_mib: float | None = None
    forecasts: Mapping[str, Forecast] = field(default_factory=dict)

    @property
    def unreachable_limits(self) -> tuple[str, ...]:
        """A sentence for each limit that no candidate is forecast to keep."""
        forecasts = {one.label: self.forecasts.get(one.candidate_id) for one in self.space.candidates}
        known = {label: one for label, one in forecasts.items() if one is not None}
        return unreachable_limits(known, self.profile.limits, self.hardware)

    @property
    def left_out(self) -> tuple[tuple[str, str, str], ...]:
        """(axis, value, reason) of everything on the menu that is neither measured nor rejected."""
        points = (*self.space.candidates, *(rejected.candidate for rejected in self.space.rejected))
        asked_for = {pair for candidate in points for pair in lines_of(candidate, self.axes)}
        return tuple(
            (entry.axis, entry.value, entry.obstacle or entry.on_request or "not asked for")
            for entry in menu_of(self.axes)
            if (entry.axis, entry.value) not in asked_for
        )


def check_request(config: TuneConfig, adapter: EngineAdapter) -> None:
    """Refuse what this machine and engine cannot do, and a model that is not there or not whole: takes no time.

    Raises:
        EngineError: the engine's library is not installed.
        ModelError: the model's name means nothing, or its files cannot be loaded.
        NoCandidatesError: nothing of what an axis is narrowed to can be had here.
        InvalidValueError: the engine has no such axis or value, or the space file cannot be read.
        SweepError: CUDA is asked for, without a cluster that might have it.
    """
    adapter.check_installed()
    adapter.check_model(requested_model(config))
    device = detect_device(config.device)
    if device.device is DeviceType.CUDA and device.gpu_count == 0 and config.address is None:
        raise SweepError(
            "Device 'cuda' was asked for, but this machine has no GPU that NVML can see.",
            hint="Use cpu, or the address of a Ray cluster with GPUs.",
        )
    axes = adapter.axes(device)
    check_any_available(asked_values(config, axes), axes)
    if config.has_space_file:
        load_space(config.space, axes=axes, otherwise=SpaceBlock(caches=(), attentions=(), dtypes=()))


def requested_model(config: TuneConfig) -> ModelRequest:
    """The model of `config`, with what the user allows; the user's environment may forbid the network as well."""
    return ModelRequest(
        model_id=config.model_id,
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
        offline=config.offline or is_offline_environment(),
    )


def described_model(config: TuneConfig, adapter: EngineAdapter) -> ModelInfo:
    """The model of `config`, with what is to be noted of it on the device that `config` means.

    Raises:
        ModelError: it cannot be described, or not loaded there.
    """
    request, device = requested_model(config), detect_device(config.device)
    info = adapter.describe_model(request)
    return adapter.adapt_to_device(request, info, device if config.address is None else None)


def preview_sweep(config: TuneConfig, adapter: EngineAdapter) -> Preview:
    """Resolve `config` against the machine and the model's configuration, without what cannot fit.

    Nothing is measured here: seconds are forecast only where `known_hardware` has been asked before.

    Raises:
        KvrayError: model, engine, device or profile cannot be used, or no candidate is left.
    """
    preview = _preview(config, adapter, described_model)
    if preview.forecasts:
        too_large = _too_large(preview)
        if preview.space.baseline in too_large:
            _logger.warning("The baseline %s; it is measured anyway.", too_large[preview.space.baseline])
        space = _without(preview.space, {candidate: f"{reason} (forecast)" for candidate, reason in too_large.items()})
        preview = replace(preview, space=space)
        _check_anything_is_left(preview.space)
    return preview


def forecast_only(config: TuneConfig, adapter: EngineAdapter, *, free_mib: float | None = None) -> Preview:
    """What a sweep would choose from and what is forecast of each, whether it fits or not, for a user who only asks.

    Whether the model can be loaded on this device is not asked: the forecast may be for another.

    Args:
        free_mib: memory to plan with; `None`: what is free now.

    Raises:
        KvrayError: as `preview_sweep`.
    """
    preview = _preview(config, adapter, lambda config, adapter: adapter.describe_model(requested_model(config)))
    return preview if free_mib is None else replace(preview, free_mib=free_mib)


def _preview(
    config: TuneConfig, adapter: EngineAdapter, read_model: Callable[[TuneConfig, EngineAdapter], ModelInfo]
) -> Preview:
    device = detect_device(config.device)
    axes = adapter.axes(device)
    check_any_available(asked_values(config, axes), axes)
    request = requested_model(config)
    model = read_model(config, adapter)
    profile, dropped = config.profile.fit_to_context_limit(model.max_context)
    if model.random_weights:
        profile = profile.without_quality_limit()
    if dropped:
        _logger.warning("%s", _dropped_line(profile, dropped, model.max_context))
    space = build_space(
        _blocks(config, axes, adapter, model, device, profile),
        baseline=adapter.baseline(model, device, batch_size=min(profile.batch_sizes)),
        facts=SpaceFacts(
            device=device.device,
            dtypes=_available_dtypes(axes),
            gpu_count=device.gpu_count if config.address is None else None,
        ),
        engine_rules=(
            available_here(axes),
            *(() if adapter.is_parallel else (ON_ONE_GPU,)),
            *adapter.rules(request, model, profile),
        ),
        canonical=lambda candidate: canonical_form(candidate, axes, profile),
    )
    _check_anything_is_left(space)
    preview = Preview(model=model, device=device, profile=profile, dropped_contexts=dropped, space=space, axes=axes)
    return _forecast(preview, config, adapter) if config.forecast else preview


def _forecast(preview: Preview, config: TuneConfig, adapter: EngineAdapter) -> Preview:
    shape, device = preview.model.shape, preview.device.device
    if shape is None:
        return preview
    _, key = rates_key(config, adapter)
    hardware = None if key is None else load_hardware(key)
    forecasts = {
        candidate.candidate_id: forecast(shape, candidate, preview.profile, device, hardware)
        for candidate in preview.space.candidates
    }
    free_mib = None if key is None else free_memory_mib(device)
    return replace(preview, hardware=hardware, free_mib=free_mib, forecasts=forecasts)


def _too_large(preview: Preview) -> dict[Candidate, str]:
    """The candidates that cannot fit by forecast, with the reason."""
    objections = {
        candidate: does_not_fit(preview.forecasts[candidate.candidate_id], preview.hardware, preview.free_mib)
        for candidate in preview.space.candidates
    }
    return {candidate: reason for candidate, reason in objections.items() if reason is not None}


def without_unplaceable(preview: Preview, gpus: int) -> Preview:
    """`preview` without the candidates that no machine can hold: the largest one has `gpus` GPUs.

    Raises:
        NoCandidatesError: no candidate is left.
    """
    if preview.device.device is not DeviceType.CUDA:
        return preview
    reasons = {
        candidate: f"needs {candidate.parallelism} GPUs, no machine has more than {gpus} (parallelism)"
        for candidate in preview.space.candidates
        if candidate.parallelism > gpus
    }
    space = _without(preview.space, reasons)
    _check_anything_is_left(space)
    return replace(preview, space=space)


def _without(space: SearchSpace, reasons: Mapping[Candidate, str]) -> SearchSpace:
    """The baseline stays whatever is said of it: gains are compared with what a user has today. If that does not run, a
    trial shows it."""
    rejected = [
        RejectedCandidate(candidate=candidate, reason=reason)
        for candidate, reason in reasons.items()
        if candidate != space.baseline
    ]
    return replace(
        space,
        candidates=tuple(one for one in space.candidates if one == space.baseline or one not in reasons),
        rejected=(*space.rejected, *rejected),
        asked_for=space.asked_for - len(rejected),
    )


def _check_anything_is_left(space: SearchSpace) -> None:
    if space.asked_for == 0:
        reasons = sorted({rejected.reason for rejected in space.rejected})
        raise NoCandidatesError(
            f"No valid candidate is left: {'; '.join(reasons)}.",
            hint="Widen --cache, --attention or another axis.",
        )


def _blocks(
    config: TuneConfig,
    axes: Sequence[Axis],
    adapter: EngineAdapter,
    model: ModelInfo,
    device: DeviceFacts,
    profile: WorkloadProfile,
) -> tuple[SpaceBlock, ...]:
    """The blocks that `config` asks for, with nothing left open."""

    def resolved(caches: Sequence[CacheChoice]) -> tuple[CacheChoice, ...]:
        return tuple(dict.fromkeys(one for choice in caches for one in adapter.resolve_cache(choice, device, profile)))

    full = config.space == FULL_SPACE
    blocks = (adapter.full_space if full else adapter.default_space)(model, device, profile)
    if config.has_space_file:
        blocks = load_space(config.space, axes=axes, otherwise=blocks[0])
    blocks = tuple(replace(block, caches=resolved(block.caches)) for block in blocks)
    asked = asked_values(config, axes)
    if caches := asked.get("cache"):
        asked["cache"] = resolved(caches)
    if asked:
        blocks = narrowed(blocks, asked)
    if config.static_len is not None:
        blocks = tuple(replace(block, caches=_with_length(block.caches, config.static_len)) for block in blocks)
    return blocks


def _with_length(caches: Sequence[CacheChoice], tokens: int) -> tuple[CacheChoice, ...]:
    """`caches`, with those of a fixed size that is left open made for so many tokens."""
    length = (("max_cache_len", tokens),)
    sized = (replace(one, params=length) if one.strategy.has_fixed_size and not one.params else one for one in caches)
    return tuple(dict.fromkeys(sized))


def _available_dtypes(axes: Sequence[Axis]) -> frozenset[DType]:
    return frozenset(DType(entry.value) for entry in menu_of(axes) if entry.axis == "dtype" and not entry.obstacle)


def _dropped_line(profile: WorkloadProfile, dropped: Sequence[int], max_context: int | None) -> str:
    prompts = ", ".join(str(context) for context in dropped)
    return (
        f"Prompts of {prompts} tokens are left out: with up to {max(profile.output_lengths)} new ones they "
        f"exceed the {max_context} that the model holds."
    )
