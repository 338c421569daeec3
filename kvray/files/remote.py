"""URIs of object stores and other file systems that `pyarrow.fs` knows: opened with bounded patience, shown without
secrets, and their errors in plain words. Importing this module is cheap; opening a URI imports pyarrow."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_STALLED_S = 5.0
"""A request that moves nothing for so long has failed."""
_CONNECT_S = 5.0
_ATTEMPTS = 4
"""Together these bound a request to a service that does not answer to about half a minute."""
_GCS_RETRIES_S = 20
"""Seconds; by default pyarrow tries for 15 minutes."""
_SWITCHES = ("allow_bucket_creation", "allow_bucket_deletion")
_TEXTS = ("region", "scheme", "endpoint_override", "tls_ca_file_path")
_REASONS = (
    (r"NO_SUCH_BUCKET|NoSuchBucket", "there is no such bucket"),
    (
        r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_CLIENT_TOKEN|EXPIRED_TOKEN|ExpiredToken"
        r"|HTTP status 40[13]|AuthenticationFailed|PERMISSION_DENIED|UNAUTHENTICATED",
        "the service refuses this access: check credentials and permissions",
    ),
    (
        r"PermanentRedirect|HTTP status 301|AuthorizationHeaderMalformed|IllegalLocation",
        "the bucket is in another region",
    ),
    (r"NETWORK_CONNECTION|Could(?: not|n't) (?:connect|resolve)|Connection refused", "the service cannot be reached"),
    (r"HTTP status 5\d\d|SLOW_DOWN|INTERNAL_FAILURE|SERVICE_UNAVAILABLE", "the service fails at present"),
)
_DETAIL = re.compile(r"AWS Error (.+?)(?: during|:|$)|curlCode: \d+, ([^;]+)")


def is_uri(place: str | os.PathLike[str]) -> bool:
    """Whether `place` is a URI, not a path of this machine."""
    return "://" in str(place)


def within(folder: str, *names: str) -> str:
    """The path or URI of what is called so in `folder`, which may be either. A URI keeps its options."""
    place, mark, options = folder.partition("?") if is_uri(folder) else (folder, "", "")
    return "/".join((*([place.rstrip("/")] if place else []), *names)) + mark + options


def has_suffix(place: str, suffix: str) -> bool:
    """Whether the name in a path or URI ends so, whatever options a URI has."""
    return (place.partition("?")[0] if is_uri(place) else place).endswith(suffix)


def open_uri(uri: str) -> tuple[FileSystem, str]:
    """The file system that `uri` names, and the path within it. An S3 bucket's region may be asked for.

    Raises:
        OSError: its service cannot be reached, or a library that it needs is missing.
        ValueError, pyarrow.ArrowException: it is of no known kind or form.
    """
    from pyarrow.fs import FileSystem

    parts = urlsplit(uri)
    if parts.scheme == "s3" and (found := _open_s3(uri, os.environ)) is not None:
        return found
    if parts.scheme in ("gs", "gcs") and "retry_limit_seconds" not in parts.query:
        uri += f"{'&' if parts.query else '?'}{urlencode({'retry_limit_seconds': _GCS_RETRIES_S})}"
    filesystem, path = FileSystem.from_uri(uri)
    return filesystem, str(path)


def without_secrets(uri: str) -> str:
    """`uri` for messages: without credentials and options."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def service_reason(text: str) -> str | None:
    """What an object store's error means, in plain words with its code; `None` where it is none that is known."""
    for pattern, words in _REASONS:
        if re.search(pattern, text):
            details = [first or second for first, second in _DETAIL.findall(text)]
            return f"{words} ({'; '.join(details)})" if details else words
    return None


def upload(filesystem: FileSystem, path: str, data: bytes) -> None:
    """Put `data` at `path` of an object store. It appears there when all of it has arrived, in place of what was there.

    Raises:
        OSError, pyarrow.ArrowException: it could not be written; what was there before is there still.
    """

    def put() -> None:
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)

    # In a thread, where Ctrl-C reaches it never: between opening and writing it would leave an empty object.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(put).result()


def read_uri(uri: str, *, most_bytes: int) -> bytes:
    """At most `most_bytes` bytes of the file that `uri` names.

    Raises:
        OSError: it cannot be read; `strerror` says why on one line.
        ValueError: `uri` is of no known kind.
    """
    with _in_plain_words(uri):
        filesystem, path = open_uri(uri)
        with filesystem.open_input_stream(path) as stream:
            return bytes(stream.read(most_bytes))


def is_file_at(uri: str) -> bool:
    """Whether `uri` names a file that exists.

    Raises:
        OSError: nobody can tell; `strerror` says why on one line.
        ValueError: `uri` is of no known kind.
    """
    from pyarrow.fs import FileType

    with _in_plain_words(uri):
        filesystem, path = open_uri(uri)
        return bool(filesystem.get_file_info(path).type == FileType.File)


def write_uri(uri: str, data: bytes) -> None:
    """Put `data` into the file that `uri` names, in place of what was there.

    Raises:
        OSError: it cannot be written; `strerror` says why on one line.
        ValueError: `uri` is of no known kind.
    """
    with _in_plain_words(uri):
        filesystem, path = open_uri(uri)
        upload(filesystem, path, data)


def try_uri(uri: str) -> None:
    """Find out whether the file that `uri` names can be written: write another one beside it, and remove that. Where
    removing is not allowed it stays, because writing is.

    Raises:
        OSError: it cannot be written; `strerror` says why on one line.
        ValueError: `uri` is of no known kind, or names no file.
    """
    from pyarrow import ArrowException
    from pyarrow.fs import FileType

    with _in_plain_words(uri):
        filesystem, path = open_uri(uri)
        folder, separator, _ = path.rpartition("/")
        if not separator or urlsplit(uri).path.endswith("/"):
            raise ValueError("it names no file")
        beside = f"{folder}/.kvray-{uuid.uuid4().hex}~"
        upload(filesystem, beside, b"")
        with contextlib.suppress(OSError, ArrowException):
            filesystem.delete_file(beside)
        with contextlib.suppress(OSError, ArrowException):  # who may write may not be allowed to look
            if filesystem.get_file_info(path).type == FileType.Directory:
                raise ValueError("it is a folder")


@contextlib.contextmanager
def _in_plain_words(uri: str) -> Iterator[None]:
    """What a file system says of `uri`, as an `OSError` of one line without secrets."""
    from pyarrow import ArrowException

    try:
        yield
    except (OSError, ArrowException) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        told = "no such file" if isinstance(error, FileNotFoundError) else service_reason(str(error)) or lines[0]
        raise OSError(getattr(error, "errno", None) or 0, told.replace(uri, without_secrets(uri))) from error


def _open_s3(uri: str, environment: Mapping[str, str]) -> tuple[FileSystem, str] | None:
    """As pyarrow opens it, with fewer and shorter attempts: its own go on for minutes at a service that hangs. `None`
    where `uri` has what is left to pyarrow to understand, or to refuse."""
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem, resolve_s3_region

    parts = urlsplit(uri)
    user, has_user, bucket = parts.netloc.rpartition("@")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if not bucket or ":" in bucket or "?" in user or set(options) - {*_SWITCHES, *_TEXTS}:
        return None
    given: dict[str, Any] = {name: options[name] for name in _TEXTS if options.get(name)}
    given |= {name: options[name].lower() in ("true", "1") for name in _SWITCHES if name in options}
    if has_user:
        key, _, secret = user.partition(":")
        given |= {"access_key": unquote(key), "secret_key": unquote(secret)}
    if "endpoint_override" not in given:
        given |= _endpoint(environment)
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    if "region" not in given:
        is_own = "endpoint_override" in given
        given["region"] = region or ("us-east-1" if is_own else resolve_s3_region(bucket))
    filesystem = S3FileSystem(
        connect_timeout=_CONNECT_S,
        request_timeout=_STALLED_S,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        **_whole_in_one_request(S3FileSystem),
        **given,
    )
    return filesystem, f"{bucket}{unquote(parts.path).rstrip('/')}"


def _endpoint(environment: Mapping[str, str]) -> dict[str, str]:
    """What `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` says, which name a MinIO server, say."""
    url = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    if not url:
        return {}
    parts = urlsplit(url if "://" in url else f"https://{url}")
    return {"endpoint_override": parts.netloc.rpartition("@")[2], "scheme": parts.scheme}


def _whole_in_one_request(filesystem: Any) -> dict[str, bool]:
    """A small object goes up in one request; older releases of pyarrow always take three."""
    return {"allow_delayed_open": True} if "allow_delayed_open" in (filesystem.__doc__ or "") else {}
