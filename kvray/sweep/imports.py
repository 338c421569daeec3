"""What Ray's workers may import: what is installed where they run, and the code of the engine. Nothing else.

Ray 2.60 puts the driver's working folder, which may be a model by anybody, first on every worker's `sys.path`, and
offers no option against it. So a private name of it is replaced; where a version lacks that, `check_imports` says so.
"""

from __future__ import annotations

import logging
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvray.engines.base import EngineAdapter

_INSTALLED = ("stdlib", "purelib", "platlib")
_UV_HOOK = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
_logger = logging.getLogger("kvray.sweep")


def engine_folders(*adapters: EngineAdapter) -> tuple[str, ...]:
    """Folders in which a worker has to look for the classes of `adapters`: none where they are installed, else that of
    the user's own program or library which defines them."""
    classes = {kind for adapter in adapters for kind in type(adapter).__mro__}
    names = {kind.__module__.partition(".")[0] for kind in classes} - {"kvray", "builtins", "abc"}
    installed = {sysconfig.get_path(name) for name in _INSTALLED}
    folders = (_folder(name) for name in sorted(names - {"__main__"}))
    return tuple(dict.fromkeys(folder for folder in folders if folder is not None and folder not in installed))


def _folder(top_level: str) -> str | None:
    path = getattr(sys.modules.get(top_level), "__file__", None)
    if path is None:
        return None
    folder = Path(path).absolute().parent
    return str(folder.parent if Path(path).stem == "__init__" else folder)


@contextmanager
def only_imports_from(folders: Sequence[str]) -> Iterator[dict[str, Any]]:
    """For the length of `ray.init`, which takes what this yields as further options."""
    from ray._private import ray_constants
    from ray.job_config import JobConfig

    job = JobConfig()
    job._py_driver_sys_path = _Fixed(folders)
    # Below `uv run` Ray would upload the working folder and have every worker run in it.
    with_uv = getattr(ray_constants, _UV_HOOK, False)
    setattr(ray_constants, _UV_HOOK, False)
    try:
        yield {"job_config": job}
    finally:
        setattr(ray_constants, _UV_HOOK, with_uv)


def check_imports(folders: Sequence[str]) -> None:
    """Say so where the workers of the Ray that this process is connected to would import from more than `folders`."""
    import ray

    job = ray._private.worker.global_worker.core_worker.get_job_config()
    more = [folder for folder in job.py_driver_sys_path if folder not in folders]
    if more:
        _logger.warning(
            "This version of Ray has its workers import from %s. Start kvray in a folder with nobody else's code.",
            " and ".join(more),
        )


class _Fixed(list[str]):
    """Ray adds the working folder and that of the running program to such a list: in vain."""

    def extend(self, folders: Iterable[str], /) -> None:
        """Add nothing."""
