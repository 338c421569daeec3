"""Static rules: combinations that cannot run or would not run what they say, each with the reason a user reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvray.candidate import AttentionBackend, Candidate, DeviceType, DType

Verdict = str | None
"""The reason for a rejection, or `None`."""


@dataclass(frozen=True, kw_only=True)
class SpaceFacts:
    """What the rules may know, gathered before anything is launched.

    Attributes:
        dtypes: what the device computes in.
        gpu_count: GPUs that one trial could be given.
    """

    device: DeviceType
    dtypes: frozenset[DType]
    gpu_count: int = 0


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


def _kernel_on_device(candidate: Candidate, facts: SpaceFacts) -> Verdict:
    cuda_only = (AttentionBackend.SDPA_EFFICIENT, AttentionBackend.SDPA_CUDNN)
    if facts.device is DeviceType.CPU and candidate.attention in cuda_only:
        return f"PyTorch has no {candidate.attention.removeprefix('sdpa_')} attention kernel for the CPU"
    return None


def _flash_needs_half_precision_on_gpu(candidate: Candidate, facts: SpaceFacts) -> Verdict:
    half_only = (AttentionBackend.SDPA_FLASH, AttentionBackend.SDPA_CUDNN)
    if (
        facts.device is DeviceType.CUDA
        and candidate.attention in half_only
        and candidate.dtype not in (DType.FLOAT16, DType.BFLOAT16)
    ):
        return f"the CUDA {candidate.attention.removeprefix('sdpa_')} kernel takes float16 and bfloat16 only"
    return None


def _parallelism_fits(candidate: Candidate, facts: SpaceFacts) -> Verdict:
    available = max(1, facts.gpu_count)
    if candidate.parallelism > available:
        return f"needs {candidate.parallelism} GPUs, {facts.gpu_count} visible"
    return None


RULES: tuple[Constraint, ...] = (
    Constraint(name="dtype-on-device", check=_dtype_on_device),
    Constraint(name="kernel-on-device", check=_kernel_on_device),
    Constraint(name="flash-half-precision", check=_flash_needs_half_precision_on_gpu),
    Constraint(name="parallelism", check=_parallelism_fits),
)
"""Rules that hold for every engine; engines add their own."""
