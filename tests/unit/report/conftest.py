"""The reports that several tests look at."""

from __future__ import annotations

import pytest
from report_sweeps import info_of, realistic_results

from kvray.report.info import ReportInfo


@pytest.fixture(scope="session")
def realistic() -> ReportInfo:
    """A sweep as it usually comes out: a dozen ranked, some of every other end."""
    return info_of(realistic_results())
