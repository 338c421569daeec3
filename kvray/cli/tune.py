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
from kvray.cli.interrupts import patient_interrupts
from kvray.cli.output import print_report, summary
from kvray.cli.parsing import (
    parse_attentions,
    parse_caches,
    parse_choices,
    parse_duration,
    parse_failures,
    parse_integers,
    parse_limit,
    parse_memory_limit,
    parse_optional_integers,
)
from kvray.cli.preview import print_preview
from kvray.cli.progress import LineProgress, LiveProgress
from kvray.config import CONFIRM_ROUNDS, DEFAULT_SPACE, SearchStrategy, TuneConfig
from kvray.record import TrialStatus
from kvray.search import TuningSearch
from kvray.workload import Objective, get_profile, override_profile

app = typer.Typer(add_completion=False)

_WHAT = "What to measure"
_AXES = "Which configurations"
_SEARCH = "How to search"
_LIMITS = "What it must keep, in every cell; off lifts a profile's limit"
_HOW = "How to measure"
_ATTENTIONS = [one.value for one in AttentionBackend if one is not AttentionBackend.HUB_KERNEL]


@app.command()
def tune(
    model: Annotated[
        str,
        typer.Argument(help="A hub id, a local folder, a .gguf file, or random:<folder or config.json>."),
    ],
    profile: Annotated[
        str, typer.Option("--profile", "-p", help="Built-in profile, or a profile's .json file.", rich_help_panel=_WHAT)
    ] = "chat-agent",
    context: Annotated[
        str | None, typer.Option(help="Prompt lengths in tokens, e.g. 512,2048.", rich_help_panel=_WHAT)
    ] = None,
    output_len: Annotated[
        str | None, typer.Option(help="Numbers of generated tokens, e.g. 64,256.", rich_help_panel=_WHAT)
    ] = None,
    batch_sizes: Annotated[
        str | None, typer.Option(help="Sequences generated together, e.g. 1,4.", rich_help_panel=_WHAT)
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="Runs of each cell.", min=1, rich_help_panel=_WHAT)] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help=f"What counts most, instead of the profile's weights: {', '.join(Objective)}.", rich_help_panel=_WHAT
        ),
    ] = None,
    max_ttft: Annotated[
        str | None, typer.Option(help="Most time to the first token, in ms.", rich_help_panel=_LIMITS)
    ] = None,
    max_itl: Annotated[
        str | None,
        typer.Option(help="Most time between two tokens, 95th percentile, in ms.", rich_help_panel=_LIMITS),
    ] = None,
    min_throughput: Annotated[
        str | None,
        typer.Option(help="Least tok/s in decoding, all sequences together.", rich_help_panel=_LIMITS),
    ] = None,
    max_vram: Annotated[
        str | None,
        typer.Option(
            help="Most memory that may be needed, in MiB or like 8GiB; on a CPU, of the process.",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    max_quality_loss: Annotated[
        str | None,
        typer.Option(
            help="Most that a candidate may stray from the model's own output, KL in nats per token.",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    space: Annotated[
        str, typer.Option(help="default, full, or a YAML file with blocks of axes.", rich_help_panel=_AXES)
    ] = DEFAULT_SPACE,
    cache: Annotated[
        str | None,
        typer.Option(
            help=f"Caches: {', '.join(CacheStrategy)}; with settings as in 'sliding_window(window=1024,sinks=4)'.",
            rich_help_panel=_AXES,
        ),
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(help=f"Attention: {', '.join(_ATTENTIONS)}, or a hub kernel's name.", rich_help_panel=_AXES),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help=f"Dtypes: {', '.join(DType)}.", rich_help_panel=_AXES)] = None,
    compile_: Annotated[
        str | None,
        typer.Option("--compile", help=f"torch.compile modes: {', '.join(CompileMode)}.", rich_help_panel=_AXES),
    ] = None,
    prefill_chunk: Annotated[
        str | None,
        typer.Option(help="Prompt tokens worked on at once, e.g. none,512; none: all.", rich_help_panel=_AXES),
    ] = None,
    weights_limit: Annotated[
        str | None,
        typer.Option(
            help="MiB of GPU memory for weights, e.g. none,8000; the rest stays in host memory.", rich_help_panel=_AXES
        ),
    ] = None,
    static_len: Annotated[
        int | None,
        typer.Option(help="Tokens that static caches hold, instead of the cell's.", min=1, rich_help_panel=_AXES),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; by default cuda where there is one.", rich_help_panel=_HOW)
    ] = None,
    engine: Annotated[str, typer.Option(help="Inference engine.", rich_help_panel=_HOW)] = "transformers",
    output: Annotated[
        str, typer.Option("--output", "-o", help="Results folder or URI (s3://…).", rich_help_panel=_HOW)
    ] = "./kvray_results",
    address: Annotated[str | None, typer.Option(help="Address of a running Ray cluster.", rich_help_panel=_HOW)] = None,
    slots: Annotated[int | None, typer.Option(help="Trials at the same time.", min=1, rich_help_panel=_HOW)] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds that one phase of a trial may take.", min=1.0, rich_help_panel=_HOW)
    ] = 600.0,
    resume: Annotated[
        str | None, typer.Option(help="Id of a sweep in the results folder to go on with.", rich_help_panel=_HOW)
    ] = None,
    retry: Annotated[
        str | None,
        typer.Option(
            help=f"With --resume: measure again what failed so: {', '.join(TrialStatus.failures())}.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="With --resume on another machine, software, model or profile: measure all anew beside it.",
            rich_help_panel=_HOW,
        ),
    ] = False,
    search: Annotated[
        str,
        typer.Option(
            help="model: launch what may win; grid: measure all; asha: launch all, stop the poor; optuna.",
            rich_help_panel=_SEARCH,
        ),
    ] = SearchStrategy.MODEL,
    budget: Annotated[
        str | None,
        typer.Option(help="Time for search and confirming, e.g. 90s, 20m, 1.5h.", rich_help_panel=_SEARCH),
    ] = None,
    max_trials: Annotated[
        int | None, typer.Option(help="Launches of the search at most.", min=1, rich_help_panel=_SEARCH)
    ] = None,
    confirm: Annotated[
        int,
        typer.Option(
            help="Rounds at most in which winner, rivals and baseline run again; 0: none.",
            min=0,
            rich_help_panel=_SEARCH,
        ),
    ] = CONFIRM_ROUNDS,
    seed: Annotated[
        int, typer.Option(help="Seed of the search's and the confidence's draws.", min=0, rich_help_panel=_SEARCH)
    ] = 0,
    forecast: Annotated[
        bool,
        typer.Option(
            "--forecast/--no-forecast",
            help="Leave out what cannot fit into memory by forecast, or launch all.",
            rich_help_panel=_SEARCH,
        ),
    ] = True,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings.", rich_help_panel=_HOW)
    ] = False,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle", help="Load pickled weights where there are no safetensors.", rich_help_panel=_HOW
        ),
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use no network, only what is on this machine.", rich_help_panel=_HOW)
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show candidates, rejections and cells; start nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Measure a model's KV-cache configurations, each in a fresh process, and decide.

    Leaves Parquet records, a plan, a code snippet and reports in the results folder.
    """
    config = TuneConfig(
        model_id=model,
        profile=override_profile(
            get_profile(profile),
            context_lengths=parse_integers(context, option="--context"),
            output_lengths=parse_integers(output_len, option="--output-len"),
            batch_sizes=parse_integers(batch_sizes, option="--batch-sizes"),
            repeats=repeats,
            objective=None if objective is None else Objective.parse(objective),
            limits=_limits(max_ttft, max_itl, min_throughput, max_vram, max_quality_loss),
        ),
        device=None if device is None else DeviceType.parse(device),
        engine=engine,
        output_dir=output,
        space=space,
        caches=parse_caches(cache),
        attentions=parse_attentions(attention),
        dtypes=parse_choices(dtype, DType),
        compiles=parse_choices(compile_, CompileMode),
        prefill_chunks=parse_optional_integers(prefill_chunk, option="--prefill-chunk"),
        weights_limits_mib=parse_optional_integers(weights_limit, option="--weights-limit"),
        static_len=static_len,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        offline=offline,
        address=address,
        slots=slots,
        timeout_s=timeout,
        resume=resume,
        retry=parse_failures(retry, option="--retry"),
        force=force,
        search=SearchStrategy.parse(search),
        budget_s=parse_duration(budget, option="--budget"),
        max_trials=max_trials,
        confirm_rounds=confirm,
        seed=seed,
        forecast=forecast,
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
            result = search.run()
    if as_json:
        typer.echo(json.dumps(summary(result, wall_s=time.monotonic() - started), indent=2))
    else:
        print_report(result)


def _limits(
    max_ttft: str | None,
    max_itl: str | None,
    min_throughput: str | None,
    max_vram: str | None,
    max_quality_loss: str | None,
) -> dict[str, float | None]:
    """The limits that were given, by their names in `Limits`; `None` lifts one."""
    limits: dict[str, float | None] = {}
    if max_ttft is not None:
        limits["max_ttft_ms"] = parse_limit(max_ttft, option="--max-ttft", example="400")
    if max_itl is not None:
        limits["max_itl_ms"] = parse_limit(max_itl, option="--max-itl", example="50")
    if min_throughput is not None:
        limits["min_decode_tok_s"] = parse_limit(min_throughput, option="--min-throughput", example="30")
    if max_vram is not None:
        limits["max_peak_mib"] = parse_memory_limit(max_vram, option="--max-vram")
    if max_quality_loss is not None:
        limits["max_quality_loss"] = parse_limit(max_quality_loss, option="--max-quality-loss", example="0.05")
    return limits


@contextlib.contextmanager
def _progress() -> Iterator[LineProgress | LiveProgress]:
    console = Console(stderr=True)
    with LiveProgress(console) if console.is_terminal else LineProgress(console) as progress:
        yield progress


def _typed_arguments() -> tuple[str, ...]:
    """What follows `kvray tune` on the command line."""
    arguments = sys.argv[1:]
    return tuple(arguments[arguments.index("tune") + 1 :]) if "tune" in arguments else ()
