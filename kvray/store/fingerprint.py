"""`SweepFingerprint`: what must be the same for two measurements to be compared, and what differs if it is not.

The host's name does not count: a cluster has many, and a restarted container a new one. Nor does kvray's patch version:
within one minor version kvray measures in one way. Nor do limits and weights: they judge what was measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict

from kvray.candidate import DeviceType
from kvray.record import known_versions, version_fields
from kvray.store.speed_variables import LIST, SPEED_VARIABLES, names_in, users_variables
from kvray.workload import WorkloadProfile

if TYPE_CHECKING:
    from kvray.engines.base import DeviceFacts, ModelInfo
    from kvray.probes.environment import Environment

_UNKNOWN_GPU = "GPU of the cluster"
_CLUSTER = "a Ray cluster"
OWN_CHOICE = 0
"""Threads where the choice is left to the engine's library."""

_NAMES = {
    "model_id": "model",
    "model_revision": "model file",
    "baseline_id": "baseline",
    "place": "measured on",
    "device_name": "device name",
    "gpus": "GPUs",
    "driver_version": "driver",
    "cpus": "usable CPUs",
    "memory_gib": "memory, GiB",
    "python_version": "Python",
    "kvray_release": "kvray",
}
"""How fields are called in messages, where not by their own name."""


class SweepFingerprint(BaseModel):
    """The conditions of one attempt at a sweep. `None` stands for what is not known, and differs from nothing.

    Attributes:
        other_engines: by name, the model's revision and the libraries of each further engine; `None` where there is
            none.
        model_revision: what identifies the weights: a commit, or a file's hash.
        profile: the workload. Of two, only what decides the measurements is compared; the weights and limits that are
            kept with it tell how the attempt judged.
        baseline_id: candidate id of the baseline that gains are against.
        place: `this machine`, or `a Ray cluster`, whose nodes' CPUs, memory, GPUs and drivers are not known here.
        gpus: how many this machine shows, for a CUDA device.
        cpus: how many a process here may keep busy.
        threads: how many a trial computes with, `OWN_CHOICE` where its library chooses.
        slots: trials at the same time, on a CPU, which they share.
        engine_versions: of the engine's libraries, by name; two of them have fields of their own in older ones.
        kvray_release: major and minor version.
        variables: those of `SPEED_VARIABLES` that the user has set.
        variables_list: number of the list that was looked at. Two are compared by what is on the lists of both.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: str | None = None
    other_engines: dict[str, str] | None = None
    model_id: str | None = None
    model_revision: str | None = None
    profile: WorkloadProfile | None = None
    baseline_id: str | None = None
    place: str | None = None
    device: str | None = None
    device_name: str | None = None
    gpus: int | None = None
    driver_version: str | None = None
    cpus: int | None = None
    memory_gib: int | None = None
    threads: int | None = None
    slots: int | None = None
    engine_versions: dict[str, str] | None = None
    torch_version: str | None = None
    transformers_version: str | None = None
    python_version: str | None = None
    kvray_release: str | None = None
    variables: dict[str, str] | None = None
    variables_list: int | None = None

    @classmethod
    def of(
        cls,
        *,
        engine: str,
        model: ModelInfo,
        profile: WorkloadProfile,
        baseline_id: str,
        device: DeviceFacts,
        threads: int | None,
        slots: int,
        on_cluster: bool,
        environment: Environment,
        other_engines: dict[str, str] | None = None,
    ) -> Self:
        """The fingerprint of a sweep that starts here and now."""
        from kvray.probes.cpu import total_memory_mib  # takes long to load, and who reads a fingerprint does without

        is_cpu = device.device is DeviceType.CPU
        here: dict[str, Any] = {
            "gpus": None if is_cpu else device.gpu_count,
            "driver_version": environment.driver_version,
            "cpus": environment.cpus,
            "memory_gib": round(total_memory_mib() / 1024),
        }
        return cls(
            engine=engine,
            other_engines=other_engines or None,
            model_id=model.model_id,
            model_revision=model.revision,
            profile=profile,
            baseline_id=baseline_id,
            place=_CLUSTER if on_cluster else "this machine",
            device=device.device.value,
            device_name=device.device_name,
            threads=threads or OWN_CHOICE,
            slots=slots if is_cpu else None,
            engine_versions=dict(environment.engine_versions),
            **version_fields(environment.engine_versions),
            python_version=".".join(environment.python_version.split(".")[:2]),
            kvray_release=release_of(environment.kvray_version),
            variables=users_variables(),
            variables_list=LIST,
            **({} if on_cluster else here),
        )

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the engine's libraries by name, of older fingerprints too."""
        return known_versions(self, self.engine_versions or {})

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits over everything that is compared and known. Another kvray may compare more or less
        and compute another one, so an attempt keeps the one that its records carry."""
        known = {key: value for key, value in self._compared(SPEED_VARIABLES).items() if value is not None}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:8]

    def differences(self, other: SweepFingerprint) -> tuple[str, ...]:
        """What is different in `other`, e.g. `torch: 2.12.0 → 2.13.0`; empty where the two may be compared."""
        both = names_in(self.variables_list) & names_in(other.variables_list)
        return tuple(_differences(self._compared(both), other._compared(both)))

    def _compared(self, variables: frozenset[str]) -> dict[str, Any]:
        """What is compared, with those of its variables that are among `variables`."""
        profile = None if self.profile is None else self.profile.measured
        values = self.model_dump(mode="json", exclude={*version_fields({}), "variables_list"})
        if self.variables is not None:
            values["variables"] = {name: value for name, value in self.variables.items() if name in variables}
        # On a cluster each record says what measured it. Older versions named no GPU that this machine did not have.
        by_record = self.device == DeviceType.CUDA and self.place == _CLUSTER
        name = None if by_record or self.device_name == _UNKNOWN_GPU else self.device_name
        return {**values, "device_name": name, "engine_versions": self.versions or None, "profile": profile}


def hardware_digest(environment: Environment, *, memory_mib: float, versions: Mapping[str, str]) -> str:
    """Eight hexadecimal digits over what one node of a cluster is: a `SweepFingerprint` knows nothing of its nodes.

    Args:
        versions: of the libraries of all engines of the sweep, so that a node has one digest whichever engine ran.
    """
    known = {
        "device_name": environment.device_name,
        "driver_version": environment.driver_version,
        "cpus": environment.cpus,
        "memory_gib": round(memory_mib / 1024),
        "engine_versions": dict(versions),
        "python_version": ".".join(environment.python_version.split(".")[:2]),
        "kvray_release": release_of(environment.kvray_version),
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:8]


def release_of(version: str) -> str:
    """Major and minor version of `version`."""
    return ".".join(version.split(".")[:2])


def judgement_differences(old: WorkloadProfile, new: WorkloadProfile) -> tuple[str, ...]:
    """Where `new` judges otherwise than `old`, e.g. `limits.max_ttft_ms: none → 400.0`."""
    return tuple(_parts("", old.judgement, new.judgement))


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for key in old:
        before, after = old[key], new.get(key)
        if before is None or after is None or before == after:
            continue
        # Of a library or an engine that one of them does not name nothing is known there.
        if key in ("engine_versions", "other_engines"):
            before, after = ({name: value[name] for name in before.keys() & after.keys()} for value in (before, after))
        if isinstance(before, dict):
            yield from _parts(key, before, after)
        else:
            one, two = (_shown(value, of=key) for value in (before, after))
            yield f"{_NAMES.get(key, key)}: {one} → {two}"


_PREFIXES = {"": "", "variables": "", "engine_versions": "", "other_engines": "engine "}


def _parts(key: str, before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """What differs below `key`: fields of the profile (and of its limits), variables, or libraries."""
    prefix = _PREFIXES.get(key, f"{key}.")
    for name in sorted(before.keys() | after.keys()):
        one, two = before.get(name), after.get(name)
        if isinstance(one, dict) and isinstance(two, dict):
            yield from _parts(f"{prefix}{name}", one, two)
        elif one != two:
            yield f"{prefix}{name}: {_shown(one)} → {_shown(two)}"


def _shown(value: object, *, of: str = "") -> str:
    if value is None:
        return "none"
    if of == "threads" and value == OWN_CHOICE:
        return "the library's own choice"
    if isinstance(value, float):
        return f"{value:g}"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
