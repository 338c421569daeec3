"""`load_plan(…).load()`: a plan at work. Picks by rule, falls back when memory runs out, warns of another machine."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
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
        adapter = get_engine(self.plan.engine)
        adapter.check_installed()
        request = ModelRequest(
            model_id=self.plan.model_id,
            revision=self.plan.model_revision,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            offline=is_offline_environment(),
        )
        try:
            here = adapter.identify_model(request, adapter.describe_model(request)).revision
            session = Session(self.plan, adapter, target, replace(request, revision=here))
        except ModelError as error:
            if self.plan.allow_pickle and not allow_pickle:
                raise PlanError(
                    f"The plan was measured with weights that might be pickled. {error.message}",
                    hint="If you trust whoever made them, call load(allow_pickle=True).",
                ) from error
            raise
        for difference in (*_differences(self.plan.fingerprint, target), *_other_files(self.plan, here)):
            warnings.warn(f"the plan was measured with {difference}", FingerprintWarning, stacklevel=2)
        return session


class Session:
    """A model that answers as the plan decides. Not for several threads at once.

    Changing the candidate loads the model anew, so a request for which another rule holds takes a load longer. What ran
    out of memory once is not tried again.
    """

    def __init__(self, plan: Plan, adapter: EngineAdapter, device: DeviceType, request: ModelRequest) -> None:
        self._plan = plan
        self._adapter = adapter
        self._device = device
        self._request = request
        self._free_vram_mib = _free_vram_mib() if device is DeviceType.CUDA else None
        self._too_big: set[str] = set()
        self._adapter.fetch_weights(self._request)
        self.candidate = plan.choose(1, 1, self._free_vram_mib)
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
            self._model = self._adapter.load(self._request, candidate, self._device, self._plan.profile)
            self.candidate = candidate
        return self._model


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


def _other_files(plan: Plan, revision: str) -> list[str]:
    if plan.model_revision in (None, revision):
        return []
    return [f"model revision {plan.model_revision}, here it is {revision}"]


def _free_vram_mib() -> float | None:
    """Free memory of the first visible GPU, before the model is loaded; `None` where NVML cannot tell."""
    gpu = next(iter(visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))), None)
    used = None if gpu is None else used_memory_mib(gpu)
    return None if gpu is None or used is None else gpu.memory_total_mib - used
