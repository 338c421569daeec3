"""A place of its own for each module of properties, and no network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kvray_logger import logger_as_before
from promises import CELL, RATES, Place, run_line

from kvray.engines.offline import offline_environment
from kvray.engines.transformers import TransformersAdapter, outline


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("fuzz", numbered=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVRAY_CACHE", str(place.cache))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("COLUMNS", "120")
        patch.chdir(place.cwd)
        # Two steps of a preview take a process of their own each, and seconds.
        patch.setattr(TransformersAdapter, "measure_hardware", lambda *arguments: RATES)
        patch.setattr(outline, "outline_model", lambda request: None)
        with offline_environment(enabled=True):
            # What libraries do when they are first imported is no escape, so it happens before anything is watched.
            run_line("tune", f"random:{Path(__file__).parents[1] / 'assets' / 'tiny_llama'}", *CELL)
            yield place


@pytest.fixture(autouse=True, scope="module")
def log_as_before() -> Iterator[None]:
    with logger_as_before():
        yield
