"""What a sweep can be asked on the command line, in groups of options, and the configuration that they come to.

A new option of sweeps is a field of a group here and a line in `tune_config`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Annotated

import typer

from kvray.candidate import CompileMode, DeviceType, DType
from kvray.cli import options
from kvray.cli.options import MACHINE, RARE, SEARCH, SPACE, JudgingOptions
from kvray.cli.parsing import (
    parse_assignments,
    parse_attentions,
    parse_caches,
    parse_choices,
    parse_duration,
    parse_integers,
    parse_optional_integers,
    parse_parallelism,
    parse_retry,
    parse_settings,
)
from kvray.config import CONFIRM_ROUNDS, DEFAULT_SPACE, SearchStrategy, TuneConfig
from kvray.errors import InvalidValueError
from kvray.judgement import Judging
from kvray.workload import WorkloadProfile, get_profile, override_profile


@dataclass(frozen=True, kw_only=True)
class WorkloadOptions:
    """What is generated."""

    profile: options.Profile = "chat-agent"
    context: options.Context = None
    output_len: options.OutputLen = None
    batch_sizes: options.BatchSizes = None

    def profile_of(self, judging: Judging, *, repeats: int | None) -> WorkloadProfile:
        """The profile with what the options change of it.

        Raises:
            InvalidValueError: there is no such profile, or an option has a value that is not allowed.
        """
        return override_profile(
            get_profile(self.profile),
            context_lengths=parse_integers(self.context, option="--context"),
            output_lengths=parse_integers(self.output_len, option="--output-len"),
            batch_sizes=parse_integers(self.batch_sizes, option="--batch-sizes"),
            repeats=repeats,
            judging=judging,
        )


@dataclass(frozen=True, kw_only=True)
class SpaceOptions:
    """Which configurations are candidates."""

    cache: options.Cache = None
    attention: options.Attention = None
    dtype: options.Dtype = None
    compile: options.Compile = None
    parallelism: options.Parallelism = None
    settings: options.Settings = None
    space: options.Space = DEFAULT_SPACE
    candidates: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="JSON: a plan, or a list of candidates or ids.", rich_help_panel=SPACE),
    ] = None
    prefill_chunk: options.PrefillChunk = None
    weights_limit: options.WeightsLimit = None
    static_len: options.StaticLen = None


@dataclass(frozen=True, kw_only=True)
class LoadingOptions:
    """On which kind of device, with which engine, and what the model may bring."""

    device: options.Device = None
    offline: options.Offline = False
    trust_remote_code: options.TrustRemoteCode = False
    allow_pickle: options.AllowPickle = False
    engine: options.Engine = "transformers"
    model_for: options.ModelFor = None


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """Where and under which conditions trials run."""

    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="A running Ray cluster; auto finds it.", rich_help_panel=MACHINE),
    ] = None
    gpu_type: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only on these GPUs of the cluster, as A100.", rich_help_panel=MACHINE),
    ] = None
    slots: Annotated[
        int | None, typer.Option(metavar="N", help="Trials at the same time.", min=1, rich_help_panel=MACHINE)
    ] = None
    exclusive: options.Exclusive = False
    wait_quiet: Annotated[
        str | None,
        typer.Option(
            metavar="[TIME]",
            help="Wait up to 10m, or so long, until no other program keeps the device busy.",
            rich_help_panel=MACHINE,
        ),
    ] = None
    timeout: Annotated[
        float,
        typer.Option(metavar="S", help="Seconds for one phase of a trial.", min=1.0, rich_help_panel=RARE),
    ] = 600.0
    engine_python: options.EnginePython = None


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How the candidates are searched and measured, and for how long."""

    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Time for search and confirming: 90s, 20m or 1.5h.")
    ] = None
    search: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="model: launch what may win; grid: measure all; asha: launch all, stop the poor; optuna.",
            rich_help_panel=SEARCH,
        ),
    ] = SearchStrategy.MODEL
    max_trials: Annotated[
        int | None,
        typer.Option(metavar="N", help="Launches of the search at most.", min=1, rich_help_panel=SEARCH),
    ] = None
    confirm: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Rounds at most in which winner, rivals and baseline run again; 0: none.",
            min=0,
            rich_help_panel=SEARCH,
        ),
    ] = CONFIRM_ROUNDS
    seed: Annotated[
        int, typer.Option(metavar="N", help="Seed of the search and of the confidence.", min=0, rich_help_panel=SEARCH)
    ] = 0
    repeats: Annotated[
        int | None, typer.Option(metavar="N", help="Runs of each cell.", min=1, rich_help_panel=RARE)
    ] = None
    no_forecast: Annotated[
        bool,
        typer.Option("--no-forecast", help="Try also what will not fit by forecast.", rich_help_panel=RARE),
    ] = False
    no_check_snippet: Annotated[
        bool,
        typer.Option(
            "--no-check-snippet",
            help="Do not try the winner's code once.",
            rich_help_panel=RARE,
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class ResumeOptions:
    """Going on with an earlier sweep."""

    resume: Annotated[str | None, typer.Option(metavar="ID", help="Go on with this sweep of the results folder.")] = (
        None
    )
    retry: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="With --resume: measure these again: oom,crashed,disturbed.",
            rich_help_panel=RARE,
        ),
    ] = None
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="With --resume where machine, software, model or workload differ: measure all anew.",
            rich_help_panel=RARE,
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Everything that a sweep can be asked, whatever the model. A command that offers less fills in some groups."""

    workload: WorkloadOptions = field(default_factory=WorkloadOptions)
    judging: JudgingOptions = field(default_factory=JudgingOptions)
    search: SearchOptions = field(default_factory=SearchOptions)
    output: options.Output = "./kvray_results"
    space: SpaceOptions = field(default_factory=SpaceOptions)
    loading: LoadingOptions = field(default_factory=LoadingOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)


def _check_is_a_model(model: str) -> None:
    if PurePath(model).suffix.lower() in (".yaml", ".yml"):
        raise InvalidValueError(
            f"{model!r} is a YAML file, not a model.",
            hint=f"A file of many models is for kvray batch: kvray batch {model}",
        )


def tune_config(model: str, sweep: SweepOptions, resuming: ResumeOptions | None = None) -> TuneConfig:
    """The configuration of a sweep of `model`.

    Raises:
        InvalidValueError: an option has a value that is not allowed, or two exclude each other.
    """
    _check_is_a_model(model)
    space, loading, machine, search = sweep.space, sweep.loading, sweep.machine, sweep.search
    resuming = resuming or ResumeOptions()
    retried, retry_disturbed = parse_retry(resuming.retry, option="--retry")
    return TuneConfig(
        model_id=model,
        models_for=parse_assignments(loading.model_for or (), option="--model-for", only_once=True),
        profile=sweep.workload.profile_of(sweep.judging.judging(), repeats=search.repeats),
        device=None if loading.device is None else DeviceType.parse(loading.device),
        engine=loading.engine,
        engine_pythons=parse_assignments(machine.engine_python or (), option="--engine-python"),
        output_dir=sweep.output,
        space=space.space,
        candidates=space.candidates,
        caches=parse_caches(space.cache),
        attentions=parse_attentions(space.attention),
        dtypes=parse_choices(space.dtype, DType),
        compiles=parse_choices(space.compile, CompileMode),
        settings=parse_settings(
            space.settings or (),
            option="--set",
            prefill_chunk=parse_optional_integers(space.prefill_chunk, option="--prefill-chunk"),
            weights_limit_mib=parse_optional_integers(space.weights_limit, option="--weights-limit"),
        ),
        parallelism=parse_parallelism(space.parallelism),
        static_len=space.static_len,
        trust_remote_code=loading.trust_remote_code,
        allow_pickle=loading.allow_pickle,
        offline=loading.offline,
        address=machine.address,
        gpu_type=machine.gpu_type,
        slots=machine.slots,
        exclusive=machine.exclusive,
        timeout_s=machine.timeout,
        resume=resuming.resume,
        retry=retried,
        retry_disturbed=retry_disturbed,
        wait_quiet_s=parse_duration(machine.wait_quiet, option="--wait-quiet") or 0.0,
        force=resuming.force,
        search=SearchStrategy.parse(search.search),
        budget_s=parse_duration(search.budget, option="--budget"),
        max_trials=search.max_trials,
        confirm_rounds=search.confirm,
        seed=search.seed,
        check_snippet=not search.no_check_snippet,
        forecast=not search.no_forecast,
    )
