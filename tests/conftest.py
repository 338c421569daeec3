"""Property tests try the same examples in every run of CI, so that none fails by chance; elsewhere they look on.

What tests of all kinds share: a second environment."""

from __future__ import annotations

import os
import sys

import pytest
from hypothesis import settings
from second_environment import make_environment

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="session")
def second_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of another virtual environment, in which all that is here can be imported."""
    return make_environment(tmp_path_factory.mktemp("second") / "env", *sys.path)
