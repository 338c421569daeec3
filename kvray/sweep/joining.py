"""Checks a running cluster before Ray connects: it must accept a connection, and our token if it asks for one.

Without this check Ray 2.60 fails after 20 s and twenty lines of C++ where a token is missing, and after minutes where
nobody answers. A token must not be sent to a cluster that asks for none, because the driver would then ask its workers
for one, and each slot would die. `session` makes the error that a user sees.
"""

from __future__ import annotations

import json
import os
import platform
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kvray.errors import SweepError
from kvray.standard_error import c_libraries_write_to
from kvray.sweep.loopback import is_loopback

_KNOCK_S = 10.0
"""Seconds in which a cluster must accept a connection."""
_NOTED, _NOTED_IN = b"CLUSTER_METADATA", b"cluster"
"""Where in Ray's store the head notes its versions, as JSON; `ray.init` compares them after it has connected."""
_ADDRESS = "RAY_ADDRESS"
_MODE = "RAY_AUTH_MODE"
_COPY = "Copy ~/.ray/auth_token from the cluster's head to the same place here, or set RAY_AUTH_TOKEN to what it holds."


def prepare_to_join(address: str) -> str | None:
    """Knock, and have Ray send a token if the cluster asks for one.

    Returns:
        The address at which a cluster answered that lets in who comes; `None` where that is this machine's loopback,
        where the cluster has asked for a token, or where there is none.

    Raises:
        OSError, ValueError, RuntimeError: nobody listens there, or `address` is none.
        SweepError: it is the address of the dashboard or of Ray's client server, the cluster lets nobody in without
            another token, or it runs another version of Ray or Python.
    """
    from ray._private import services
    from ray.exceptions import AuthenticationError

    if address.startswith(("http://", "https://")):
        raise _dashboard_problem(address)
    if address == "auto" and (named := os.environ.get(_ADDRESS, "")).startswith(("http://", "https://")):
        raise _dashboard_named(named)
    if "://" in address:
        _knock(address.partition("://")[2])
        raise _client_problem(address)
    on_loopback = address != "auto" and _knock(address)
    found = services.canonicalize_bootstrap_address(address)
    if found is None:  # RAY_ADDRESS=local
        return None
    if address == "auto":
        on_loopback = _knock(found)
    try:
        cluster, asked_for_token = _ask_in(found)
    except AuthenticationError as error:
        raise cannot_join(address, found) from error
    if cluster is not None and (problem := version_problem(address, cluster)) is not None:
        raise problem
    return None if on_loopback or asked_for_token else found


def cannot_join(address: str, found: str) -> SweepError:
    """The error for a cluster that does not accept our token; it was `found` by its `address`."""
    if address == "auto":
        error = token_problem(f"The Ray cluster at {found!r}, which --address auto has found, cannot be joined")
        error.hint = f"{error.hint} For another cluster give its address: --address HOST:PORT."
        return error
    return token_problem(f"The Ray cluster at {address!r} cannot be joined")


def _dashboard_problem(address: str) -> SweepError:
    host = urlsplit(address).hostname or "HOST"
    return SweepError(
        f"The Ray cluster at {address!r} cannot be reached: that is a dashboard's address.",
        hint=f"Give --address {_bracketed(host)}:6379 here, or send the command to it: "
        f"kvray submit --address {address} …",
    )


def _dashboard_named(address: str) -> SweepError:
    """Ray's `auto` takes the variable's word, and `kvray submit` reads a dashboard from it."""
    return SweepError(
        f"--address auto follows {_ADDRESS}, which is {address!r}: that is a dashboard's address.",
        hint=f"To join a cluster from one of its machines: env -u {_ADDRESS} kvray … --address auto. To send the "
        "command to it: kvray submit …",
    )


def _client_problem(address: str) -> SweepError:
    """Through its client server Ray Tune runs on the cluster, where a sweep's records and views are not."""
    host = urlsplit(address).hostname or "HOST"
    return SweepError(
        f"The Ray cluster at {address!r} cannot be used: no sweep can run through Ray's client server.",
        hint=f"On a machine of the cluster give --address {_bracketed(host)}:6379; from any other send the command to "
        f"its dashboard: kvray submit --address http://{_bracketed(host)}:8265 …",
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def version_problem(address: str, cluster: Mapping[str, Any]) -> SweepError | None:
    """The error for a cluster whose versions differ from those here, told by what its head has noted of itself.

    Ray wants the very same Python, unless its own variable says that the minor version is enough.
    """
    import ray

    theirs = {"Ray": str(cluster.get("ray_version")), "Python": str(cluster.get("python_version"))}
    ours = {"Ray": ray.__version__, "Python": platform.python_version()}
    level = 2 if os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL") == "minor" else 3
    same_python = theirs["Python"].split(".")[:level] == ours["Python"].split(".")[:level]
    if theirs["Ray"] == ours["Ray"] and same_python:
        return None
    there, here = (" and ".join(f"{name} {version}" for name, version in one.items()) for one in (theirs, ours))
    return SweepError(
        f"The Ray cluster at {address!r} cannot be joined: it has {there}, and this machine has {here}.",
        hint="Use the cluster's versions here, or send the command to it: kvray submit.",
    )


def _ask_in(address: str) -> tuple[Mapping[str, Any] | None, bool]:
    """Connect without a token, and with one if there must be one.

    Where none is needed RAY_AUTH_MODE is set to `disabled`, lest Ray sends one: a user may have set it for another
    cluster, a Ray that a program starts by itself leaves it in the environment, and to a cluster that `auto` finds Ray
    sends any token that is here. Who calls this puts the variable back.

    Returns:
        What the head has noted of itself, and whether it let nobody in without a token.
    """
    import ray
    from ray.exceptions import AuthenticationError

    try:
        from ray._private.authentication import authentication_token_setup as setup
    except ImportError:  # a Ray that knows no tokens
        return None, False
    asked_for_token = False
    mode = os.environ.pop(_MODE, None)
    ray._raylet.Config.initialize("")  # an earlier Ray of this process may have switched tokens on
    try:
        with c_libraries_write_to(Path(os.devnull)):
            client = ray._raylet.GcsClient(address=address)
    except AuthenticationError:
        asked_for_token = True
        if mode is not None:
            os.environ[_MODE] = mode
            ray._raylet.Config.initialize("")
            setup.ensure_token_if_auth_enabled(create_token_if_missing=False)  # or Ray's C++ ends this process
        else:
            setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        client = ray._raylet.GcsClient(address=address)  # with words for the log, where that has changed nothing
    else:
        os.environ[_MODE] = "disabled"
        ray._raylet.Config.initialize("")
    noted = client.internal_kv_get(_NOTED, namespace=_NOTED_IN)
    return None if noted is None else dict(json.loads(noted)), asked_for_token


def token_problem(what_failed: str) -> SweepError:
    """The error for an `AuthenticationError` of Ray's, told by the settings that Ray reads."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return SweepError(
            f"{what_failed}: it asks for a token, and RAY_AUTH_MODE is 'disabled'.", hint="Unset RAY_AUTH_MODE."
        )
    source = _token_source()
    if source is None:
        return SweepError(f"{what_failed}: it asks for a token, and there is none here.", hint=_COPY)
    if not _holds_token(source):
        return SweepError(
            f"{what_failed}: RAY_AUTH_TOKEN_PATH names {str(source)!r}, which cannot be read or is empty.",
            hint="Unset it, or let it name a file that holds a token.",
        )
    return SweepError(f"{what_failed}: it does not accept the token in {source}.", hint=_COPY)


def _token_source() -> Path | str | None:
    """Where Ray takes its token from: a variable's name or a file."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return Path(path)
    try:
        default = Path.home() / ".ray" / "auth_token"
    except RuntimeError:  # this user has no home folder
        return None
    return default if _holds_token(default) else None


def _holds_token(source: Path | str) -> bool:
    if isinstance(source, str):
        return True
    try:
        return bool(source.read_bytes().strip())
    except OSError:
        return False


def _knock(address: str) -> bool:
    """Connect once; returns whether what answers is on this machine's loopback."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        return False
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S) as connection:
        return is_loopback(str(connection.getpeername()[0]))
