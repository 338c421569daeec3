"""How the ranks of one model meet: a process group of `torch.distributed` that listens on the loopback alone."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from kvray.candidate import DeviceType
from kvray.environment import changed_environment

_LOOPBACK = "lo"
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_PATIENCE = timedelta(hours=2)
"""The trial's watchdog and `Ranks` end what hangs, and loading may take long."""


@contextlib.contextmanager
def joined(rank: int, *, ranks: int, store: Path, device: DeviceType) -> Iterator[None]:
    """Enter the group of so many `ranks`, which meet by the file `store`. Within the `with` Transformers finds there
    what it needs to load this rank's part of a model; the group stays until `leave`."""
    is_cuda = device is DeviceType.CUDA
    # Transformers takes the accelerator wherever there is one.
    hidden: dict[str, str | None] = {} if is_cuda else {"CUDA_VISIBLE_DEVICES": ""}
    with changed_environment({**_loopback(), **_place(rank, ranks), **hidden}):
        if is_cuda:
            torch.cuda.set_device(rank)
        dist.init_process_group(
            "nccl" if is_cuda else "gloo",
            store=dist.FileStore(str(store), ranks),
            rank=rank,
            world_size=ranks,
            timeout=_PATIENCE,
            device_id=torch.device("cuda", rank) if is_cuda else None,
        )
        yield


def is_in_a_group() -> bool:
    """Whether this process is in one already; it can be in one only."""
    return dist.is_initialized()


def meet() -> None:
    """Wait for the other ranks, so that a clock that starts now counts nobody's delay."""
    if dist.get_backend() == "nccl":
        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:
        dist.barrier()


def leave(*, politely: bool) -> None:
    """Give the group up. Without the others nothing is waited for: NCCL would wait for ever."""
    if dist.is_initialized() and (politely or dist.get_backend() != "nccl"):
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _place(rank: int, ranks: int) -> dict[str, str | None]:
    """As torchrun tells it."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}


def _loopback() -> dict[str, str | None]:
    """All ranks of a trial are on one machine. What a user has set counts."""
    if _LOOPBACK not in (name for _, name in socket.if_nameindex()):
        return {}
    return {name: _LOOPBACK for name in _INTERFACES if name not in os.environ}
