"""`load_plan(…).load()`: a plan at work. Picks by rule, falls back when memory runs out, warns of another machine."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import EngineAdapter, LoadedModel, ModelRequest, OutOfMemoryError
from kvray.engines.offline import is_offline_environment
from kvray.engines.registry import get_engine
from kvray.errors import ModelError, PlanError
from kvray.plan.plan import Plan, PlanFingerprint, load_plan_file
from kvray.probes.environment import capture_environment
from kvray.probes.gpu import used_memory_mib, visible_gpus
from kvray.record import RANDOM_PREFIX

T = TypeVar("T")


class FingerprintWarning(UserWarning):
    """The machine or its software is not what the plan was measured on."""


def load_plan(path: str | Path) -> PlanLoader:
    """The plan in the file at `path`, ready to load its model.

    Raises:
        PlanError: the file is missing, malformed, or of a newer version.
    """
    return PlanLoader(load_plan_file(path))


class PlanLoader:
    """A validated plan; `load` turns it into a session."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def load(
        self, *, device: DeviceType | None = None, trust_remote_code: bool = False, allow_pickle: bool = False
    ) -> Session:
        """Load the model as the winner has it, on `device` (by default the kind that the plan was measured on).

        Warns with `FingerprintWarning` where device, driver, library versions or the model's files are not the plan's.

        Args:
            trust_remote_code: whether the plan may run code by others. What the plan's own file says of that is no
                consent of yours.
            allow_pickle: whether weights may come from pickle files, where there are no safetensors.

        Raises:
            PlanError: the plan needs code by others, or pickled weights, and nobody said to trust them.
            EngineError, ModelError: the engine or the model is not there.
        """
        if self.plan.foreign_code and not trust_remote_code:
            raise PlanError(
                f"The plan runs {' and '.join(self.plan.foreign_code)}.",
                hint="If you trust its authors, call load(trust_remote_code=True).",
            )
        target = device or self.plan.device
        consent = ModelRequest(
            model_id=self.plan.shown_model,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            offline=is_offline_environment(),
        )
        try:
            engines = {name: _found(self.plan, name, consent) for name in (self.plan.engine, *self.plan.other_engines)}
            session = Session(self.plan, engines, target)
        except ModelError as error:
            if self.plan.allow_pickle and not allow_pickle:
                raise PlanError(
                    f"The plan was measured with weights that might be pickled. {error.message}",
                    hint="If you trust whoever made them, call load(allow_pickle=True).",
                ) from error
            raise
        for difference in (*_differences(self.plan.fingerprint, target), *_other_files(self.plan, engines)):
            warnings.warn(f"the plan was measured with {difference}", FingerprintWarning, stacklevel=2)
        return session


@dataclass(frozen=True, kw_only=True)
class FoundEngine:
    """An engine that is installed here, and the model as it has it here."""

    adapter: EngineAdapter
    request: ModelRequest


class Session:
    """A model that answers as the plan decides. Not for several threads at once.

    Changing the candidate loads the model anew, so a request for which another rule holds takes a load longer. What ran
    out of memory once is not tried again.
    """

    def __init__(self, plan: Plan, engines: Mapping[str, FoundEngine], device: DeviceType) -> None:
        self._plan = plan
        self._engines = engines
        self._device = device
        self._free_vram_mib = _free_vram_mib() if device is DeviceType.CUDA else None
        self._too_big: set[str] = set()
        self.candidate = plan.choose(1, 1, self._free_vram_mib)
        self._fetched: set[str] = set()
        self._fetch(self.candidate)
        self._model: LoadedModel | None = None

    def generate(self, prompt: str, *, max_new_tokens: int) -> str:
        """The greedy continuation of `prompt`, of at most `max_new_tokens` tokens.

        Raises:
            OutOfMemoryError: not even the leanest candidate of the fallback chain fits.
        """
        context = self._with_what_fits(self.candidate, lambda model: model.count_tokens(prompt))
        chosen = self._plan.choose(context, 1, self._free_vram_mib)
        return self._with_what_fits(chosen, lambda model: model.complete(prompt, max_new_tokens))

    def close(self) -> None:
        """Free the model; the next `generate` loads it again."""
        model, self._model = self._model, None
        if model is not None:
            model.close()

    def _with_what_fits(self, candidate: Candidate, use: Callable[[LoadedModel], T]) -> T:
        """The answer of `use` with `candidate`, or with the first of its fallbacks that does not run out of memory."""
        while True:
            if candidate.candidate_id not in self._too_big:
                try:
                    return use(self._loaded(candidate))
                except OutOfMemoryError:
                    self._too_big.add(candidate.candidate_id)
            leaner = self._plan.fallback_after(candidate.candidate_id)
            if leaner is None:
                raise OutOfMemoryError(f"{candidate.label} runs out of memory and the plan has no leaner candidate")
            candidate = leaner

    def _loaded(self, candidate: Candidate) -> LoadedModel:
        if self._model is None or candidate != self.candidate:
            self.close()
            engine = self._fetch(candidate)
            self._model = engine.adapter.load(engine.request, candidate, self._device, self._plan.profile)
            self.candidate = candidate
        return self._model

    def _fetch(self, candidate: Candidate) -> FoundEngine:
        """The engine of `candidate`, with its weights on this machine."""
        name = self._plan.engine_of(candidate)
        engine = self._engines[name]
        if name not in self._fetched:
            engine.adapter.fetch_weights(engine.request)
            self._fetched.add(name)
        return engine


def _found(plan: Plan, name: str, consent: ModelRequest) -> FoundEngine:
    """The engine called `name`, asked for the plan's model.

    Raises:
        EngineError, ModelError: the engine or the model is not there.
    """
    adapter, model = get_engine(name), plan.model_of(name)
    adapter.check_installed()
    request = replace(consent, model_id=_id_here(plan, model.model_id), revision=model.model_revision)
    here = adapter.identify_model(request, adapter.describe_model(request)).revision
    return FoundEngine(adapter=adapter, request=replace(request, revision=here))


def _id_here(plan: Plan, model_id: str) -> str:
    """The path of the user's own, where the model was sent to a cluster and its copy there is not here."""
    own = plan.sent_models.get(model_id)
    return model_id if own is None or Path(model_id.removeprefix(RANDOM_PREFIX)).exists() else own


def _differences(fingerprint: PlanFingerprint, device: DeviceType) -> list[str]:
    versions = fingerprint.versions
    environment = capture_environment(device, libraries=versions)
    names = ("device_name", "driver_version", "kvray_version")
    then = {name.replace("_", " "): getattr(fingerprint, name) for name in names}
    then |= {f"{library} version": version for library, version in versions.items()}
    here = {name.replace("_", " "): getattr(environment, name) for name in names}
    here |= {f"{library} version": environment.engine_versions.get(library) for library in versions}
    return [
        f"{name} {value}, here it is {here[name]}"
        for name, value in then.items()
        if value is not None and here[name] != value
    ]


def _other_files(plan: Plan, engines: Mapping[str, FoundEngine]) -> list[str]:
    revisions = ((plan.model_of(name).model_revision, one.request.revision) for name, one in engines.items())
    return [f"model revision {then}, here it is {here}" for then, here in revisions if then not in (None, here)]


def _free_vram_mib() -> float | None:
    """Free memory of the first visible GPU, before the model is loaded; `None` where NVML cannot tell."""
    gpu = next(iter(visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))), None)
    used = None if gpu is None else used_memory_mib(gpu)
    return None if gpu is None or used is None else gpu.memory_total_mib - used
