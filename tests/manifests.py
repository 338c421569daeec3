"""A sweep's manifest for tests that need one and do not look at what it says."""

from __future__ import annotations

import datetime as dt

from kvray.store.manifest import SweepManifest
from kvray.workload import get_profile

RUN_ID = "20260101-120000-abcd"


def plain_manifest() -> SweepManifest:
    """The manifest of a sweep of the fake engine that has just begun."""
    return SweepManifest(
        kvray_version="0.1.0",
        run_id=RUN_ID,
        created_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        model_id="m",
        model_revision="r",
        architecture="A",
        engine="fake",
        device="cpu",
        device_name="CPU",
        profile=get_profile("ci-micro"),
        baseline_id="b",
        memory_note="none",
    )
