"""`kvray watch`: a plan's winner is measured again and again, and somebody is told when it has become worse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from kvray.check.config import Consent
from kvray.check.watch.config import WatchConfig, WhenBusy
from kvray.check.watch.events import Observation, Sink, WatchIdentity
from kvray.check.watch.loop import Watch
from kvray.check.watch.sinks.asked import AskedSinks, open_sinks
from kvray.check.watch.states import CONFIRMING, PROCESSES
from kvray.cli import options
from kvray.cli.interrupts import patient_interrupts
from kvray.cli.parsing import parse_duration
from kvray.errors import InvalidValueError, SweepInterruptedError
from kvray.standard_error import say

app = typer.Typer(add_completion=False)
_LEAST_EVERY_S = 60.0
_INTERRUPTED = "Interrupted. The observation that was being measured is lost; the history is whole."
_LOST = "Left at once. The observation that was being measured is lost; the history is whole."


@app.command()
def watch(
    plan: Annotated[str, typer.Argument(help="A plan (best_plan.json), a results folder, or a check.json.")],
    every: Annotated[
        str | None, typer.Option(metavar="TIME", help="From one observation to the next, as 6h; runs until ended.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Observe once and end, for cron and Kubernetes.")] = False,
    output: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of the history; by default watch beside the plan.")
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="KVRAY_WATCH_WEBHOOK",
            show_envvar=False,
            help="Receives alerts as JSON. A secret URL belongs into the variable KVRAY_WATCH_WEBHOOK.",
        ),
    ] = None,
    exec_: Annotated[
        str | None, typer.Option("--exec", metavar="CMD", help="Runs for each alert, with the JSON on its input.")
    ] = None,
    prometheus_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Metrics as text, for node exporter.")
    ] = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Serve metrics to Prometheus, as 127.0.0.1:9199.")
    ] = None,
    busy: Annotated[
        WhenBusy, typer.Option(help="Where others use the machine: wait, then skip; or measure all the same.")
    ] = WhenBusy.WAIT,
    wait_quiet: Annotated[
        str, typer.Option(metavar="[TIME]", help="Wait so long for a quiet machine before it is skipped.")
    ] = "15m",
    processes: Annotated[
        int, typer.Option(metavar="N", help="Fresh processes of each observation.", min=1, max=50)
    ] = PROCESSES,
    confirm: Annotated[
        int, typer.Option(metavar="N", help="Further ones at once, after a suspicion.", min=1, max=100)
    ] = CONFIRMING,
    timeout: Annotated[float, typer.Option(metavar="S", help="Seconds for one phase of a process.", min=1.0)] = 600.0,
    offline: options.Offline = False,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Measure a plan's winner again and again, and tell when it has become worse.

    With --once it ends with exit code 1 while a confirmed regression holds.
    """
    config = WatchConfig(
        plan=plan,
        every_s=_every_s(every, once=once),
        output_dir=output,
        when_busy=busy,
        wait_quiet_s=parse_duration(wait_quiet, option="--wait-quiet") or 0.0,
        processes=processes,
        confirming=confirm,
        timeout_s=timeout,
        consent=Consent(trust_remote_code=trust_remote_code, allow_pickle=allow_pickle, offline=offline),
    )
    asked = AskedSinks(webhook=webhook, command=exec_, prometheus_file=prometheus_file, listen=listen)

    def opened(folder: Path, history: Callable[[], Sequence[Observation]], identity: WatchIdentity) -> Sequence[Sink]:
        return open_sinks(asked, folder=folder, history=history, identity=identity, once=once)

    _run(Watch(config, open_sinks=opened), once=once)


def _run(watch: Watch, *, once: bool) -> None:
    """A signal is the way to end a watch; of a single observation it is an interruption."""
    try:
        with patient_interrupts(lambda: _LOST):
            watch.run()
    except KeyboardInterrupt:
        if once:
            raise SweepInterruptedError(_INTERRUPTED) from None
        say("kvray: The watch has ended.")


def _every_s(every: str | None, *, once: bool) -> float | None:
    if once == (every is not None):
        raise InvalidValueError(
            "kvray watch needs either --every or --once.", hint="Write --every 6h, or --once under cron."
        )
    seconds = parse_duration(every, option="--every")
    if seconds is not None and seconds < _LEAST_EVERY_S:
        raise InvalidValueError(f"--every {every} is too often.", hint="Use 1m or more; 6h is usual.")
    return seconds
