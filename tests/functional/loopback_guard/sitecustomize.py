"""On PYTHONPATH, every Python process notes in `$LOOPBACK_GUARD` that it lives and whom beyond loopback it turns to."""

from __future__ import annotations

import ipaddress
import os
import sys
from pathlib import Path

NOTES = Path(os.environ["LOOPBACK_GUARD"])
WITH_ADDRESS = ("socket.connect", "socket.sendto", "socket.sendmsg")
WITH_NAME = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")


def note(line: str) -> None:
    with NOTES.open("a", encoding="utf-8") as notes:
        notes.write(f"{line} {sys.orig_argv}\n")


def is_elsewhere(host: object) -> bool:
    text = host.decode() if isinstance(host, bytes) else str(host or "localhost")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text != "localhost"
    return not (address.is_loopback or (getattr(address, "ipv4_mapped", None) or address).is_loopback)


def guard(event: str, arguments: tuple[object, ...]) -> None:
    if event in WITH_NAME and is_elsewhere(arguments[0]):
        note(f"elsewhere {event} {arguments[0]!r}")
    if event in WITH_ADDRESS and isinstance(arguments[1], tuple) and is_elsewhere(arguments[1][0]):
        note(f"elsewhere {event} {arguments[1]!r}")


sys.addaudithook(guard)
note("alive")
