"""Decides how many trials run at once, and which CPUs and GPUs each gets, from what each machine has. All slots get the
same number of CPUs, however unlike the machines are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kvray.candidate import Candidate, DeviceType
from kvray.errors import SweepError
from kvray.sweep.capacity import NodeRoom, Room
from kvray.sweep.gpu_types import PREFIX, TOKEN_SHARE, nodes_of_type

_EXCLUSIVE_SHARE = 0.6
"""How much of a node's accelerator type a trial takes that has the node to itself: no two of them fit."""
_logger = logging.getLogger("kvray.sweep")


@dataclass(frozen=True, kw_only=True)
class SlotPlan:
    """How the machines are divided.

    Attributes:
        room: trials at the same time, and the GPUs that they share.
        gpus_per_slot: GPUs of a trial for each of its candidate's `parallelism`: 1, or 0 on a CPU.
        follows_nodes: whether machines that join or leave during the sweep change the room.
        threads: intra-op threads of each trial's process, `None` for the library's own choice.
        gpu_type: Ray's accelerator type that all trials keep to; `None`: any.
        exclusive: whether a machine has one slot at most, whatever it could hold.
    """

    room: Room
    cpus_per_slot: float
    gpus_per_slot: int
    threads: int | None
    follows_nodes: bool = False
    gpu_type: str | None = None
    exclusive: bool = False

    @property
    def slots(self) -> int:
        """Trials at the same time."""
        return self.room.slots

    def resources(self, candidate: Candidate) -> dict[str, float]:
        """What Ray reserves for a slot that measures `candidate`. Its CPUs are the same however many GPUs it holds."""
        held = {"CPU": self.cpus_per_slot, "GPU": float(self.gpus_per_slot * candidate.parallelism)}
        if self.gpu_type is None:
            return held
        return {**held, f"{PREFIX}{self.gpu_type}": _EXCLUSIVE_SHARE if self.exclusive else TOKEN_SHARE}

    def room_on(self, nodes: Sequence[Mapping[str, float]], ids: Sequence[str] = ()) -> Room:
        """What `nodes` have room for, each trial on one of them. With Ray's ids of the nodes it tells of each."""
        ours = [place for place, node in enumerate(nodes) if nodes_of_type([node], self.gpu_type)]
        slots = [_slots(nodes[place], self.cpus_per_slot, self.gpus_per_slot, self.exclusive) for place in ours]
        room = _room([nodes[place] for place in ours], slots, self.gpus_per_slot)
        if not (ids and self.gpus_per_slot):
            return room
        each = (
            NodeRoom(node_id=ids[place], slots=held, gpus=int(nodes[place].get("GPU", 0.0)))
            for place, held in zip(ours, slots, strict=True)
        )
        return replace(room, nodes=tuple(one for one in each if one.slots))


def plan_slots(
    nodes: Sequence[Mapping[str, float]],
    *,
    device: DeviceType,
    slots: int | None,
    user_threads: int | None = None,
    quota_threads: int | None = None,
    gpu_type: str | None = None,
    exclusive: bool = False,
) -> SlotPlan:
    """Divide `nodes` (what Ray has on each machine) into slots; by default one per GPU, or one on a CPU.

    With one slot a trial has a whole machine, like a user's own process. With more, CPUs and threads are divided so
    that each slot has as many as possible. A slot never spans machines. A trial whose candidate is spread over several
    GPUs takes the place of as many slots.

    Args:
        user_threads: what the user has set for each trial's process, whatever is left for it.
        quota_threads: those that a CPU quota of this machine leaves room for; `None` without one, and on a cluster,
            where each slot looks for itself.
        gpu_type: Ray's accelerator type of the nodes that are divided; the others are left alone.
        exclusive: one slot per machine, so that no other trial of the sweep runs beside one. On a CPU all machines are
            used then. A machine that has at most half the CPUs of the largest is left out: Ray is told that a trial
            needs more than half of them, so that no two fit.

    Raises:
        SweepError: there is not enough for a single slot, or not for as many as asked.
    """
    nodes = nodes_of_type(nodes, gpu_type)
    cpus, gpus = _total(nodes, "CPU"), int(_total(nodes, "GPU"))
    if cpus < 1:
        raise SweepError("Ray offers no CPU to run a slot on.")
    gpus_per_slot = 1 if device is DeviceType.CUDA else 0
    least = _more_than_half(nodes, gpus_per_slot) if exclusive else 1
    most = sum(_slots(node, least, gpus_per_slot, exclusive) for node in nodes)
    if gpus_per_slot and most < 1:
        raise SweepError(f"The sweep needs 1 GPU, Ray offers {gpus}.", hint="Pass --device cpu to tune on the CPU.")
    wanted = slots or (most if gpus_per_slot or exclusive else 1)
    if wanted > most:
        alone = " With --exclusive each has a machine to itself." if exclusive else ""
        raise SweepError(
            f"{wanted} slots do not fit: Ray offers {cpus:g} CPUs and {gpus} GPUs.{alone}", hint=f"At most {most}."
        )
    share = least
    while sum(_slots(node, share + 1, gpus_per_slot, exclusive) for node in nodes) >= wanted:
        share += 1
    room = _room(nodes, [_slots(node, share, gpus_per_slot, exclusive) for node in nodes], gpus_per_slot)
    return SlotPlan(
        room=replace(room, slots=wanted),
        cpus_per_slot=float(share),
        gpus_per_slot=gpus_per_slot,
        threads=user_threads or (quota_threads if wanted == 1 or exclusive else share),
        follows_nodes=bool(gpus_per_slot) and slots is None,
        gpu_type=gpu_type,
        exclusive=exclusive,
    )


def _more_than_half(nodes: Sequence[Mapping[str, float]], gpus_per_slot: int) -> int:
    """CPUs of which no machine has enough for two slots; says which machines have too few for one."""
    cpus = [int(node.get("CPU", 0.0)) for node in nodes if _slots(node, 1, gpus_per_slot)]
    share = max(cpus, default=1) // 2 + 1
    if small := sum(one < share for one in cpus):
        _logger.warning(
            "With --exclusive %d of %d nodes are left out: they have fewer than %d CPUs, the largest has %d.",
            small,
            len(cpus),
            share,
            max(cpus),
        )
    return share


def _total(nodes: Sequence[Mapping[str, float]], resource: str) -> float:
    return sum(node.get(resource, 0.0) for node in nodes)


def _room(nodes: Sequence[Mapping[str, float]], slots: Sequence[int], gpus_per_slot: int) -> Room:
    """All GPUs of a node count that has CPUs for any slot."""
    gpus = [int(node.get("GPU", 0.0)) if held and gpus_per_slot else 0 for node, held in zip(nodes, slots, strict=True)]
    return Room(slots=sum(slots), gpus=sum(gpus), largest=max(gpus, default=0))


def _slots(node: Mapping[str, float], cpus: float, gpus: int, exclusive: bool = False) -> int:
    by_cpu = int(node.get("CPU", 0.0) // cpus)
    fit = min(by_cpu, int(node.get("GPU", 0.0) // gpus)) if gpus else by_cpu
    return min(1, fit) if exclusive else fit
