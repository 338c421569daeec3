"""The store contract on S3: a real S3 API (moto's server) over HTTP, through `pyarrow.fs`."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from moto.server import ThreadedMotoServer
from pyarrow.fs import FileSystem
from store_contract import StoreContract

from kvray.errors import OutputError
from kvray.store.parquet import ResultsStore

SECRET = "s3cret"


@pytest.fixture(scope="module")
def s3_options() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    finally:
        server.stop()


class TestS3Store(StoreContract):
    @pytest.fixture
    def root(self, s3_options: str) -> str:
        bucket = f"b-{uuid.uuid4().hex}"
        uri = f"s3://key:{SECRET}@{bucket}/team/kv?{s3_options}"
        filesystem, _ = FileSystem.from_uri(f"{uri}&allow_bucket_creation=true")
        filesystem.create_dir(bucket)
        return uri

    def test_a_missing_bucket_is_an_output_error_that_keeps_the_credentials_to_itself(self, s3_options: str) -> None:
        store = ResultsStore(f"s3://key:{SECRET}@no-such-bucket/kv?{s3_options}")
        with pytest.raises(
            OutputError, match=r"Cannot write to results folder 's3://no-such-bucket/kv': .*BUCKET"
        ) as e:
            store.check_writable()
        assert SECRET not in str(e.value)
        assert not store.is_local
