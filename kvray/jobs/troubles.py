"""What is wrong between here and a job server, in plain words, and how long a new cluster is waited for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from http.client import BadStatusLine, RemoteDisconnected
from typing import TypeVar
from urllib.parse import urlsplit

from kvray.errors import SweepError, sentence_of

NO_AGENT = "No available agent"
"""In Ray's refusal of a job for which nobody is there yet."""
_AGENT_WAIT_S, _AGENT_PAUSE_S = 30.0, 1.0
_logger = logging.getLogger("kvray.jobs")
T = TypeVar("T")


def unreachable(address: str, error: BaseException) -> SweepError:
    """The error for a job server that cannot be asked."""
    if _is_no_http(error):
        host = urlsplit(address).hostname or "HEAD"
        return SweepError(
            f"What answers at {address} does not speak HTTP. It may be the port at which Ray's own nodes join (6379).",
            hint=f"Jobs are sent to the dashboard's port, 8265 by default: --address http://{host}:8265.",
        )
    return SweepError(
        f"No job server answers at {address}: {_reason(error)}.",
        hint="Check the address (http://HEAD:8265), and that the head was started with its dashboard: ray start "
        "--head --dashboard-host 127.0.0.1, with ray[default] installed. From another machine reach it through a "
        "tunnel: ssh -N -L 8265:127.0.0.1:8265 HEAD, and --address http://127.0.0.1:8265.",
    )


def lost_connection(address: str, job_id: str, error: BaseException) -> SweepError:
    """The error for a job that can no longer be followed."""
    reason = _known_reason(error)
    return SweepError(
        f"The connection to {address} was lost{f': {reason}' if reason else ''}. Job {job_id} may go on.",
        hint=f"Follow it again with kvray jobs logs --follow --address {address} {job_id}.",
    )


class NoAgentError(SweepError):
    """Ray has started its job server, and not yet the process that starts jobs."""

    def __init__(self, address: str) -> None:
        super().__init__(
            f"The cluster at {address} starts no jobs: its job server finds none of Ray's agents.",
            hint="A cluster that was just started needs some seconds more: repeat the command. If it stays so, see "
            "dashboard_agent.log in /tmp/ray/session_latest/logs on the head.",
        )


def once_there_is_an_agent(start: Callable[[], T]) -> T:
    """What `start` returns, which is tried for some seconds."""
    deadline, is_told = time.monotonic() + _AGENT_WAIT_S, False
    while True:
        try:
            return start()
        except NoAgentError:
            if time.monotonic() >= deadline:
                raise
        if not is_told:
            is_told = True
            _logger.info("the cluster was just started and takes no jobs yet; trying again for half a minute")
        time.sleep(_AGENT_PAUSE_S)


def _is_no_http(error: BaseException) -> bool:
    """Whether something answered, and not by HTTP/1.1: Ray's own port speaks gRPC, which is HTTP/2."""
    inner = [one for cause in error.args for one in getattr(cause, "args", ())]
    return any(isinstance(one, BadStatusLine) and not isinstance(one, RemoteDisconnected) for one in inner)


def _reason(error: BaseException) -> str:
    return _known_reason(error) or sentence_of(error).rstrip(".")


def _known_reason(error: BaseException) -> str | None:
    """In plain words, where the libraries' text is known."""
    known = {
        "Connection refused": "Connection refused",
        "Connect call failed": "Connection refused",
        "timed out": "timed out",
        "Name or service not known": "Name or service not known",
        "No route to host": "No route to host",
        "is unreachable": "is unreachable",
    }
    return next((reason for text, reason in known.items() if text in str(error)), None)
