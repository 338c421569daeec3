"""What a sweep would do, found out without starting anything: device, model, fitted profile, space."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kvray.candidate import CacheChoice, Candidate, DeviceType, DType
from kvray.config import FULL_SPACE, TuneConfig
from kvray.engines.base import AxisValue, DeviceFacts, EngineAdapter, ModelInfo, ModelRequest
from kvray.engines.offline import is_offline_environment
from kvray.errors import NoCandidatesError, SweepError
from kvray.forecast.hardware import Hardware, free_memory_mib, load_hardware
from kvray.forecast.limits import unreachable_limits
from kvray.forecast.prediction import Forecast, does_not_fit, forecast
from kvray.space.constraints import Constraint, SpaceFacts
from kvray.space.narrowing import narrowed
from kvray.space.search_space import Axes, RejectedCandidate, SearchSpace, build_space
from kvray.space.space_file import load_space
from kvray.tuning.local_device import detect_device, rates_key
from kvray.workload import WorkloadProfile

_logger = logging.getLogger("kvray.tuning.preview")


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a sweep would do.

    Attributes:
        profile: fitted to the model: without the context lengths in `dropped_contexts`.
        menu: every value of every axis, with what stands in its way.
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
    menu: tuple[AxisValue, ...]
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
        asked_for = {pair for candidate in points for pair in _axis_values(candidate)}
        return tuple(
            (entry.axis, entry.value, entry.obstacle or entry.on_request or "not asked for")
            for entry in self.menu
            if (entry.axis, entry.value) not in asked_for
        )


def check_request(config: TuneConfig, adapter: EngineAdapter) -> None:
    """Refuse what this machine and engine cannot do, and a model that is not there or not whole: takes no time.

    Raises:
        EngineError: the engine's library is not installed.
        ModelError: the model's name means nothing, or its files cannot be loaded.
        NoCandidatesError: nothing of what an axis is narrowed to can be had here.
        InvalidValueError: the space file cannot be read.
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
    _check_obstacles(config, adapter.menu(device))
    if config.has_space_file:
        load_space(config.space, otherwise=Axes(caches=(), attentions=(), dtypes=()))


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
        preview = replace(preview, space=_without(preview.space, _too_large(preview)))
        _check_anything_is_left(preview.space)
    for told in preview.unreachable_limits:
        _logger.warning("%s", told)
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
    menu = adapter.menu(device)
    _check_obstacles(config, menu)
    request = requested_model(config)
    model = read_model(config, adapter)
    profile, dropped = config.profile.fit_to_context_limit(model.max_context)
    if model.random_weights:
        profile = profile.without_quality_limit()
    if dropped:
        _logger.warning("%s", _dropped_line(profile, dropped, model.max_context))
    space = build_space(
        _blocks(config, adapter, model, device, profile),
        baseline=adapter.baseline(model, device, batch_size=min(profile.batch_sizes)),
        facts=SpaceFacts(device=device.device, dtypes=_available_dtypes(menu), gpu_count=device.gpu_count),
        engine_rules=(available_here(menu), *adapter.rules(request, model, profile)),
    )
    _check_anything_is_left(space)
    preview = Preview(model=model, device=device, profile=profile, dropped_contexts=dropped, space=space, menu=menu)
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


def _without(space: SearchSpace, too_large: Mapping[Candidate, str]) -> SearchSpace:
    """The baseline stays whatever is forecast: gains are compared with what a user has today. If that does not run, a
    trial shows it."""
    if space.baseline in too_large:
        _logger.warning("The baseline %s; it is measured anyway.", too_large[space.baseline])
    rejected = [
        RejectedCandidate(candidate=candidate, reason=f"{reason} (forecast)")
        for candidate, reason in too_large.items()
        if candidate != space.baseline
    ]
    return replace(
        space,
        candidates=tuple(one for one in space.candidates if one == space.baseline or one not in too_large),
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


def available_here(menu: Sequence[AxisValue]) -> Constraint:
    """Rejects what the menu has an obstacle for, with that obstacle."""
    obstacles = {(entry.axis, entry.value): entry.obstacle for entry in menu if entry.obstacle}

    def check(candidate: Candidate, facts: SpaceFacts) -> str | None:
        del facts
        values = [pair for pair in _axis_values(candidate) if pair in obstacles]
        if not values:
            return None
        axis, value = values[0]
        return f"{axis if axis in _NUMERIC_AXES else value}: {obstacles[values[0]]}"

    return Constraint(name="available-here", check=check)


_NUMERIC_AXES = ("prefill_chunk", "weights_limit_mib")
"""Their line on the menu names a unit in place of a value."""


def _axis_values(candidate: Candidate) -> tuple[tuple[str, str], ...]:
    """The lines of a menu that a candidate stands for; a cache is on it with its settings or without."""
    return (
        ("cache", str(candidate.cache_choice)),
        ("cache", candidate.cache.value),
        ("attention", candidate.attention.value),
        ("dtype", candidate.dtype.value),
        ("compile", candidate.compile.value),
        *((("prefill_chunk", "tokens"),) if candidate.prefill_chunk is not None else ()),
        *((("weights_limit_mib", "MiB"),) if candidate.weights_limit_mib is not None else ()),
    )


def _blocks(
    config: TuneConfig, adapter: EngineAdapter, model: ModelInfo, device: DeviceFacts, profile: WorkloadProfile
) -> tuple[Axes, ...]:
    """The blocks that `config` asks for, with nothing left open."""

    def resolved(caches: Sequence[CacheChoice]) -> tuple[CacheChoice, ...]:
        return tuple(dict.fromkeys(one for choice in caches for one in adapter.resolve_cache(choice, device, profile)))

    full = config.space == FULL_SPACE
    blocks = (adapter.full_space if full else adapter.default_space)(model, device, profile)
    if config.has_space_file:
        blocks = load_space(config.space, otherwise=blocks[0])
    blocks = tuple(replace(axes, caches=resolved(axes.caches)) for axes in blocks)
    if config.narrows:
        asked = {
            "caches": resolved(config.caches),
            "attentions": config.attentions,
            "dtypes": config.dtypes,
            "compiles": config.compiles,
            "prefill_chunks": config.prefill_chunks,
            "weights_limits_mib": config.weights_limits_mib,
        }
        blocks = narrowed(blocks, {axis: values for axis, values in asked.items() if values})
    if config.static_len is not None:
        blocks = tuple(replace(axes, caches=_with_length(axes.caches, config.static_len)) for axes in blocks)
    return blocks


def _with_length(caches: Sequence[CacheChoice], tokens: int) -> tuple[CacheChoice, ...]:
    """`caches`, with those of a fixed size that is left open made for so many tokens."""
    length = (("max_cache_len", tokens),)
    sized = (replace(one, params=length) if one.strategy.has_fixed_size and not one.params else one for one in caches)
    return tuple(dict.fromkeys(sized))


def _check_obstacles(config: TuneConfig, menu: Sequence[AxisValue]) -> None:
    """Refuse an explicitly narrowed axis of which nothing can be had here, with the reasons."""
    # A family's name, such as a bare `quantized`, stands for several lines of the menu.
    families = {entry.value.partition("(")[0] for entry in menu if entry.axis == "cache" and "(" in entry.value}
    asked: dict[str, list[str]] = {
        "cache": [] if families & set(map(str, config.caches)) else list(map(str, config.caches)),
        "attention": [choice.backend.value for choice in config.attentions],
        "dtype": [dtype.value for dtype in config.dtypes],
        "compile": [mode.value for mode in config.compiles],
    }
    for axis, values in asked.items():
        obstacles = {entry.value: entry.obstacle for entry in menu if entry.axis == axis}
        reasons = {value: _obstacle(value, obstacles) for value in values}
        if values and all(reasons.values()):
            available = ", ".join(value for value, obstacle in obstacles.items() if obstacle is None)
            told = "; ".join(f"{value}: {reason}" for value, reason in reasons.items())
            raise NoCandidatesError(f"No valid candidate is left: {told}.", hint=f"Available here: {available}.")


def _obstacle(value: str, obstacles: Mapping[str, str | None]) -> str | None:
    """The obstacle of a value. With other settings than the menu's it is that of the bare name, if there is one."""
    bare = value.partition("(")[0]
    if value in obstacles or bare in obstacles:
        return obstacles.get(value) or obstacles.get(bare)
    related = [obstacle for name, obstacle in obstacles.items() if name.partition("(")[0] == bare]
    return None if None in related else (related or ["unknown to this engine"])[0]


def _available_dtypes(menu: Sequence[AxisValue]) -> frozenset[DType]:
    return frozenset(DType(entry.value) for entry in menu if entry.axis == "dtype" and not entry.obstacle)


def _dropped_line(profile: WorkloadProfile, dropped: Sequence[int], max_context: int | None) -> str:
    prompts = ", ".join(str(context) for context in dropped)
    return (
        f"Prompts of {prompts} tokens are left out: with up to {max(profile.output_lengths)} new ones they "
        f"exceed the {max_context} that the model holds."
    )
