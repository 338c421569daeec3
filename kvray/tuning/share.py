"""`Share`: what a sweep measures on GPUs of one type. Elsewhere there is one share, which is all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvray.candidate import DeviceType
from kvray.config import TuneConfig
from kvray.probes.cpu import quota_threads, wished_threads
from kvray.probes.environment import Environment
from kvray.sweep.gpu_types import gpus_of_type
from kvray.sweep.slot_plan import SlotPlan, plan_slots
from kvray.tuning.attempt import Conditions
from kvray.tuning.engines import EnginePart
from kvray.tuning.observer import SearchObserver
from kvray.tuning.preview import Preview, without_unplaceable
from kvray.tuning.ready_sweep import ReadySweep


@dataclass(frozen=True, kw_only=True)
class Share:
    """What is measured on one type of GPU, or on the one device that there is.

    Attributes:
        preview: of all `parts` together.
        parts: what each engine contributes, the baseline's first.
        environments: by engine, what a node of the cluster that measures has; without a cluster there are none.
        observers: are told of its trials.
    """

    preview: Preview
    parts: Sequence[EnginePart]
    slots: SlotPlan
    environments: Mapping[str, Environment] = field(default_factory=dict)
    observers: Sequence[SearchObserver] = ()

    @property
    def conditions(self) -> Conditions:
        """What attempts are compared by."""
        return Conditions(
            preview=self.preview,
            adapters=tuple(part.adapter for part in self.parts),
            threads=self.slots.threads,
            slots=1 if self.slots.exclusive else self.slots.slots,
            gpu_type=self.slots.gpu_type,
            environments=self.environments,
        )


def share_of(ready: ReadySweep, slots: SlotPlan) -> Share:
    """What of `ready` is measured on `slots`.

    Raises:
        NoCandidatesError: no machine can hold any of its candidates.
    """
    return Share(
        preview=without_unplaceable(ready.preview, slots.room.largest),
        parts=ready.parts,
        slots=slots,
        environments=ready.node.environments if ready.node else {},
    )


def slots_on(
    nodes: Sequence[Mapping[str, float]],
    config: TuneConfig,
    device: DeviceType,
    *,
    gpu_type: str | None,
    is_only_type: bool,
) -> SlotPlan:
    """The slots on GPUs of `gpu_type`; where it is not the only type, `config.slots` are the most on any type.

    Raises:
        SweepError: there is not enough for a single slot, or not for as many as asked.
    """
    most = config.slots
    if most is not None and not is_only_type:  # they have unlike numbers of GPUs
        most = min(most, gpus_of_type(nodes, gpu_type))
    return plan_slots(
        nodes,
        device=device,
        slots=most,
        user_threads=wished_threads(),
        quota_threads=quota_threads() if config.address is None else None,
        gpu_type=gpu_type,
        exclusive=config.exclusive,
    )
