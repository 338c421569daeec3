from __future__ import annotations

import os
import pickle
import zlib
from collections.abc import Iterator

import pytest

from kvray.record import Phase, TrialStatus
from kvray.trial import channel
from kvray.trial.channel import BrokenChannelError, EventReader, send_event
from kvray.trial.events import Event, PhaseStarted, TrialEnded

ENDED = TrialEnded(status=TrialStatus.ERROR, phase=Phase.LOAD, message="ü" * 40_000, facts=None)


@pytest.fixture
def pipe() -> Iterator[tuple[EventReader, int]]:
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    yield EventReader(ours), theirs
    os.close(ours)


def frame_of(body: bytes) -> bytes:
    return channel._HEADER.pack(channel._MAGIC, len(body), zlib.crc32(body)) + body


def test_events_come_as_they_were_sent(pipe: tuple[EventReader, int]) -> None:
    reader, theirs = pipe
    sent: list[Event] = [PhaseStarted(phase=Phase.LOAD), PhaseStarted(phase=Phase.WARMUP)]
    for event in sent:
        send_event(theirs, event)
    assert reader.take() is None
    assert reader.read()
    assert [reader.take(), reader.take(), reader.take()] == [*sent, None]
    os.close(theirs)
    assert not reader.read()


def test_half_an_event_is_waited_for_without_blocking(pipe: tuple[EventReader, int]) -> None:
    reader, theirs = pipe
    frame = frame_of(pickle.dumps(ENDED))
    for end in (2, 10, len(frame) // 2):
        os.write(theirs, frame[:end])
        assert reader.read()
        assert reader.take() is None
        frame = frame[end:]
    os.write(theirs, frame)
    taken = None
    while taken is None:
        assert reader.read()
        taken = reader.take()
    assert taken == ENDED
    os.close(theirs)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (b"Traceback (most", "wrote b'Trac' into the pipe of its events"),
        (b"kX", "wrote b'kX' into the pipe"),
        (frame_of(b"abc")[:-1] + b"d", "an event of 3 bytes came damaged"),
        (frame_of(pickle.dumps({"a": 1})), "the process said dict, which is no event"),
    ],
)
def test_what_is_no_event_is_refused(pipe: tuple[EventReader, int], written: bytes, message: str) -> None:
    reader, theirs = pipe
    os.write(theirs, written)
    os.close(theirs)
    assert reader.read()
    with pytest.raises(BrokenChannelError, match=message):
        reader.take()
