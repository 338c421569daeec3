"""`kvray tune`: the main command."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console

from kvray.candidate import AttentionBackend, CacheStrategy, CompileMode, DeviceType, DType
from kvray.cli import options
from kvray.cli.interrupts import patient_interrupts
from kvray.cli.output import print_report, summary
from kvray.cli.parsing import (
    parse_assignments,
    parse_attentions,
    parse_caches,
    parse_choices,
    parse_duration,
    parse_integers,
    parse_optional_integers,
    parse_retry,
    parse_settings,
)
from kvray.cli.preview import print_preview
from kvray.cli.progress import LineProgress, LiveProgress
from kvray.config import CONFIRM_ROUNDS, DEFAULT_SPACE, SearchStrategy, TuneConfig
from kvray.tuning.outcome import no_winner
from kvray.tuning.search import TuningSearch
from kvray.workload import get_profile, override_profile

app = typer.Typer(add_completion=False)

_ATTENTIONS = [one.value for one in AttentionBackend if one is not AttentionBackend.HUB_KERNEL]
_SEARCH = "Search and confirming"


@app.command()
def tune(
    model: options.Model,
    profile: options.Profile = "chat-agent",
    context: options.Context = None,
    output_len: options.OutputLen = None,
    objective: options.ObjectiveName = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Time for search and confirming: 90s, 20m or 1.5h.")
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FOLDER", help="Results folder or URI (s3://…).")
    ] = "./kvray_results",
    resume: Annotated[
        str | None, typer.Option(metavar="ID", help="Go on with this sweep of the results folder.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show candidates, rejections and cells; start nothing.")
    ] = False,
    as_json: options.AsJson = False,
    max_ttft: options.MaxTtft = None,
    max_itl: options.MaxItl = None,
    min_throughput: options.MinThroughput = None,
    max_vram: options.MaxVram = None,
    max_quality_loss: options.MaxQualityLoss = None,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help=f"Caches: {', '.join(CacheStrategy)}; with settings: 'sliding_window(window=1024)'.",
            rich_help_panel=options.SPACE,
        ),
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help=f"Attention: {', '.join(_ATTENTIONS)}, or a hub kernel.",
            rich_help_panel=options.SPACE,
        ),
    ] = None,
    dtype: options.Dtype = None,
    compile_: Annotated[
        str | None,
        typer.Option(
            "--compile",
            metavar="LIST",
            help=f"torch.compile modes: {', '.join(CompileMode)}.",
            rich_help_panel=options.SPACE,
        ),
    ] = None,
    settings: options.Settings = None,
    space: options.Space = DEFAULT_SPACE,
    candidates: options.Candidates = None,
    device: options.Device = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="A running Ray cluster; auto finds it.", rich_help_panel=options.MACHINE
        ),
    ] = None,
    slots: Annotated[
        int | None, typer.Option(metavar="N", help="Trials at the same time.", min=1, rich_help_panel=options.MACHINE)
    ] = None,
    wait_quiet: Annotated[
        str | None,
        typer.Option(
            metavar="[TIME]",
            help="Wait up to 10m, or so long, until no other program keeps the device busy.",
            rich_help_panel=options.MACHINE,
        ),
    ] = None,
    offline: options.Offline = False,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    search: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="model: launch what may win; grid: measure all; asha: launch all, stop the poor; optuna.",
            rich_help_panel=_SEARCH,
        ),
    ] = SearchStrategy.MODEL,
    max_trials: Annotated[
        int | None,
        typer.Option(metavar="N", help="Launches of the search at most.", min=1, rich_help_panel=_SEARCH),
    ] = None,
    confirm: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Rounds at most in which winner, rivals and baseline run again; 0: none.",
            min=0,
            rich_help_panel=_SEARCH,
        ),
    ] = CONFIRM_ROUNDS,
    seed: Annotated[
        int,
        typer.Option(metavar="N", help="Seed of the search and of the confidence.", min=0, rich_help_panel=_SEARCH),
    ] = 0,
    retry: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="With --resume: measure again what failed so, or was disturbed: oom,crashed,disturbed.",
            rich_help_panel=options.RARE,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="With --resume on another machine, software, model or workload: measure all anew beside it.",
            rich_help_panel=options.RARE,
        ),
    ] = False,
    weights: options.WeightsText = None,
    batch_sizes: options.BatchSizes = None,
    repeats: Annotated[
        int | None, typer.Option(metavar="N", help="Runs of each cell.", min=1, rich_help_panel=options.RARE)
    ] = None,
    prefill_chunk: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Prompt tokens worked on at once: none,512; none: all.",
            rich_help_panel=options.RARE,
        ),
    ] = None,
    weights_limit: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="MiB of weights on the GPU, the rest in host memory: none,8000.",
            rich_help_panel=options.RARE,
        ),
    ] = None,
    static_len: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Tokens that static caches hold, instead of the cell's.",
            min=1,
            rich_help_panel=options.RARE,
        ),
    ] = None,
    no_forecast: Annotated[
        bool,
        typer.Option(
            "--no-forecast",
            help="Launch also what cannot fit into memory by forecast.",
            rich_help_panel=options.RARE,
        ),
    ] = False,
    timeout: Annotated[
        float,
        typer.Option(
            metavar="S", help="Seconds that one phase of a trial may take.", min=1.0, rich_help_panel=options.RARE
        ),
    ] = 600.0,
    no_check_snippet: Annotated[
        bool,
        typer.Option(
            "--no-check-snippet",
            help="Do not run the winner's code once before it is handed over.",
            rich_help_panel=options.RARE,
        ),
    ] = False,
    engine: options.Engine = "transformers",
    engine_python: options.EnginePythons = None,
) -> None:
    """Measure a model's KV-cache configurations, each in a fresh process, and decide.

    Leaves Parquet records, a plan, a code snippet and reports in the results folder.
    """
    retried, retry_disturbed = parse_retry(retry, option="--retry")
    config = TuneConfig(
        model_id=model,
        profile=override_profile(
            get_profile(profile),
            context_lengths=parse_integers(context, option="--context"),
            output_lengths=parse_integers(output_len, option="--output-len"),
            batch_sizes=parse_integers(batch_sizes, option="--batch-sizes"),
            repeats=repeats,
            judging=options.judging_of(
                objective=objective,
                weights=weights,
                max_ttft=max_ttft,
                max_itl=max_itl,
                min_throughput=min_throughput,
                max_vram=max_vram,
                max_quality_loss=max_quality_loss,
            ),
        ),
        device=None if device is None else DeviceType.parse(device),
        engine=engine,
        engine_pythons=parse_assignments(engine_python or (), option="--engine-python"),
        output_dir=output,
        space=space,
        candidates=candidates,
        caches=parse_caches(cache),
        attentions=parse_attentions(attention),
        dtypes=parse_choices(dtype, DType),
        compiles=parse_choices(compile_, CompileMode),
        settings=parse_settings(
            settings or (),
            option="--set",
            prefill_chunk=parse_optional_integers(prefill_chunk, option="--prefill-chunk"),
            weights_limit_mib=parse_optional_integers(weights_limit, option="--weights-limit"),
        ),
        static_len=static_len,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        offline=offline,
        address=address,
        slots=slots,
        timeout_s=timeout,
        resume=resume,
        retry=retried,
        retry_disturbed=retry_disturbed,
        wait_quiet_s=parse_duration(wait_quiet, option="--wait-quiet") or 0.0,
        force=force,
        search=SearchStrategy.parse(search),
        budget_s=parse_duration(budget, option="--budget"),
        max_trials=max_trials,
        confirm_rounds=confirm,
        seed=seed,
        check_snippet=not no_check_snippet,
        forecast=not no_forecast,
    )
    if dry_run:
        print_preview(TuningSearch(config=config).preview(), config, as_json=as_json)
        return
    _tune(config, as_json=as_json)


def _tune(config: TuneConfig, *, as_json: bool) -> None:
    started = time.monotonic()
    with _progress() as progress:
        search = TuningSearch(config=config, observer=progress, arguments=_typed_arguments())
        with patient_interrupts(lambda: str(search.interrupted())):
            result = search.outcome()
    if as_json:
        typer.echo(json.dumps(summary(result, wall_s=time.monotonic() - started), indent=2))
    else:
        print_report(result)
    if not result.analysis.ranking.entries:
        raise no_winner(result)


@contextlib.contextmanager
def _progress() -> Iterator[LineProgress | LiveProgress]:
    console = Console(stderr=True)
    with LiveProgress(console) if console.is_terminal else LineProgress(console) as progress:
        yield progress


def _typed_arguments() -> tuple[str, ...]:
    """What follows `kvray tune` on the command line."""
    arguments = sys.argv[1:]
    return tuple(arguments[arguments.index("tune") + 1 :]) if "tune" in arguments else ()
