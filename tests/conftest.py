"""Property tests try the same examples in every run of CI, so that none fails by chance; elsewhere they look on.
`--hypothesis-profile=deep` feeds each property of `tests/fuzz` as many inputs as `make fuzz` does.

What tests of all kinds share: a logger that is as it was before each, a second environment, a limit for slow ones, and
a count at the end of what was fed to the properties."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import fed
import pytest
from hypothesis import settings
from kvray_logger import logger_as_before
from second_environment import make_environment

settings.register_profile("ci", derandomize=True)
settings.register_profile("deep", max_examples=int(os.environ.get("KVRAY_FUZZ_INPUTS", "10000")), print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

SLOW_LIMIT_S = 900
"""For slow tests that name no limit of their own: a busy machine makes them several times as long."""


@pytest.fixture(autouse=True)
def _logger() -> Iterator[None]:
    """A command line that one test runs must not change what the next one hears."""
    with logger_as_before():
        yield


@pytest.fixture(scope="session")
def second_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of another virtual environment, in which all that is here can be imported."""
    return make_environment(tmp_path_factory.mktemp("second") / "env", *sys.path)


def pytest_configure() -> None:
    """Tests press Ctrl-C. A shell lets what it starts in the background ignore that, and so do all their processes."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Only a test that hangs reaches its limit, however busy the machine is."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_LIMIT_S))


def pytest_collection_finish() -> None:
    """What was imported stays. Models are released by collecting garbage, which took a fifth of a second to walk it."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One of several processes that run tests (pytest-xdist) hands in what it has fed."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["fed"] = fed.counted()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """The process that reports receives it; one that crashed has handed in nothing."""
    fed.add(getattr(node, "workeroutput", {}).get("fed", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many inputs were fed."""
    line = fed.summary()
    if line is not None:
        terminalreporter.write_line(line)
