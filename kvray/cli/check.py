"""`kvray check`: did it become slower, larger or worse than the baseline?"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from kvray.analysis.comparison import Verdict
from kvray.check.against import parse_against
from kvray.check.check import RegressionCheck
from kvray.check.config import BUDGET_S, CheckConfig, Consent
from kvray.check.ending import error_of_check
from kvray.check.outputs import wording
from kvray.check.outputs.terminal import render_terminal
from kvray.check.result import CheckResult
from kvray.cli import options
from kvray.cli.check_files import CheckFiles
from kvray.cli.interrupts import patient_interrupts
from kvray.cli.parsing import parse_duration
from kvray.cli.verdict_options import Margin, OnInconclusiveText, counts_as, given_margins

app = typer.Typer(add_completion=False)


@app.command()
@options.with_groups
def check(
    baseline: Annotated[
        str, typer.Argument(help="A plan, a results folder (FOLDER or FOLDER#RUN_ID), or a check.json.")
    ],
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="python=PATH|env=FILE",
            help="Measure here (A) and there (B) in turn, and judge B: another environment's Python, other variables.",
        ),
    ] = None,
    candidates: Annotated[
        str | None, typer.Option(metavar="FILE", help="Check these candidates in place of the winner.")
    ] = None,
    all_ranked: Annotated[bool, typer.Option("--all-ranked", help="Check all that the baseline ranks.")] = False,
    margin: Margin = None,
    budget: Annotated[str, typer.Option(metavar="TIME", help="For all rounds together: 90s, 20m.")] = "10m",
    on_inconclusive: OnInconclusiveText = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FOLDER", help="For records and check.json; a folder or URI.")
    ] = "./kvray_check",
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Where check.json goes instead.", rich_help_panel=options.FILES),
    ] = None,
    wait_quiet: Annotated[
        str | None,
        typer.Option(metavar="[TIME]", help="Wait up to 10m, or so long, for a quiet machine."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="S", help="Seconds that one phase of a trial may take.", min=1)
    ] = 600.0,
    offline: options.Offline = False,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    *,
    files: CheckFiles,
) -> None:
    """Measure again what a baseline measured, and say whether it became worse: PASS, FAIL or INCONCLUSIVE.

    Without --against the machine must be the one that measured the baseline.

    Exit code 0: PASS. 1: FAIL. 14: INCONCLUSIVE, neither could be shown.
    """
    mapped = counts_as(on_inconclusive)
    files.check_places(json_file=json_file)
    config = CheckConfig(
        baseline=baseline,
        against=parse_against(against) if against else None,
        candidates=candidates,
        all_ranked=all_ranked,
        margins=given_margins(margin),
        budget_s=parse_duration(budget, option="--budget") or BUDGET_S,
        output_dir=output,
        json_file=json_file,
        wait_quiet_s=parse_duration(wait_quiet, option="--wait-quiet") or 0.0,
        timeout_s=timeout,
        consent=Consent(trust_remote_code=trust_remote_code, allow_pickle=allow_pickle, offline=offline),
    )
    one = RegressionCheck(config, on_round=_RoundLines().tell)
    with patient_interrupts(lambda: f"Left at once. What was measured is in {output}."):
        result = one.run()
    Console().print(render_terminal(result))
    typer.echo(f"result: {config.check_file}")
    file_error = files.write(result, on_inconclusive=mapped)
    if (unwritten := one.unwritten or file_error) is not None:
        raise unwritten
    if error := error_of_check(result, on_inconclusive=mapped):
        raise error


class _RoundLines:
    """A line on stderr after the first round, then every `_BETWEEN_S`, and with the last verdict."""

    _BETWEEN_S = 5.0

    def __init__(self) -> None:
        self._told_s = -self._BETWEEN_S

    def tell(self, result: CheckResult) -> None:
        """Say how it stands, if it is time."""
        is_open = any(one.verdict is Verdict.INCONCLUSIVE for one in result.candidates)
        if is_open and result.seconds - self._told_s < self._BETWEEN_S:
            return
        self._told_s = result.seconds
        typer.echo(f"kvray: {wording.rounds_of_check(result)}, {result.seconds:.0f} s: {_standing(result)}", err=True)


def _standing(result: CheckResult) -> str:
    verdicts = [one.verdict for one in result.candidates]
    metrics = [one for one in result.candidates[0].metrics if one.verdict is not None]
    if len(verdicts) > 1 or not metrics:
        return ", ".join(f"{verdicts.count(one)} {one}" for one in Verdict if one in verdicts)
    return ", ".join(f"{one.metric} {wording.interval_text(one.change)} {one.verdict}" for one in metrics)
