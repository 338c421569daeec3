"""`CostModel`: what a candidate costs in bytes and seconds, as its engine knows it. Engines subclass it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from kvray.candidate import Candidate, DeviceType
from kvray.forecast.hardware import Hardware
from kvray.forecast.memory import MemoryNeed
from kvray.workload import Cell


class CostModel(ABC):
    """The costs of one model in one engine. It is asked in the driver, once for every candidate and cell, so it imports
    no engine's library and reads no file.

    A longer prompt never costs less: the longest one that fits is found by halving.
    """

    @abstractmethod
    def memory(self, candidate: Candidate, cell: Cell, device: DeviceType) -> MemoryNeed:
        """What `candidate` needs on `device` for `cell`."""

    @abstractmethod
    def prefill_s(self, candidate: Candidate, cell: Cell, hardware: Hardware) -> float | None:
        """Seconds until the first token of `cell`; `None` where `hardware` does not tell enough."""

    @abstractmethod
    def decode_step_s(self, candidate: Candidate, cell: Cell, hardware: Hardware) -> float | None:
        """Seconds of one decode step (a token for every sequence), in the middle of the answer; `None` as above."""

    @abstractmethod
    def least_read_bytes(self, candidate: Candidate, cell: Cell) -> float:
        """Bytes that this decode step must read at least: each weight that is multiplied and each held key and value
        once, as they are stored. A share of the roofline is measured against the time in which the device copies as
        many."""
