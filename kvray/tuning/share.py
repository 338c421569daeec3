"""`Share`: what a sweep measures on GPUs of one type. Elsewhere there is one share, which is all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvray.probes.environment import Environment
from kvray.sweep.slot_plan import SlotPlan
from kvray.tuning.attempt import Conditions
from kvray.tuning.engines import EnginePart
from kvray.tuning.observer import SearchObserver
from kvray.tuning.preview import Preview


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
