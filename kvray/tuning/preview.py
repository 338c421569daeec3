"""What a sweep would do, found out without starting anything: device, model, fitted profile, space."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from kvray.candidate import CacheChoice, Candidate, DeviceType, DType, setting_text
from kvray.config import FULL_SPACE
from kvray.engines.base import DeviceFacts, ModelInfo
from kvray.errors import NoCandidatesError
from kvray.forecast.cost_model import CostModel
from kvray.forecast.hardware import Hardware, free_memory_mib
from kvray.forecast.limits import unreachable_limits
from kvray.forecast.prediction import Forecast, beside_allocator_mib, does_not_fit, forecast
from kvray.space.asked import asked_values
from kvray.space.axis import Axis, canonical_form
from kvray.space.constraints import ON_ONE_GPU, SpaceFacts
from kvray.space.menu import SHARED_AXES, available_here, lines_of, menu_of
from kvray.space.narrowing import narrowed, spread
from kvray.space.search_space import RejectedCandidate, SearchSpace, SpaceBlock, build_space
from kvray.space.space_file import load_space
from kvray.tuning.candidate_list import listed_candidates
from kvray.tuning.resolved import Resolved
from kvray.tuning.same_model import unlike_model_notes
from kvray.workload import WorkloadProfile

_WIDEN = "Widen --cache, --attention or another axis."
_RUNS_GGUF = "llama_cpp"
_NO_EFFECT = "comes to another value, or to the default, for this workload"
_logger = logging.getLogger("kvray.tuning.preview")


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """An engine that was asked for and takes no part in the sweep: why, and what would help."""

    engine: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Rest:
    """What the records of a resumed sweep leave to be measured.

    Attributes:
        left: the candidates whose search trial the records do not have, in the order of the space.
        again: ids of those in `left` that were launched and are launched again.
        measured: how many candidates of the space are not launched again.
        confirming: confirming trials in the records.
        is_answered: whether an earlier attempt has come to its end and asked at least as much.
    """

    run_id: str
    left: tuple[Candidate, ...]
    again: tuple[str, ...] = ()
    measured: int = 0
    confirming: int = 0
    is_answered: bool = False


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a sweep would do. Where it takes several engines, `model` and `axes` are the first one's, and `space` is
    that of all.

    Attributes:
        profile: fitted to the model: without the context lengths in `dropped_contexts`.
        axes: what the engine lets one choose, with every value and what stands in its way.
        costs: by which the engine's candidates are forecast; `None` where nothing is.
        hardware: the device's rates as the (first) engine measured them, `None` where they have not been measured.
        free_mib: memory that a trial could take on the device, `None` where nothing tells.
        forecasts: by candidate id, of all that is measured or that cannot fit, each by its own engine's costs; empty
            where an engine forecasts nothing of the model, or nothing is to be forecast.
        others: each further engine's own preview.
        without_effect: axis and value of what `--set` asks for and no candidate has, because for this workload it comes
            to another value.
        refused: engines that were asked for and take no part.
        rest: of a sweep that is resumed; `None` for a new one, and where that is not asked.
        other_types: the same on each further type of GPU of a cluster.
    """

    model: ModelInfo
    device: DeviceFacts
    profile: WorkloadProfile
    dropped_contexts: tuple[int, ...]
    space: SearchSpace
    axes: tuple[Axis, ...]
    costs: CostModel | None = None
    hardware: Hardware | None = None
    free_mib: float | None = None
    forecasts: Mapping[str, Forecast] = field(default_factory=dict)
    others: tuple[Preview, ...] = ()
    without_effect: tuple[tuple[str, str], ...] = ()
    refused: tuple[Refusal, ...] = ()
    rest: Rest | None = None
    other_types: tuple[Preview, ...] = ()

    @property
    def baseline_mib(self) -> float:
        """Memory that the baseline takes by forecast; 0 where nothing is forecast."""
        baseline = self.forecasts.get(self.space.baseline.candidate_id)
        return 0.0 if baseline is None else baseline.highest_peak_mib

    @property
    def engines(self) -> tuple[str, ...]:
        """Names of the engines that take part, the baseline's first."""
        return tuple(one.space.baseline.engine for one in (self, *self.others))

    @property
    def defaults(self) -> tuple[Candidate, ...]:
        """What each of the other engines does with nothing set."""
        return tuple(one.space.baseline for one in self.others)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the figures must know of the model; where engines differ in it, by the engine's name."""
        each = [(one.space.baseline.engine, note) for one in (self, *self.others) for note in one.model.notes]
        told = [note for _, note in each]
        models = {one.space.baseline.engine: one.model for one in (self, *self.others)}
        own = (note if told.count(note) > len(self.others) else f"{name}: {note}" for name, note in each)
        return tuple(dict.fromkeys([*unlike_model_notes(models), *own]))

    @property
    def hint(self) -> str | None:
        """What a user may not know where a GGUF file is measured unpacked alone: which engine runs it as it is."""
        asked = (*self.engines, *(one.engine for one in self.refused))
        if _RUNS_GGUF in asked or not self.model.model_id.lower().endswith(".gguf"):
            return None
        names = ",".join((*self.engines, _RUNS_GGUF))
        return f"The engine {_RUNS_GGUF} runs a GGUF file as it is. To rank it too: --engine {names}."

    @property
    def unreachable_limits(self) -> tuple[str, ...]:
        """A sentence for each limit that no candidate is forecast to keep."""
        known = {
            one: self.forecasts[one.candidate_id] for one in self.space.candidates if one.candidate_id in self.forecasts
        }
        rates = {one.space.baseline.engine: one.hardware for one in (self, *self.others)}
        return unreachable_limits(
            {one.label: forecast for one, forecast in known.items()},
            self.profile.limits,
            beside_mib={one.label: beside_allocator_mib(rates.get(one.engine)) for one in known},
        )

    @property
    def left_out(self) -> tuple[tuple[str, str, str], ...]:
        """(axis, value, reason) of everything on the menu that is neither measured nor rejected."""
        points = (*self.space.candidates, *(rejected.candidate for rejected in self.space.rejected))
        own = (candidate for candidate in points if candidate.engine == self.space.baseline.engine)
        asked_for = {pair for candidate in own for pair in lines_of(candidate, self.axes)}
        return (
            *(("engine", one.engine, one.reason) for one in self.refused),
            *((axis, value, _NO_EFFECT) for axis, value in self.without_effect),
            *(
                (entry.axis, entry.value, entry.obstacle or entry.on_request or "not asked for")
                for entry in menu_of(self.axes)
                if (entry.axis, entry.value) not in asked_for
            ),
            *(
                (axis, f"{value} ({other.space.baseline.engine})", reason)
                for other in self.others
                for axis, value, reason in other.left_out
            ),
        )


def preview_sweep(resolved: Resolved) -> Preview:
    """The candidates of a sweep, without those that cannot fit. Nothing is measured here.

    Raises:
        KvrayError: the space has an unknown value, or no candidate is left.
    """
    preview = forecast_only(resolved)
    if preview.forecasts:
        too_large = _too_large(preview)
        if preview.space.baseline in too_large:
            _logger.warning("The baseline %s; it is measured anyway.", too_large[preview.space.baseline])
        space = _without(preview.space, {candidate: f"{reason} (forecast)" for candidate, reason in too_large.items()})
        preview = replace(preview, space=space)
        _check_anything_is_left(preview.space)
    return preview


def forecast_only(resolved: Resolved, *, free_mib: float | None = None) -> Preview:
    """What a sweep would choose from and what is forecast of each, whether it fits or not, for a user who only asks.

    Args:
        free_mib: memory to plan with; `None`: what is free now.

    Raises:
        KvrayError: as `preview_sweep`.
    """
    space = _space(resolved)
    preview = Preview(
        model=resolved.model,
        device=resolved.device,
        profile=resolved.profile,
        dropped_contexts=resolved.dropped_contexts,
        space=space,
        axes=resolved.axes,
        without_effect=_without_effect(resolved, space),
    )
    if resolved.config.forecast:
        preview = _forecast(preview, resolved)
    return preview if free_mib is None else replace(preview, free_mib=free_mib)


def _space(resolved: Resolved) -> SearchSpace:
    config, adapter, axes, model = resolved.config, resolved.adapter, resolved.axes, resolved.model
    device, profile = resolved.device, resolved.profile
    listed = _listed(resolved)
    space = build_space(
        () if listed else _blocks(resolved),
        listed=listed,
        baseline=adapter.baseline(model, device, batch_size=min(profile.batch_sizes)),
        facts=SpaceFacts(
            device=device.device,
            dtypes=_available_dtypes(axes),
            gpu_count=device.gpu_count if config.address is None else None,
            cpu_processes=adapter.cpu_processes,
        ),
        engine_rules=(
            available_here(axes),
            *(() if adapter.is_parallel else (ON_ONE_GPU,)),
            *adapter.rules(resolved.request, model, profile),
        ),
        canonical=lambda candidate: canonical_form(candidate, axes, profile),
    )
    _check_anything_is_left(space)
    return space


def _without_effect(resolved: Resolved, space: SearchSpace) -> tuple[tuple[str, str], ...]:
    """What `--set` asks for and nothing in `space` has."""
    if resolved.config.candidates is not None:
        return ()
    points = (*space.candidates, *(rejected.candidate for rejected in space.rejected))
    return tuple(
        (name, setting_text(value))
        for name, values in asked_values(resolved.config, resolved.axes).items()
        if name not in SHARED_AXES
        for value in values
        if value is not None and all(point.setting(name) != value for point in points)
    )


def _listed(resolved: Resolved) -> tuple[Candidate, ...]:
    """The engine's own candidates of the list that was given, if one was.

    Raises:
        NoCandidatesError: it has none of them.
    """
    if resolved.config.candidates is None:
        return ()
    every = listed_candidates(str(resolved.config.candidates), results=resolved.config.output_dir)
    own = tuple(candidate for candidate in every if candidate.engine == resolved.adapter.name)
    if not own:
        names = ", ".join(sorted({candidate.engine for candidate in every}))
        raise NoCandidatesError(
            f"{resolved.config.candidates!r} lists no candidate of engine {resolved.adapter.name!r}.",
            hint=f"It lists candidates of {names}; name the engine with --engine.",
        )
    return own


def _forecast(preview: Preview, resolved: Resolved) -> Preview:
    costs, device, hardware = resolved.adapter.cost_model(resolved.model), preview.device.device, resolved.hardware
    if costs is None:
        return preview
    forecasts = {
        candidate.candidate_id: forecast(costs, candidate, preview.profile, device, hardware)
        for candidate in preview.space.candidates
    }
    free_mib = None if resolved.rates_key is None else free_memory_mib(device)
    return replace(preview, costs=costs, hardware=hardware, free_mib=free_mib, forecasts=forecasts)


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
        is_spread = bool(space.rejected) and all(one.candidate.parallelism > 1 for one in space.rejected)
        hint = "Give another --parallelism: single needs one GPU." if is_spread else _WIDEN
        raise NoCandidatesError(f"No valid candidate is left: {'; '.join(reasons)}.", hint=hint)


def _blocks(resolved: Resolved) -> tuple[SpaceBlock, ...]:
    """The blocks that are asked for, with nothing left open."""
    config, adapter, device, profile = resolved.config, resolved.adapter, resolved.device, resolved.profile

    def complete(caches: Sequence[CacheChoice]) -> tuple[CacheChoice, ...]:
        return tuple(dict.fromkeys(one for choice in caches for one in adapter.resolve_cache(choice, device, profile)))

    full = config.space == FULL_SPACE
    blocks = (adapter.full_space if full else adapter.default_space)(resolved.model, device, profile)
    if config.has_space_file:
        blocks = load_space(config.space, axes=resolved.axes, otherwise=blocks[0])
    blocks = tuple(replace(block, caches=complete(block.caches)) for block in blocks)
    asked = dict(resolved.narrowed)
    if caches := asked.get("cache"):
        asked["cache"] = complete(caches)
    if asked:
        blocks = narrowed(blocks, asked)
    if config.parallelism:
        blocks = spread(blocks, config.parallelism)
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
