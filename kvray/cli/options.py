"""Options that several commands share, each with its help, and the panels of the help.

A command marked `@with_groups` takes a group of options, such as `JudgingOptions`, as one parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from kvray.cli.option_groups import grouped
from kvray.cli.parsing import (
    parse_memory_limit,
    parse_number_limit,
    parse_rate_limit,
    parse_time_limit,
    parse_weights,
)
from kvray.errors import InvalidValueError
from kvray.judgement import Judging, Objective

LIMITS = "Limits, which must hold in every cell (off lifts one of the profile)"
SPACE = "Which configurations"
MACHINE = "Machine and network"
SEARCH = "Search and confirming"
RARE = "Rarely needed"
FILES = "Files for a CI ($GITHUB_STEP_SUMMARY is appended to by itself)"
PANELS = (LIMITS, SPACE, MACHINE, SEARCH, FILES, RARE)
with_groups = grouped(PANELS)

Model = Annotated[
    str, typer.Argument(help="A hub id, a local folder, a .gguf file, or random:<folder or config.json>.")
]
Results = Annotated[str, typer.Argument(help="Results folder or URI.")]
RunId = Annotated[str | None, typer.Option("--run", metavar="ID", help="Id of the sweep; by default the newest.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Output = Annotated[str, typer.Option("--output", "-o", metavar="FOLDER", help="Results folder or URI (s3://…).")]

EnginePython = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-python", metavar="NAME=PATH", help="One engine's own Python environment.", rich_help_panel=RARE
    ),
]

Profile = Annotated[
    str,
    typer.Option("--profile", "-p", metavar="NAME", help="Workload: a built-in one, or a profile's .json file."),
]
Context = Annotated[str | None, typer.Option(metavar="LIST", help="Prompt lengths in tokens: 512,2048.")]
OutputLen = Annotated[str | None, typer.Option(metavar="LIST", help="Numbers of generated tokens: 64,256.")]
BatchSizes = Annotated[
    str | None, typer.Option(metavar="LIST", help="Sequences generated together: 1,4.", rich_help_panel=RARE)
]
Cache = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Caches (kvray info): static,'sliding_window(window=1024)'.",
        rich_help_panel=SPACE,
    ),
]
Attention = Annotated[
    str | None,
    typer.Option(metavar="LIST", help="Attention kernels (kvray info): sdpa,flash_attention_2.", rich_help_panel=SPACE),
]
Compile = Annotated[
    str | None,
    typer.Option(
        "--compile", metavar="LIST", help="torch.compile modes (kvray info): off,default.", rich_help_panel=SPACE
    ),
]
PrefillChunk = Annotated[
    str | None,
    typer.Option(metavar="LIST", help="Prompt tokens worked on at once: none,512; none: all.", rich_help_panel=RARE),
]
WeightsLimit = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="MiB of weights on the GPU; the rest stays in host memory: none,8000.",
        rich_help_panel=RARE,
    ),
]
Parallelism = Annotated[
    str | None,
    typer.Option(metavar="LIST", help="Over GPUs: single,device_map=2,tp=2.", rich_help_panel=SPACE),
]
StaticLen = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Tokens that static caches hold, instead of the cell's.", min=1, rich_help_panel=RARE
    ),
]
Space = Annotated[
    str, typer.Option(metavar="NAME", help="default, full, or a YAML file of blocks.", rich_help_panel=SPACE)
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=LIST", help="Further axes (kvray info): prefill_chunk=512.", rich_help_panel=SPACE
    ),
]
Dtype = Annotated[
    str | None, typer.Option(metavar="LIST", help="Dtypes (kvray info): float16,bfloat16.", rich_help_panel=SPACE)
]
Device = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="cpu or cuda; by default cuda where there is one.", rich_help_panel=MACHINE),
]
Engine = Annotated[
    str, typer.Option(metavar="LIST", help="Inference engines: transformers,llama_cpp.", rich_help_panel=SPACE)
]
ModelFor = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=FILE", help="One engine's own file of the model.", rich_help_panel=SPACE),
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Use no network, only what is on this machine.", rich_help_panel=MACHINE)
]
Exclusive = Annotated[
    bool,
    typer.Option("--exclusive", help="One trial at a time on each machine.", rich_help_panel=MACHINE),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings.", rich_help_panel=MACHINE)
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle", help="Accept pickled weights where there are no safetensors.", rich_help_panel=MACHINE
    ),
]


@dataclass(frozen=True, kw_only=True)
class JudgingOptions:
    """What counts, and which limits must hold."""

    objective: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"What counts most: {', '.join(Objective)}.")
    ] = None
    max_ttft: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Time to the first token at most: 400ms or 0.4s.", rich_help_panel=LIMITS),
    ] = None
    max_itl: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="95th percentile of the time between two tokens: 50ms.", rich_help_panel=LIMITS
        ),
    ] = None
    min_throughput: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            help="Throughput in decoding at least, all sequences together: 30tok/s.",
            rich_help_panel=LIMITS,
        ),
    ] = None
    max_vram: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory needed at most: 8GiB or 8GB; on a CPU, of the process.", rich_help_panel=LIMITS
        ),
    ] = None
    max_quality_loss: Annotated[
        str | None,
        typer.Option(
            metavar="KL",
            help="How far the output may be from the model's own, nats per token: 0.05.",
            rich_help_panel=LIMITS,
        ),
    ] = None
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Weights of the score: ttft=0.5,throughput=0.3,memory=0.2.", rich_help_panel=RARE
        ),
    ] = None

    def judging(self) -> Judging:
        """What the options say.

        Raises:
            InvalidValueError: one has a value that is not allowed, or objective and weights are both given.
        """
        if self.objective is not None and self.weights is not None:
            raise InvalidValueError(
                "--objective and --weights exclude each other.", hint="An objective is a name for three weights."
            )
        limits = {
            "max_ttft_ms": (self.max_ttft, "--max-ttft", parse_time_limit),
            "max_itl_ms": (self.max_itl, "--max-itl", parse_time_limit),
            "min_decode_tok_s": (self.min_throughput, "--min-throughput", parse_rate_limit),
            "max_peak_mib": (self.max_vram, "--max-vram", parse_memory_limit),
            "max_quality_loss": (self.max_quality_loss, "--max-quality-loss", parse_number_limit),
        }
        return Judging(
            weights=parse_weights(self.weights) if self.objective is None else Objective.parse(self.objective).weights,
            limits={
                name: parse(text, option=option) for name, (text, option, parse) in limits.items() if text is not None
            },
        )
