"""`Webhook`: posts alerts as JSON to a URL. Of the URL, messages show the host alone: the path is often the secret."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from kvray import __version__
from kvray.check.watch.sinks.alert import Message
from kvray.check.watch.sinks.deliveries import UndeliveredError
from kvray.errors import InvalidValueError

SILENCE_S = 10.0
"""An answer that says nothing for so long is given up."""
WHOLE_S = 30.0
"""An answer that has not come after so long is given up, even if it still trickles."""
_MOST_REDIRECTS = 3
_REFUSALS = (400, 413, 415, 422)
"""With these it is the alert that a server does not take. All others are its own trouble, or the URL's."""


class Webhook:
    """A receiver behind `url`, which may hold a user name and a password; these are sent as basic authentication.

    Raises:
        InvalidValueError: the URL is none that can be posted to.
    """

    def __init__(self, url: str, *, silence_s: float = SILENCE_S, whole_s: float = WHOLE_S) -> None:
        self._url, self._authorization = _checked(url)
        self._silence_s, self._whole_s = silence_s, whole_s

    @property
    def name(self) -> str:
        """`webhook https://hooks.example.com/…`."""
        return f"webhook {_shown(self._url)}"

    def deliver(self, message: Message) -> None:
        """POST the alert; any answer of the 200s takes it. What the answer says is not read."""
        url, data = self._url, json.dumps(dict(message)).encode()
        for _ in range(_MOST_REDIRECTS + 1):
            status, location = self._post(url, data)
            if 200 <= status < 300:
                return
            if status not in (307, 308):
                raise UndeliveredError(_answered(status), is_refusal=status in _REFUSALS)
            url = _followed(url, location)
        raise UndeliveredError(f"it redirects more than {_MOST_REDIRECTS} times")

    def abandon(self) -> None:
        """A thread that waits for an answer ends with the process."""

    def _post(self, url: str, data: bytes) -> tuple[int, str]:
        """Status of the answer, and where it redirects to."""
        headers = {"Content-Type": "application/json", "User-Agent": f"kvray/{__version__}"}
        if self._authorization:
            headers["Authorization"] = self._authorization
        request = urllib.request.Request(url, data=data, headers=headers, method="POST")
        with _watched(self._whole_s) as opener:
            try:
                with opener.open(request, timeout=self._silence_s) as answer:
                    return answer.status, ""
            except urllib.error.HTTPError as error:
                with contextlib.closing(error):
                    return error.code, error.headers.get("Location", "")
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise UndeliveredError(self._reason(error)) from error

    def _reason(self, error: Exception) -> str:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, TimeoutError):
            return f"no answer within {self._silence_s:g} seconds"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror[0].lower() + cause.strerror[1:]
        return f"the answer is no HTTP or broke off ({type(cause).__name__})"


def _checked(url: str) -> tuple[str, str]:
    """The URL without user name and password, and the header that says these."""
    hint = "Give one like https://hooks.example.com/path."
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidValueError("The URL for --webhook cannot be read.", hint=hint) from None
    if parts.scheme not in ("http", "https"):
        shown = f"begins with {parts.scheme}://" if parts.scheme else "has no scheme"
        raise InvalidValueError(f"The URL for --webhook {shown}; only http and https can be posted to.", hint=hint)
    if not parts.hostname or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidValueError("The URL for --webhook has no host, or characters that a URL cannot have.", hint=hint)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    place = host if port is None else f"{host}:{port}"
    return parts._replace(netloc=place, fragment="").geturl(), _basic(parts)


def _basic(parts: SplitResult) -> str:
    if parts.username is None:
        return ""
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/…"


def _answered(status: int) -> str:
    name = http.client.responses.get(status, "")
    told = f"it answers with status {status}{f' ({name})' if name else ''}"
    if 300 <= status < 400:
        return f"{told}, a redirect that would lose the alert; give the final URL"
    return told


def _followed(url: str, location: str) -> str:
    """Where `location` leads, on the same host: what a URL's owner was told is no business of another."""
    target = urlsplit(urljoin(url, location))
    if not location or (target.scheme, target.netloc) != urlsplit(url)[:2]:
        where = f"{target.scheme}://{target.netloc.rpartition('@')[2]}" if location else "nowhere"
        raise UndeliveredError(f"it redirects to {where}, and an alert is not sent on to another host")
    return target.geturl()


class _Remembering:
    """Part of a handler of urllib's: remembers the connections that it opens."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[http.client.HTTPConnection] = []

    def do_open(self, http_class: Callable[..., Any], req: Any, **options: Any) -> Any:
        """As in urllib, which hands over the class of the connection."""
        return super().do_open(functools.partial(self._connection, http_class), req, **options)  # type: ignore[misc]

    def _connection(self, http_class: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        connection = http_class(*arguments, **options)
        self.opened.append(connection)
        return connection


class _Http(_Remembering, urllib.request.HTTPHandler):
    """Plain connections."""


class _Https(_Remembering, urllib.request.HTTPSHandler):
    """Encrypted connections, whose certificates are verified."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects are answers like others; urllib would turn a POST into a GET, and read the answer to its end."""

    def redirect_request(self, *arguments: Any, **options: Any) -> None:
        """No request follows."""

    def http_error_302(self, *arguments: Any, **options: Any) -> None:
        """Leave the answer to the caller."""

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


@contextlib.contextmanager
def _watched(whole_s: float) -> Iterator[urllib.request.OpenerDirector]:
    """An opener whose connections are cut after `whole_s`: urllib's own limit begins anew with each byte."""
    handlers = _Http(), _Https()

    def cut() -> None:
        for connection in (one for handler in handlers for one in handler.opened):
            with contextlib.suppress(OSError):
                if connection.sock is not None:
                    connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(whole_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield urllib.request.build_opener(*handlers, _NoRedirects())
    finally:
        timer.cancel()
