"""Events on their way from a measurement process to its slot, framed so that the slot never waits for the rest of one.

`Connection.recv` blocks until a whole message is there, which a process that is stopped or killed halfway never sends.
"""

from __future__ import annotations

import os
import pickle
import struct
import zlib

from kvray.errors import KvrayError
from kvray.trial.events import Event, PhaseStarted, RunFinished, RungFinished, TrialEnded

_MAGIC = b"kvEv"
_HEADER = struct.Struct("!4sII")
"""Magic, length and CRC-32 of the pickled event: nothing that only looks like one is ever unpickled."""
_READ_BYTES = 1 << 16


class BrokenChannelError(KvrayError):
    """What came over the pipe is no event."""


def send_event(descriptor: int, event: Event) -> None:
    """Write `event` whole; blocks while the pipe is full."""
    body = pickle.dumps(event)
    rest = memoryview(_HEADER.pack(_MAGIC, len(body), zlib.crc32(body)) + body)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


class EventReader:
    """The slot's end. Call `read` when the descriptor is readable, then `take` until it has no more."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = bytearray()

    def read(self) -> bool:
        """Take in what is there; `False` if the other side is closed."""
        try:
            part = os.read(self._descriptor, _READ_BYTES)
        except ConnectionResetError:
            return False
        self._buffer += part
        return bool(part)

    def take(self) -> Event | None:
        """The next complete event, if there is one.

        Raises:
            BrokenChannelError: something else than an event was said.
        """
        start = bytes(self._buffer[: len(_MAGIC)])
        if not _MAGIC.startswith(start):
            raise BrokenChannelError(f"the process wrote {start!r} into the pipe of its events")
        if len(self._buffer) < _HEADER.size:
            return None
        _, length, checksum = _HEADER.unpack_from(self._buffer)
        end = _HEADER.size + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[_HEADER.size : end])
        del self._buffer[:end]
        if zlib.crc32(body) != checksum:
            raise BrokenChannelError(f"an event of {length} bytes came damaged")
        event = pickle.loads(body)
        if not isinstance(event, PhaseStarted | RunFinished | RungFinished | TrialEnded):
            raise BrokenChannelError(f"the process said {type(event).__name__}, which is no event")
        return event
