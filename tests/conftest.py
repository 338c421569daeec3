"""Property tests try the same examples in every run of CI, so that none fails by chance; elsewhere they look on.
`--hypothesis-profile=deep` feeds each property of `tests/fuzz` as many inputs as `make fuzz` does.

What tests of all kinds share: a second environment."""

from __future__ import annotations

import os
import sys

import pytest
from hypothesis import settings
from second_environment import make_environment

settings.register_profile("ci", derandomize=True)
settings.register_profile("deep", max_examples=int(os.environ.get("KVRAY_FUZZ_INPUTS", "10000")), print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="session")
def second_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of another virtual environment, in which all that is here can be imported."""
    return make_environment(tmp_path_factory.mktemp("second") / "env", *sys.path)
