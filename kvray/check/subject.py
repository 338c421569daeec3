"""What of a baseline can be measured on this machine: its engines, the model as each of them has it here, candidates.

Everything that can be known to fail is refused here, before anything is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvray.candidate import Candidate, DeviceType, DType
from kvray.check.baseline import Baseline
from kvray.check.config import Consent
from kvray.check.result import CheckedModel
from kvray.engines.base import DeviceFacts, EngineAdapter, ModelInfo, ModelRequest
from kvray.engines.interpreter import chosen_python, inspect_python
from kvray.engines.model_access import ModelAccess
from kvray.engines.offline import is_offline_environment
from kvray.engines.registry import get_engine
from kvray.errors import InvalidValueError, ModelError, NoCandidatesError, PlanError, ResultsError
from kvray.space.axis import Axis
from kvray.space.constraints import ON_ONE_GPU, RULES, SpaceFacts, first_objection
from kvray.space.menu import available_here, menu_of
from kvray.tuning.local_device import detect_device
from kvray.workload import WorkloadProfile


@dataclass(frozen=True, kw_only=True)
class CheckedEngine:
    """One engine, and the model as it has it on this machine.

    Attributes:
        python: path of the Python of another environment in which it runs; `None`: this one.
        recorded_revision: what identified the weights of the baseline; `None` where nobody knows.
    """

    adapter: EngineAdapter
    request: ModelRequest
    model: ModelInfo
    python: str | None
    recorded_revision: str | None

    @property
    def has_other_weights(self) -> bool:
        """Whether the weights are not those that the baseline measured."""
        return self.recorded_revision not in (None, self.model.revision)

    @property
    def checked_model(self) -> CheckedModel:
        """As `check.json` tells it."""
        return CheckedModel(model_id=self.request.model_id, model_revision=self.model.revision, python=self.python)


def device_of(baseline: Baseline) -> DeviceFacts:
    """This machine's device of the kind that the baseline was measured on.

    Raises:
        ResultsError: there is none here.
    """
    facts = detect_device(baseline.device)
    if facts.device is DeviceType.CUDA and facts.gpu_count == 0:
        raise ResultsError(
            f"The baseline was measured on a GPU ({baseline.side.device_name}), and this machine has none that NVML "
            "can see.",
            hint="Check it on the machine that measured it.",
        )
    return facts


def check_consent(baseline: Baseline, candidates: Sequence[Candidate], consent: Consent) -> None:
    """Refuse code by others that nobody here has said to trust.

    Raises:
        PlanError
    """
    kernels = sorted({f"kernel {one.foreign_kernel} from the hub" for one in candidates if one.foreign_kernel})
    code = [*(["Python code that the model brings"] if baseline.trust_remote_code else []), *kernels]
    if code and not consent.trust_remote_code:
        raise PlanError(
            f"The baseline runs {' and '.join(code)}.", hint="If you trust its authors, add --trust-remote-code."
        )


def found_engine(baseline: Baseline, name: str, consent: Consent, device: DeviceFacts) -> CheckedEngine:
    """The engine called `name`, with its weights on this machine.

    Raises:
        EngineError, ModelError: the engine or the model is not there, or not whole.
        ResultsError: the baseline does not say which model the engine had.
    """
    if name not in baseline.models:
        raise ResultsError(f"Baseline {baseline.shown!r} does not say which model engine {name!r} has.")
    recorded = baseline.models[name]
    adapter, models = get_engine(name), ModelAccess()
    python = chosen_python(name, {}, {} if recorded.python is None else {name: recorded.python})
    if python is None:
        adapter.check_installed()
    else:
        inspect_python(python, adapter)
    asked = ModelRequest(
        model_id=recorded.model_id,
        trust_remote_code=consent.trust_remote_code,
        allow_pickle=consent.allow_pickle,
        offline=consent.offline or is_offline_environment(),
        revision=recorded.model_revision,
    )
    try:
        models.check(adapter, asked)
        described = models.described(adapter, asked, adapts=True, device=device)
        model, request = models.readied(adapter, asked, described)
    except ModelError as error:
        if baseline.allow_pickle and not consent.allow_pickle:
            raise ModelError(
                f"The baseline was measured with weights that might be pickled. {error.message}",
                hint="If you trust whoever made them, add --allow-pickle.",
            ) from error
        if recorded.model_id.startswith((".", "/", "~")) or recorded.model_id.lower().endswith(".gguf"):
            error.hint = f"The path comes from {baseline.shown!r}: put the model back there, or tune again."
        raise
    return CheckedEngine(
        adapter=adapter, request=request, model=model, python=python, recorded_revision=recorded.model_revision
    )


def check_workload(engine: CheckedEngine, profile: WorkloadProfile) -> None:
    """Refuse a workload that the model, as it is now, cannot hold.

    Raises:
        ProfileError, InvalidValueError
    """
    _, dropped = profile.fit_to_context_limit(engine.model.max_context)
    if dropped:
        raise InvalidValueError(
            f"The model holds {engine.model.max_context} tokens now, and the baseline measured prompts of "
            f"{', '.join(map(str, dropped))} tokens.",
            hint="Measure a new baseline.",
        )


def check_candidates(
    engines: Mapping[str, CheckedEngine],
    candidates: Sequence[Candidate],
    device: DeviceFacts,
    profile: WorkloadProfile,
) -> None:
    """Refuse candidates that do not exist in the engine's version on this machine.

    Raises:
        NoCandidatesError: names each with the reason.
    """
    reasons = {one: _objection(engines[one.engine], one, device, profile) for one in candidates}
    told = [f"{one.label}: {reason}" for one, reason in reasons.items() if reason is not None]
    if told:
        raise NoCandidatesError(
            f"Not every candidate can be measured here: {'; '.join(told)}.",
            hint="Name the others with --candidates, or check where the engine has them.",
        )


def _objection(
    engine: CheckedEngine, candidate: Candidate, device: DeviceFacts, profile: WorkloadProfile
) -> str | None:
    adapter, axes = engine.adapter, tuple(engine.adapter.axes(device))
    if unknown := sorted(dict(candidate.settings).keys() - {axis.name for axis in axes}):
        return f"engine {adapter.name} has no axis {', '.join(unknown)} in this version"
    rules = (
        *RULES,
        available_here(axes),
        *(() if adapter.is_parallel else (ON_ONE_GPU,)),
        *adapter.rules(engine.request, engine.model, profile),
    )
    facts = SpaceFacts(
        device=device.device,
        dtypes=_dtypes(axes),
        gpu_count=device.gpu_count,
        cpu_processes=adapter.cpu_processes,
    )
    return first_objection(candidate, facts, rules)


def _dtypes(axes: Sequence[Axis]) -> frozenset[DType]:
    return frozenset(DType(entry.value) for entry in menu_of(axes) if entry.axis == "dtype" and not entry.obstacle)
