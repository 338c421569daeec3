"""The options of a sweep: each of them changes the configuration, and groups of them become a command's parameters."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import pytest
import typer

from kvray.cli.option_groups import grouped
from kvray.cli.options import JudgingOptions
from kvray.cli.sweep_options import (
    LoadingOptions,
    MachineOptions,
    ResumeOptions,
    SearchOptions,
    SpaceOptions,
    SweepOptions,
    WorkloadOptions,
    tune_config,
)
from kvray.cli.tune import app
from kvray.config import TuneConfig
from kvray.errors import InvalidValueError

GIVEN: dict[str, Any] = {
    "profile": "rag",
    "context": "77",
    "output_len": "7",
    "batch_sizes": "5",
    "repeats": 9,
    "objective": "latency",
    "max_ttft": "1s",
    "max_itl": "9ms",
    "min_throughput": "3",
    "max_vram": "8GiB",
    "max_quality_loss": "0.5",
    "weights": "ttft=0,throughput=1,memory=0",
    "cache": "static",
    "attention": "eager",
    "dtype": "float16",
    "compile": "default",
    "parallelism": "tp=2",
    "settings": ["tile=3"],
    "space": "full",
    "candidates": "plan.json",
    "prefill_chunk": "512",
    "weights_limit": "800",
    "static_len": 99,
    "no_forecast": True,
    "device": "cpu",
    "address": "auto",
    "gpu_type": "A100",
    "slots": 2,
    "exclusive": True,
    "wait_quiet": "1m",
    "offline": True,
    "trust_remote_code": True,
    "allow_pickle": True,
    "timeout": 5.0,
    "engine": "fake",
    "engine_python": ["fake=/a/python"],
    "model_for": ["transformers=model.gguf"],
    "budget": "20m",
    "search": "grid",
    "max_trials": 4,
    "confirm": 0,
    "seed": 3,
    "no_check_snippet": True,
    "output": "elsewhere",
    "resume": "20260101-000000-abcd",
    "retry": "oom",
    "force": True,
}


NEEDED = {"retry": ("resume",), "force": ("resume",), "gpu_type": ("address",)}
"""Options that cannot be given alone."""


def configured(**given: Any) -> TuneConfig:
    """The configuration when only these options are given."""

    def group(kind: Any) -> Any:
        return kind(**{one.name: given[one.name] for one in dataclasses.fields(kind) if one.name in given})

    sweep = SweepOptions(
        workload=group(WorkloadOptions),
        judging=group(JudgingOptions),
        search=group(SearchOptions),
        space=group(SpaceOptions),
        loading=group(LoadingOptions),
        machine=group(MachineOptions),
        **{name: given[name] for name in ("output",) if name in given},
    )
    return tune_config("org/m", sweep, group(ResumeOptions))


@pytest.mark.parametrize("name", GIVEN)
def test_every_option_changes_the_configuration(name: str) -> None:
    needed = NEEDED.get(name, ())
    before = {one: GIVEN[one] for one in needed}
    assert configured(**before, **{name: GIVEN[name]}) != configured(**before)


def test_the_table_above_names_every_option_of_a_sweep() -> None:
    options = {one.name for one in typer.main.get_command(app).params}
    assert options - {"model", "dry_run", "as_json", "help"} == set(GIVEN)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    rare: Annotated[int, typer.Option(rich_help_panel="Rare")] = 1
    often: Annotated[int, typer.Option()] = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner
    last: Annotated[int, typer.Option(rich_help_panel="Second")] = 3


def test_a_group_becomes_options_that_are_sorted_by_panel_and_comes_back_whole() -> None:
    called: list[object] = []

    def command(outer: Outer, name: Annotated[str, typer.Option()] = "x") -> None:
        called.append((outer, name))

    app = typer.Typer(add_completion=False)
    app.command()(grouped(("Second", "Rare"))(command))
    made = typer.main.get_command(app)
    assert [one.name for one in made.params if one.name != "help"] == ["often", "name", "last", "rare"]
    made.main(["--rare", "7", "--name", "y"], standalone_mode=False)
    assert called == [(Outer(inner=Inner(rare=7)), "y")]


def test_a_file_of_models_is_sent_to_the_command_for_it() -> None:
    with pytest.raises(InvalidValueError, match="is a YAML file, not a model") as raised:
        tune_config("models.yaml", SweepOptions())
    assert "kvray batch models.yaml" in str(raised.value)
