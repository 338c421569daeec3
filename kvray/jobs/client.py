"""`JobServer`: Ray's job server, spoken to over HTTP with its users' token. No other module here knows Ray."""

from __future__ import annotations

import asyncio
import enum
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kvray.environment import changed_environment
from kvray.errors import InvalidValueError, SweepError, sentence_of
from kvray.extras import Extra, pip_command
from kvray.jobs.troubles import NO_AGENT, NoAgentError, lost_connection, once_there_is_an_agent, unreachable
from kvray.sweep.joining import token_problem
from kvray.sweep.quiet import mute_handlers_of_ray

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
STOP_WAIT_S = 600
"""Ray kills a stopped job after this time; it needs some seconds to write up what was measured."""
_OWN = "kvray"
_COMMAND = "kvray_command"
_OPTIONS = "kvray_options"
_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_KNOCK_S = 10.0
_ANSWER_S = 300.0
_RECONNECTS = 8
"""With a pause that grows by a second each time: about half a minute, in which a head can be started anew."""
_UPLOAD_LIMIT = 512 * 2**20
_LIMIT_VARIABLE = "RAY_max_grpc_message_size"


class JobState(enum.StrEnum):
    """How a job stands, in Ray's words."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    @property
    def is_over(self) -> bool:
        """Whether nothing of it runs any more."""
        return self not in (JobState.PENDING, JobState.RUNNING)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job of the cluster. Times in seconds since 1970; `command` is what follows `kvray submit OPTIONS`."""

    job_id: str
    state: JobState
    command: str
    options: str = ""
    started: float | None
    ended: float | None
    exit_code: int | None
    message: str
    node: str | None


def job_server_address(given: str | None) -> str:
    """The HTTP address that `--address`, or Ray's own variables, name.

    Raises:
        InvalidValueError: it is no HTTP address.
    """
    source, address = "--address", given
    for name in _ADDRESSES:
        if not address and os.environ.get(name):
            source, address = name, os.environ[name]
    address = (address or DEFAULT_ADDRESS).rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise InvalidValueError(
            f"{source} {address!r} is not the address of a job server.",
            hint="Give that of the cluster's dashboard: --address http://HEAD:8265.",
        )
    return address


def upload_limit() -> int:
    """Bytes that Ray takes in one package."""
    return int(os.environ.get(_LIMIT_VARIABLE) or _UPLOAD_LIMIT)


class JobServer:
    """A connection to the job server at `address`.

    Raises:
        EngineError: the extra is not installed.
        SweepError: nobody answers, the token is wrong, or the cluster has another version of Ray.
    """

    def __init__(self, address: str) -> None:
        Extra.CLUSTER.require("A remote cluster")
        self.address = address
        import ray

        mute_handlers_of_ray()
        theirs = self._server_version()
        if theirs != ray.__version__:
            raise SweepError(
                f"The cluster at {address} has Ray {theirs}, and this machine has Ray {ray.__version__}.",
                hint=f"Install the cluster's version here: {pip_command(f'ray[default]=={theirs}')}",
            )
        self._client = self._make_client()

    def submit(
        self,
        *,
        entrypoint: str,
        folder: Path,
        command: str = "",
        options: str = "",
        pip: tuple[str, ...] = (),
        node: str | None = None,
    ) -> str:
        """Start `entrypoint` in a copy of `folder`; returns the job's id.

        Args:
            command: what a user typed; empty for a job that `jobs` does not list.
            options: those of `kvray submit` itself that a user must give again to submit the same command.
            pip: requirements that each node installs for this job.
            node: address of the machine to run on; by default the head.
        """
        environment: dict[str, Any] = {
            "working_dir": str(folder),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
        }
        if pip:
            environment["pip"] = list(pip)
        start = partial(
            self._ask,
            self._client.submit_job,
            entrypoint=entrypoint,
            runtime_env=environment,
            metadata={_OWN: "1", _COMMAND: command, _OPTIONS: options} if command else {},
            entrypoint_resources={f"node:{node}": 0.001} if node else None,
        )
        return str(once_there_is_an_agent(start))

    def job(self, job_id: str) -> Job:
        """The job as it stands now."""
        return _job(self._ask(self._client.get_job_info, job_id, job_id=job_id))

    def jobs(self) -> list[Job]:
        """All jobs that kvray has submitted, oldest first."""
        found = [one for one in self._ask(self._client.list_jobs) if _OWN in (one.metadata or {})]
        return sorted(map(_job, found), key=lambda one: one.started or 0.0)

    def log(self, job_id: str) -> str:
        """All that the job has printed."""
        return str(self._ask(self._client.get_job_logs, job_id, job_id=job_id))

    def follow(self, job_id: str) -> Iterator[str]:
        """What the job prints, in pieces, from its first line until it ends. A lost connection is taken up again.

        Raises:
            SweepError: the connection is lost for good.
            InvalidValueError: the cluster does not know the job.
        """
        lost: tuple[type[Exception], ...] = (OSError, RuntimeError, *_client_errors())
        seen, failures = 0, 0
        with asyncio.Runner() as runner:
            while True:
                pieces, skip = self._client.tail_job_logs(job_id), seen
                failure: Exception | None = None
                try:
                    while (piece := runner.run(_next(pieces))) is not None:
                        failures = 0
                        new, skip = piece[skip:], max(0, skip - len(piece))
                        seen += len(new)
                        if new:
                            yield new
                except lost as error:
                    failure = error
                try:
                    if self.job(job_id).state.is_over and failure is None:
                        return
                except SweepError as error:
                    failure = error
                failures += failure is not None
                if failure is not None and failures > _RECONNECTS:
                    raise lost_connection(self.address, job_id, failure) from failure
                time.sleep(max(1, failures))

    def stop(self, job_id: str) -> bool:
        """Ask the job to end; returns whether it was running. It ends some seconds later."""
        return bool(self._ask(self._client.stop_job, job_id, job_id=job_id))

    def wait(self, job_id: str, *, within_s: float) -> Job:
        """The job when it has ended, or as it stands after `within_s`."""
        deadline = time.monotonic() + within_s
        while not (job := self.job(job_id)).state.is_over and time.monotonic() < deadline:
            time.sleep(0.5)
        return job

    def _server_version(self) -> str:
        import requests

        try:
            with self._token_told():
                answer = self._version_answer()
                if answer.status_code in (401, 403):
                    _send_token()
                    answer = self._version_answer()
        except requests.exceptions.RequestException as error:
            raise unreachable(self.address, error) from error
        if answer.status_code in (401, 403):
            raise self._token_problem()
        try:
            return str(answer.json()["ray_version"])
        except (ValueError, KeyError, TypeError):
            raise SweepError(
                f"What answers at {self.address} is not a Ray job server.",
                hint="Give the address of the dashboard (port 8265), and install ray[default] on the cluster's head.",
            ) from None

    def _version_answer(self) -> Any:
        import requests
        from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

        return requests.get(
            f"{self.address}/api/version", headers=get_auth_headers_if_auth_enabled({}), timeout=_KNOCK_S
        )

    @contextmanager
    def _token_told(self) -> Iterator[None]:
        """Where Ray finds no token, or one that the server does not accept, says which setting is wrong."""
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError:
            raise self._token_problem() from None

    def _token_problem(self) -> SweepError:
        return token_problem(f"The job server at {self.address} cannot be used")

    def _make_client(self) -> Any:
        import requests
        from ray.job_submission import JobSubmissionClient

        class Client(JobSubmissionClient):
            def _do_request(self, *arguments: Any, **options: Any) -> Any:
                return super()._do_request(*arguments, **{"timeout": (_KNOCK_S, _ANSWER_S), **options})

        try:
            # The variables would go before the address that is given.
            with self._token_told(), changed_environment(dict.fromkeys(_ADDRESSES)):
                return Client(self.address)
        except (requests.exceptions.RequestException, OSError, RuntimeError) as error:
            raise unreachable(self.address, error) from error

    def _ask(self, method: Any, *arguments: Any, **options: Any) -> Any:
        import requests

        about = options.pop("job_id", None)
        try:
            with self._token_told():
                return method(*arguments, **options)
        except (requests.exceptions.RequestException, ConnectionError) as error:
            raise unreachable(self.address, error) from error
        except (RuntimeError, ValueError) as error:
            if about is not None and "does not exist" in str(error):
                raise InvalidValueError(
                    f"The cluster at {self.address} has no job {about!r}.", hint="kvray jobs list shows those it has."
                ) from None
            if NO_AGENT in str(error):
                raise NoAgentError(self.address) from error
            raise SweepError(f"The job server at {self.address} refuses: {sentence_of(error)}") from error


def _send_token() -> None:
    """Have Ray send the token that this user has, if it has one."""
    from ray._private.authentication import authentication_token_setup as setup

    setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _client_errors() -> tuple[type[Exception], ...]:
    import aiohttp

    return (aiohttp.ClientError,)


async def _next(pieces: Any) -> str | None:
    try:
        return str(await anext(pieces))
    except StopAsyncIteration:
        return None


def _job(details: Any) -> Job:
    metadata: Mapping[str, str] = details.metadata or {}
    host = (details.driver_agent_http_address or "").removeprefix("http://").rpartition(":")[0].strip("[]")
    return Job(
        job_id=details.submission_id or details.job_id,
        state=JobState(str(details.status.value)),
        command=metadata.get(_COMMAND, details.entrypoint),
        options=metadata.get(_OPTIONS, ""),
        started=_seconds(details.start_time),
        ended=_seconds(details.end_time),
        exit_code=details.driver_exit_code,
        message=details.message or "",
        node=host or None,
    )


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None
