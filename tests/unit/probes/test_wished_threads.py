"""Whose wish OMP_NUM_THREADS is: Ray sets it for the program of a job, too."""

from __future__ import annotations

import json

import pytest
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

from kvray.probes.cpu import wished_threads


@pytest.mark.parametrize(
    ("job", "wished"),
    [
        (None, 1),
        (json.dumps({"runtime_env": {}, "metadata": {}}), None),
        (json.dumps({"runtime_env": {"env_vars": {"HF_HOME": "/hub"}}}), None),
        (json.dumps({"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}), 1),
        ("no JSON", None),
    ],
)
def test_what_ray_sets_for_a_job_is_not_the_users_wish(
    job: str | None, wished: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv(RAY_JOB_CONFIG_JSON_ENV_VAR, raising=False)
    if job is not None:
        monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, job)
    assert wished_threads() == wished
