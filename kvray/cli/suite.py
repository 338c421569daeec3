"""`kvray suite`: a small fixed set of models and configurations, for the CI of a library that keeps KV caches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Annotated

import typer
from rich.console import Console

from kvray.candidate import DeviceType
from kvray.check.against import parse_against
from kvray.check.check_file import write_check
from kvray.check.ending import error_of_check
from kvray.check.outputs.terminal import render_terminal
from kvray.check.suite.choosing import Asked, availability
from kvray.check.suite.record import read_record, unfinished_place, write_record
from kvray.check.suite.running import (
    DEFAULT_BUDGET_S,
    DEFAULT_MARGINS,
    DEFAULT_ROUNDS,
    RECORD_MARGINS,
    SuiteAsk,
    check_suite,
    run_suite,
)
from kvray.check.suite.tables import list_table, record_table
from kvray.cli.check_files import CheckFiles, check_place
from kvray.cli.interrupts import patient_interrupts
from kvray.cli.option_groups import grouped
from kvray.cli.options import FILES
from kvray.cli.parsing import parse_duration
from kvray.cli.verdict_options import Margin, OnInconclusiveText, counts_as, parse_margins
from kvray.errors import AllTrialsFailedError, InvalidValueError, SweepInterruptedError
from kvray.tuning.local_device import detect_device

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Check whether a library's change moved speed, memory or outputs."
)
Engine = Annotated[
    str | None, typer.Option("--engine", metavar="LIST", help="Only these engines: transformers,llama_cpp.")
]
Only = Annotated[
    str | None, typer.Option("--only", metavar="LIST", help="Only cases of these names: transformers/gqa/*,*/static.")
]
Quick = Annotated[bool, typer.Option("--quick", help="The reduced set.")]
Device = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="cpu or cuda; by default cuda where there is one.")
]


@app.command()
def run(
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Where the record goes.")
    ] = "suite.json",
    engine: Engine = None,
    only: Only = None,
    quick: Quick = False,
    device: Device = None,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Fresh processes of each case.")] = DEFAULT_ROUNDS,
) -> None:
    """Measure the suite and write a record, to be compared with later."""
    check_place("--output", output)
    with patient_interrupts(lambda: "Left at once. Nothing was written."), _progress() as tell:
        ask = SuiteAsk(cases=_asked(engine, only, quick=quick), device=_device(device), tell=tell)
        record = run_suite(ask, rounds=rounds)
    if record.is_interrupted and not record.cases:
        raise SweepInterruptedError("The suite was interrupted before a case was measured; nothing was written.")
    place = unfinished_place(output) if record.is_interrupted else output
    write_record(record, place)
    Console().print(record_table(record))
    typer.echo(f"record: {place}")
    if record.is_interrupted:
        raise SweepInterruptedError("The suite was interrupted; what it measured is kept, and is no baseline.")
    if not any(case.works for case in record.cases):
        raise AllTrialsFailedError("No case of the suite works here.", hint=f"The reasons are in {output}.")


@app.command()
@grouped([FILES])
def check(
    baseline: Annotated[str | None, typer.Argument(metavar="RECORD", help="What kvray suite run wrote before.")] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="python=PATH|env=FILE",
            help="Measure here (A) and there (B) in turn, and judge B: another environment's Python, other variables.",
        ),
    ] = None,
    engine: Engine = None,
    only: Only = None,
    quick: Quick = False,
    device: Device = None,
    margin: Margin = None,
    outputs_only: Annotated[
        bool, typer.Option("--outputs-only", help="Judge outputs, caches and kernels alone; for any machine.")
    ] = False,
    tolerance: Annotated[
        float | None, typer.Option(metavar="NATS", help="How far log-probabilities may move, in place of each case's.")
    ] = None,
    budget: Annotated[str | None, typer.Option(metavar="TIME", help="No further round after it: 5m.")] = None,
    on_inconclusive: OnInconclusiveText = None,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="The result as JSON.", rich_help_panel=FILES)
    ] = None,
    files: CheckFiles = CheckFiles(),  # noqa: B008  (frozen)
) -> None:
    """Compare the suite now with a record, or another environment with this one: PASS, FAIL or INCONCLUSIVE.

    Exit code 0: PASS. 1: FAIL. 14: INCONCLUSIVE, the budget was spent before either could be shown.
    """
    undecided = counts_as(on_inconclusive)
    files.check_places(json_file=json_file)
    record = None if baseline is None else read_record(baseline)
    usual = DEFAULT_MARGINS if against else RECORD_MARGINS
    with patient_interrupts(lambda: "Left at once. Nothing was written."), _progress() as tell:
        ask = SuiteAsk(
            cases=_asked(engine, only, quick=quick),
            device=_device(device),
            margins={} if outputs_only else parse_margins(margin, otherwise=usual),
            tolerance=_tolerance(tolerance),
            budget_s=parse_duration(budget, option="--budget") or DEFAULT_BUDGET_S,
            tell=tell,
        )
        result = check_suite(ask, record, against=parse_against(against) if against else None, shown=baseline or "")
    Console().print(render_terminal(result))
    if json_file is not None:
        write_check(result, json_file)
    if (unwritten := files.write(result, on_inconclusive=undecided)) is not None:
        raise unwritten
    if error := error_of_check(result, on_inconclusive=undecided):
        raise error


@app.command("list")
def list_(engine: Engine = None, only: Only = None, quick: Quick = False, device: Device = None) -> None:
    """List the cases, and what stands in the way of each on this machine."""
    Console().print(list_table(availability(_asked(engine, only, quick=quick), detect_device(_device(device)))))


def _asked(engine: str | None, only: str | None, *, quick: bool) -> Asked:
    return Asked(engines=_parts(engine), only=_parts(only), quick=quick)


def _parts(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _device(name: str | None) -> DeviceType | None:
    device: DeviceType | None = None if name is None else DeviceType.parse(name)
    return device


def _tolerance(value: float | None) -> float | None:
    if value is not None and not 0 <= value < 1000:
        raise InvalidValueError(f"--tolerance {value:g} is no number of nats.", hint="Write it like 0.001.")
    return value


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """On a terminal a line that says what is measured."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with Console(stderr=True).status("starting") as status:
        yield status.update
