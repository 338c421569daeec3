"""Names of files at URIs; what a service answers is in `tests/contract`."""

from __future__ import annotations

import pytest

from kvray.check.config import CheckConfig
from kvray.files.remote import has_suffix, within


@pytest.mark.parametrize(
    ("folder", "path"),
    [
        ("results", "results/a/b.json"),
        ("/results/", "/results/a/b.json"),
        ("/", "/a/b.json"),
        ("", "a/b.json"),
        ("odd?name", "odd?name/a/b.json"),
        ("s3://team/kv", "s3://team/kv/a/b.json"),
        ("s3://team/kv/?region=eu-1&scheme=http", "s3://team/kv/a/b.json?region=eu-1&scheme=http"),
    ],
)
def test_a_file_in_a_folder_has_the_options_of_its_uri(folder: str, path: str) -> None:
    assert within(folder, "a", "b.json") == path


def test_a_name_ends_before_the_options_of_its_uri() -> None:
    assert has_suffix("s3://team/plan.json?region=eu-1", ".json")
    assert not has_suffix("s3://team/kv?region=x.json", ".json")
    assert has_suffix("odd?name.json", ".json")


def test_a_check_writes_its_result_into_a_uri_with_options() -> None:
    config = CheckConfig(baseline="plan.json", output_dir="s3://team/kv?region=eu-1")
    assert config.check_file == "s3://team/kv/check.json?region=eu-1"
