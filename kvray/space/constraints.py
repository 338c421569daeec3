"""Static rules: combinations that cannot run or would not run what they say, each with the reason a user reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvray.candidate import Candidate, DeviceType, DType

Verdict = str | None
"""The reason for a rejection, or `None`."""


@dataclass(frozen=True, kw_only=True)
class SpaceFacts:
    """What the rules may know, gathered before anything is launched.

    Attributes:
        dtypes: what the device computes in.
        gpu_count: GPUs that one trial could be given; `None`: not known before a cluster is joined.
        cpu_processes: processes over which a trial on a CPU may spread a model.
    """

    device: DeviceType
    dtypes: frozenset[DType]
    gpu_count: int | None = 0
    cpu_processes: int = 1


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """A named rule; `check` gives the reason against a candidate, or `None`."""

    name: str
    check: Callable[[Candidate, SpaceFacts], Verdict]


def first_objection(candidate: Candidate, facts: SpaceFacts, rules: Sequence[Constraint]) -> Verdict:
    """The first rule's reason against `candidate`, as `reason (rule name)`; `None` when all rules pass."""
    for rule in rules:
        reason = rule.check(candidate, facts)
        if reason is not None:
            return f"{reason} ({rule.name})"
    return None


def _dtype_on_device(candidate: Candidate, facts: SpaceFacts) -> Verdict:
    if candidate.dtype in facts.dtypes:
        return None
    return f"{candidate.dtype} is not supported on this {facts.device}"


def _parallelism_fits(candidate: Candidate, facts: SpaceFacts) -> Verdict:
    if candidate.parallelism == 1 or (facts.gpu_count is None and facts.device is DeviceType.CUDA):
        return None
    if facts.device is DeviceType.CPU and facts.cpu_processes > 1:
        most = facts.cpu_processes
        return f"at most {most} processes share a CPU" if candidate.parallelism > most else None
    if candidate.parallelism > (facts.gpu_count or 0):
        return f"needs {candidate.parallelism} GPUs, {facts.gpu_count or 0} visible"
    return None


def _on_one_gpu(candidate: Candidate, facts: SpaceFacts) -> Verdict:
    del facts
    if candidate.parallelism == 1:
        return None
    return f"{candidate.engine} does not spread a model over {candidate.parallelism} GPUs"


ON_ONE_GPU = Constraint(name="one-gpu", check=_on_one_gpu)
"""The rule of an engine whose models run on one GPU."""


RULES: tuple[Constraint, ...] = (
    Constraint(name="dtype-on-device", check=_dtype_on_device),
    Constraint(name="parallelism", check=_parallelism_fits),
)
"""Rules that hold for every engine; engines add their own."""
