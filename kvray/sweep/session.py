"""Ray, started and stopped: a private one on this machine, or a client of a running cluster. Quiet in both cases."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from kvray.errors import SweepError, sentence_of
from kvray.probes.cpu import available_cpus
from kvray.standard_error import own_descriptor, say
from kvray.sweep.cluster_servers import cluster_servers
from kvray.sweep.driver_reaper import DriverReaper, remove_folders
from kvray.sweep.imports import check_imports, only_imports_from
from kvray.sweep.joining import prepare_to_join, token_problem
from kvray.sweep.lean_ray import NO_WORKERS_AHEAD, lean_ray
from kvray.sweep.liveness import ClusterServers, Liveness, OwnServers
from kvray.sweep.loopback import (
    check_loopback,
    forget_token,
    loopback_ray,
    recall_auth_mode,
    token_of_its_own,
    warn_of_open_cluster,
)
from kvray.sweep.quiet import mute_handlers_of_ray

_PRIVATE_RAY: Mapping[str, int] = {
    **NO_WORKERS_AHEAD,
    "worker_niceness": 0,
    # Ray's monitor ends its workers when the machine runs low on memory, whoever took it; a slot that is ended so takes
    # the sweep with it, while the kernel would end the process that measures, which becomes a record.
    "memory_monitor_refresh_ms": 0,
    # A slot's fork server must live until `trial_reaper` has ended what is below it.
    "kill_child_processes_on_worker_exit": False,
}

_ROOM_HINT = (
    "Ray needs a folder for sockets and logs that can be written, has space, and has a short path: $RAY_TMPDIR, else "
    "$TMPDIR, else /tmp. Set RAY_TMPDIR."
)
_LOOK_S = 1.0
_SILENCE_S = 0.2
_TOLD_AFTER_S = 5.0
_REASON = "\0"
"""Stands in the last words for what is not known yet: no path or id holds it."""
_DESPAIR_S = 15.0
"""After the death of a server, until which the main thread must have noticed and ended the session."""
_LONGEST_REASON = 500
"""Characters."""
_LAST_LOGS_S = 2.0
"""In which what Ray has ended writes its last."""
_LONGEST_FOLDER = 107 - len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
"""Bytes that a folder for temporary files may have: a Unix socket's path holds 107 (unix(7))."""

_logger = logging.getLogger("kvray.sweep")


class RaySession:
    """Ray for the length of a `with`: starting in the background from its first line, gone after its last.

    A Ray to which this process is connected already is used and left running.

    Args:
        address: of a running cluster; `None` starts a private Ray.
        scratch: the sweep's temporary folder, removed even if this process is killed.
        imports: folders from which workers import besides what is installed.
        last_words: what to say if Ray breaks down and takes this process with it: its C++ ends a process that cannot
            reach its server, after a minute in which nothing else can be done.
    """

    def __init__(
        self,
        *,
        address: str | None,
        scratch: Path,
        imports: Sequence[str] = (),
        last_words: Callable[[SweepError], str] = str,
    ) -> None:
        self._address = None if address == "local" else address  # Ray's own word for a private one
        self._imports = imports
        self._scratch = scratch
        self._last_words = last_words
        self._reaper: DriverReaper | None = None
        self._session: Path | None = None
        self._liveness: Liveness | None = None
        self._death: str | None = None
        self._holder = threading.Thread(target=self._hold, name="kvray-ray", daemon=True)
        self._ender = threading.Thread(target=self._end_when_asked, name="kvray-ray-end", daemon=True)
        self._connected = threading.Event()
        self._closing = threading.Event()
        self._is_over = threading.Event()
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._end_error: BaseException | None = None
        self._is_ours = True
        self._auth_mode: str | None = None

    def __enter__(self) -> Self:
        self._holder.start()
        self._ender.start()
        return self

    def __exit__(self, *exception: object) -> None:
        # Ray's C++ ends this process, without a word, if its servers die while it is still connected to them. So Ctrl-C
        # may not stop Ray's end half-way; it is raised afterwards.
        interrupt: KeyboardInterrupt | None = None
        while not self._ended.is_set():
            try:
                self._closing.set()
                self._ended.wait()
            except KeyboardInterrupt as error:
                interrupt = error
        if self._end_error is not None:
            raise self._end_error
        if interrupt is not None:
            raise interrupt

    def _end_when_asked(self) -> None:
        self._closing.wait()
        try:
            self._end()
        except BaseException as error:  # noqa: BLE001  (raised by `__exit__`, in the caller's thread)
            self._end_error = error
        finally:
            self._ended.set()

    def _end(self) -> None:
        self._connected.wait()
        broke_down = self._death is not None  # from here on it is dead because it was ended
        try:
            if self._is_ours:
                import ray

                with _own_sigterm():  # the next sweep of a batch needs it
                    ray.shutdown()
                forget_token()
                recall_auth_mode(self._auth_mode)
            else:
                # Of a sweep that was interrupted, Tune gives CPUs and GPUs back when its controller, which refers to
                # itself, is collected; until then the next sweep on this Ray would wait for them.
                gc.collect()
        finally:
            self._is_over.set()
            self._holder.join()
        if self._session is not None and not broke_down:
            remove_folders([self._session], within_s=_LAST_LOGS_S)
        if self._reaper is not None:
            self._reaper.dismiss()

    @property
    def is_private(self) -> bool:
        """Whether it was started here, on this machine alone; known after `nodes`."""
        return self._is_ours and not self._address

    def nodes(self) -> tuple[Mapping[str, float], ...]:
        """Wait for Ray; returns what each living machine of the cluster has, e.g. `{"CPU": 2.0, "GPU": 1.0}`.

        Raises:
            SweepError: it cannot be started or reached.
        """
        self._connected.wait()
        if self._error is not None:
            raise self._connection_error(self._error) from self._error
        return tuple(living_nodes().values())

    def _connection_error(self, error: BaseException) -> SweepError:
        from ray.exceptions import AuthenticationError

        if isinstance(error, SweepError):
            return error
        if isinstance(error, AuthenticationError):
            what = f"The Ray cluster at {self._address!r} cannot be joined" if self._address else "Ray cannot start"
            return token_problem(what)
        if self._address:
            reason = " ".join(str(error).split())[:_LONGEST_REASON]  # two versions that do not match take six lines
            return SweepError(
                f"The Ray cluster at {self._address!r} cannot be reached: {reason.rstrip('.')}.",
                hint=_address_hint(self._address),
            )
        return SweepError(f"Ray cannot start: {sentence_of(error).rstrip('.')}.", hint=_ROOM_HINT)

    def check_alive(self) -> None:
        """Ask while a sweep runs: Tune waits for ever for a Ray whose servers have died.

        Raises:
            SweepError: one has.
        """
        if self._death is not None:
            raise self._breakdown()

    def look_once_more(self) -> None:
        """Call after Ray has raised an error, which a server's death may explain.

        Raises:
            SweepError: it does.
        """
        if self._death is None and self._liveness is not None:
            self._death = self._liveness.death()
        self.check_alive()

    def wait_while_silent(self) -> None:
        """Call before Ray's servers are asked for something: Ray's C++ ends a process that has asked a head which was
        started anew meanwhile. Waits for a silent one, as long as it may be silent.

        Raises:
            SweepError: a server has died.
        """
        since, is_told = time.monotonic(), False
        while self._liveness is not None and self._liveness.is_silent():
            self.check_alive()
            time.sleep(_SILENCE_S)
            if not is_told and time.monotonic() - since > _TOLD_AFTER_S:
                is_told = True
                _logger.warning("The Ray cluster does not answer; nothing is started until it does, or is given up.")
        self.check_alive()

    def _breakdown(self) -> SweepError:
        logs = f" Ray's logs are kept in {self._session}." if self._session is not None else ""
        return SweepError(f"Ray broke down: {self._death}.{logs}")

    def _hold(self) -> None:
        """Connect, then stay: Ray's processes ask the kernel to die with the thread that started them."""
        try:
            self._connect()
        except BaseException as error:  # noqa: BLE001  (raised by `nodes`, in the caller's thread)
            self._error = error
        finally:
            self._connected.set()
        while not self._is_over.wait(_LOOK_S):
            self._prepare_last_words()
            self._death = self._liveness.death() if self._liveness else None
            if self._death is not None and not self._is_over.wait(_DESPAIR_S):
                say(f"kvray: {self._last_words(self._breakdown())}")
                if self._reaper is not None:
                    self._reaper.keep_logs()
                os._exit(SweepError.exit_code)

    def _prepare_last_words(self) -> None:
        """Have them said if Ray's C++ ends this process at once."""
        if self._reaper is not None:
            self._reaper.leave_last_words(self._last_words(SweepError(f"Ray broke down: {_REASON}.")), reason=_REASON)

    def _connect(self) -> None:
        import ray

        if ray.is_initialized():
            self._is_ours = False
            return
        self._auth_mode = os.environ.get("RAY_AUTH_MODE")
        logging.getLogger("ray").setLevel(logging.ERROR)
        mute_handlers_of_ray()
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        folder = None if self._address else _ray_folder()
        self._reaper = DriverReaper(self._scratch, ray_folder=folder, standard_error=own_descriptor())
        if self._address:
            answered = prepare_to_join(self._address)
            if answered is not None:
                warn_of_open_cluster(answered)
            with only_imports_from(self._imports) as imports, _own_sigterm():
                ray.init(address=self._address, **imports, **quiet)
            self._liveness = ClusterServers(cluster_servers())
        else:
            # "local" never joins another cluster, whatever files an earlier Ray has left behind. Workers run at nice
            # 15 by default; a measurement must not lose to every other process on the machine.
            with (
                only_imports_from(self._imports) as imports,
                loopback_ray() as loopback,
                lean_ray(),
                token_of_its_own(),
                _group_of_its_own(),
                _own_sigterm(),
            ):
                ray.init(
                    address="local",
                    num_cpus=available_cpus(),
                    _system_config=dict(_PRIVATE_RAY),
                    _temp_dir=str(folder),
                    **imports,
                    **loopback,
                    **quiet,
                )
            self._session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
            check_loopback()
            self._liveness = OwnServers()
        check_imports(self._imports)


def _address_hint(address: str) -> str:
    """What to do where no Ray answers at `address`."""
    if address == "auto":
        return "Start Ray on this machine with ray start --head, or name a cluster: --address HOST:6379."
    if "://" not in address and not address.rpartition(":")[2].isdecimal():
        return f"An address has a port, 6379 unless ray start was given another: --address {address}:6379."
    return "ray status, run on the cluster's head, shows whether Ray runs there; ray start has said its address."


@contextmanager
def _group_of_its_own() -> Iterator[None]:
    """Ray's servers leave this program's process group: a signal to all of it, from a terminal that is closed, a batch
    system or `timeout`, must not end them under a sweep that has yet to be written up."""
    from ray._private import services

    class OwnGroup(services.ConsolePopen):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options, process_group=0)

    plain = services.ConsolePopen
    services.ConsolePopen = OwnGroup
    try:
        yield
    finally:
        services.ConsolePopen = plain


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray's C++ takes SIGTERM, below Python's handler, prints its stack and ends the process. What this program has
    set, or the kernel's default, is put back by sigaction(2): Python sets handlers in its main thread only."""
    before = ctypes.create_string_buffer(512)  # a struct sigaction, larger than any system's
    libc = ctypes.CDLL(None)
    libc.sigaction(signal.SIGTERM, None, before)
    try:
        yield
    finally:
        libc.sigaction(signal.SIGTERM, before, None)


def _ray_folder() -> Path:
    """Where a private Ray has its sockets: below `RAY_TMPDIR` or `TMPDIR` as Ray itself would have it, unless a
    socket's path there would be longer than the kernel allows, or not in ASCII, which Ray does not take."""
    chosen = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).absolute()
    fits = str(chosen).isascii() and len(str(chosen)) <= _LONGEST_FOLDER
    return (chosen if fits else Path("/tmp")) / "ray"


def living_nodes() -> dict[str, Mapping[str, float]]:
    """What each machine of the connected Ray has, by its id, of those that are alive now."""
    import ray

    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
