"""A fork server of one engine's own. Multiprocessing has a single one per process, which would import one engine's
libraries, with its environment, for the trials of all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from multiprocessing import forkserver


class EngineServer(forkserver.ForkServer):
    """Imports `kvray.trial.server_preload` once. Processes that are started while it is `used` are forked from it."""

    def __init__(self) -> None:
        super().__init__()
        self.set_forkserver_preload(["kvray.trial.server_preload"])

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """What `multiprocessing.popen_forkserver` asks for a new process (Python 3.11 to 3.13) is this server."""
        common = forkserver.connect_to_new_process
        forkserver.connect_to_new_process = self.connect_to_new_process
        try:
            yield
        finally:
            forkserver.connect_to_new_process = common
