"""The kit of engine tests shows its values when it fails, as test modules do; and an S3 API behind an unwell proxy."""

from __future__ import annotations

import re
import socketserver
import threading
import uuid
from collections.abc import Iterator

import pytest
from moto.server import ThreadedMotoServer
from pyarrow.fs import FileSystem
from unwell_s3 import Illness, Proxy

pytest.register_assert_rewrite("kvray.testing")


@pytest.fixture(scope="module")
def options() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    Proxy.behind = server.get_host_and_port()
    proxy = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy)
    proxy.daemon_threads = True
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    yield f"endpoint_override=127.0.0.1:{proxy.server_address[1]}&scheme=http&region=us-east-1"
    proxy.shutdown()
    proxy.server_close()
    server.stop()


@pytest.fixture
def illness() -> Iterator[Illness]:
    Proxy.illness = Illness()
    yield Proxy.illness
    Proxy.illness = Illness()


@pytest.fixture
def uri(options: str, illness: Illness) -> str:
    bucket = f"b-{uuid.uuid4().hex}"
    filesystem, _ = FileSystem.from_uri(f"s3://k:secret@{bucket}/kv?{options}&allow_bucket_creation=true")
    filesystem.create_dir(bucket)
    return f"s3://k:secret@{bucket}/kv?{options}"


@pytest.fixture
def behind(uri: str) -> str:
    """The same results without the proxy."""
    host, port = Proxy.behind
    return re.sub(r"endpoint_override=[^&]*", f"endpoint_override={host}:{port}", uri)
