"""What Ray is told of where its workers import from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kvray.engines.registry import get_engine
from kvray.sweep.imports import engine_folders, only_imports_from
from kvray.testing.fake import FakeAdapter


def test_engines_that_are_installed_need_no_folder() -> None:
    assert engine_folders(FakeAdapter()) == ()
    assert engine_folders(get_engine("transformers")) == ()


def test_an_engine_of_a_users_own_program_is_found_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_engine").mkdir()
    (tmp_path / "own_engine" / "__init__.py").write_text("")
    (tmp_path / "own_engine" / "adapter.py").write_text(
        "from kvray.testing.fake import FakeAdapter\nclass OwnAdapter(FakeAdapter):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from own_engine.adapter import OwnAdapter  # type: ignore[import-not-found]

    assert engine_folders(OwnAdapter()) == (str(tmp_path),)


def test_ray_cannot_add_the_working_folder() -> None:
    with only_imports_from(["/engine"]) as options:
        job = options["job_config"]
        job._py_driver_sys_path.extend([str(Path.cwd()), str(Path(sys.argv[0]).parent)])
        assert list(job._get_proto_job_config().py_driver_sys_path) == ["/engine"]


def test_uv_is_ignored_while_ray_starts() -> None:
    from ray._private import ray_constants

    before = ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV
    with only_imports_from([]):
        assert not ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV
    assert before == ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV
