"""Whether kvray's numbers are those that a user of plain `model.generate()` gets.

Each candidate is measured by kvray (a trial's own forked process, through the code of a trial) and by
`plain_harness.py` (a plain process that knows Transformers and a clock), two processes each in the order A B B A, and
each pair of neighbours is divided: kvray ÷ plain. The two plain ones, divided by each other, are the control: what
the machine's own unrest makes of two things that are equal. With `--public-tool`, optimum-benchmark measures the
candidates that it can express in the same turn.

What differs in the public tool: it needs Transformers 4.57 (it does not import under 5), so another `generate` runs,
and one that does not know the newer config's rope base (other text, the same arithmetic). Its prompts are random ids;
`min_new_tokens` instead of a disabled end-of-sequence token adds a small logits processor to each token. Its prefill
ends when the first logits are there, kvray's when the first token is on the host; its decode starts there and ends
when `generate` returns. Tokens are counted alike: N - 1 of them are decode.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from output import Figure, make_parser, print_table, write_figures
from overhead import demo_model
from pairs import Pair, Sample, collect, middle

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.config import cache_dir
from kvray.engines.base import ModelRequest
from kvray.engines.hugging_face.model_folder import weights_path
from kvray.engines.transformers import TransformersAdapter
from kvray.record import Role, TrialStatus
from kvray.trial.events import RungFinished
from kvray.trial.process import Launcher, TrialProcess
from kvray.trial.spec import TrialSpec
from kvray.workload import Cell, WorkloadProfile, create_custom_profile

METRICS = {"ttft": "TTFT", "decode": "decode tok/s", "itl": "ITL"}
TOOL = "optimum-benchmark"
TOOL_PACKAGES = ("optimum-benchmark==0.6.0", "transformers==4.57.6", f"torch=={version('torch').partition('+')[0]}")
ROUNDS = (0, 1)
"""Rounds of a block. The second one runs backwards: a steady drift cancels, and both plain processes are neighbours."""
Samples = Mapping[Cell, Sample]
"""What one process measured: TTFT and ITL in ms, decode in tok/s."""
Harness = Callable[[Candidate], Samples]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--blocks", type=int, help="A B B A per candidate, this often (default 2; 1 with --quick)")
    parser.add_argument("--public-tool", action="store_true", help=f"measure with {TOOL} too, in an own environment")
    parser.add_argument(
        "--tool-venv", type=Path, metavar="FOLDER", default=cache_dir() / TOOL, help="that environment, made if need be"
    )
    arguments = parser.parse_args()
    candidates = all_candidates()
    candidates = candidates[:1] + candidates[-1:] if arguments.quick else candidates
    blocks = arguments.blocks or (1 if arguments.quick else 2)
    python = tool_python(arguments.tool_venv) if arguments.public_tool else None
    with tempfile.TemporaryDirectory() as folder:
        harnesses = Harnesses(profile=profile(quick=arguments.quick), scratch=Path(folder), tool_python=python)
        pairs, control, tool = measure(harnesses, candidates, blocks)
    report(pairs, control, tool)
    print(f"\n{harnesses.disturbed_share:.0%} of kvray's runs were disturbed by other programs; quote 0 % only")
    figures = {**summary(pairs), **summary(control, "control_"), **summary(tool, "tool_")}
    lists = {"pairs": pairs, "control_pairs": control, "tool_pairs": tool}
    write_figures(
        arguments.json,
        {
            **figures,
            "candidates": len(candidates),
            "disturbed_share": harnesses.disturbed_share,
            "threads": harnesses.threads,
            "tool": " ".join(TOOL_PACKAGES) if python else None,
            **{name: [pair.figures() for pair in listed] for name, listed in lists.items()},
        },
        quick=arguments.quick,
    )


def all_candidates() -> list[Candidate]:
    """What a user can ask of plain `generate` by name: caches × attentions × dtypes."""
    caches = (CacheStrategy.DYNAMIC, CacheStrategy.STATIC)
    attentions = (AttentionBackend.SDPA, AttentionBackend.EAGER, AttentionBackend.SDPA_MATH)
    return [
        Candidate(engine=TransformersAdapter.name, cache=cache, attention=attention, dtype=dtype)
        for cache, attention, dtype in itertools.product(caches, attentions, (DType.FLOAT32, DType.BFLOAT16))
    ]


def profile(*, quick: bool) -> WorkloadProfile:
    """Two cells."""
    return create_custom_profile(
        "fidelity",
        context_lengths=(64, 128) if quick else (256, 512),
        output_lengths=(16,) if quick else (32,),
        repeats=2 if quick else 3,
        weight_ttft=0.5,
        weight_throughput=0.5,
        weight_memory=0.0,
    )


def measure(
    harnesses: Harnesses, candidates: Sequence[Candidate], blocks: int
) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Pairs kvray ÷ plain, plain ÷ plain, and kvray ÷ public tool. One process at a time."""
    pairs: list[Pair] = []
    control: list[Pair] = []
    tool: list[Pair] = []
    for block, candidate in itertools.product(range(blocks), candidates):
        before: Samples = {}
        for turn in ROUNDS:
            number = block * len(ROUNDS) + turn
            sides = harnesses.applicable(candidate)
            names = list(sides) if turn == 0 else list(reversed(sides))
            now = {name: sides[name](candidate) for name in names}
            print(f"round {number + 1}: {candidate.label}", file=sys.stderr)
            pairs += divide(now["kvray"], now["plain"], candidate, number)
            # Alternately later ÷ earlier and earlier ÷ later, for a drift to cancel here too.
            control += divide(*((now["plain"], before) if block % 2 == 0 else (before, now["plain"])), candidate, block)
            tool += divide(now["kvray"], now.get("tool", {}), candidate, number)
            before = now["plain"]
    return pairs, control, tool


def divide(ours: Samples, theirs: Samples, candidate: Candidate, number: int) -> list[Pair]:
    """A pair for each cell that both have."""
    return [
        Pair.divide(ours[cell], theirs[cell], candidate=candidate.label, cell=cell.label, round=number + 1)
        for cell in ours
        if cell in theirs
    ]


class Harnesses:
    """The ways of measuring a candidate, each in one process of its own that ends before the next one starts."""

    def __init__(self, *, profile: WorkloadProfile, scratch: Path, tool_python: Path | None) -> None:
        self._profile = profile
        self._cells = profile.cells(1, rung=2)
        self._scratch = scratch
        self._tool_python = tool_python
        adapter = TransformersAdapter()
        for name, value in {**adapter.process_environment(), "HF_HUB_OFFLINE": "1"}.items():
            os.environ.setdefault(name, value)
        # The GGUF file is converted here, so that every side reads the same safetensors.
        self._folder = str(weights_path(ModelRequest(model_id=demo_model())))
        self._launcher = Launcher(adapter)
        self._disturbed: list[bool] = []
        self.threads: int | None = None

    def applicable(self, candidate: Candidate) -> dict[str, Harness]:
        """The harnesses for `candidate`, kvray's beside each of the others."""
        sides: dict[str, Harness] = {"kvray": self.kvray, "plain": self.plain}
        with_tool = candidate.cache is CacheStrategy.DYNAMIC and candidate.attention is AttentionBackend.SDPA
        return {"tool": self.tool, **sides} if self._tool_python and with_tool else sides

    @property
    def disturbed_share(self) -> float:
        """Share of kvray's runs that were disturbed."""
        return sum(self._disturbed) / len(self._disturbed)

    def kvray(self, candidate: Candidate) -> Samples:
        """A trial, without Ray around it."""
        spec = TrialSpec(
            run_id="benchmark",
            trial_id=candidate.candidate_id,
            role=Role.SEARCH,
            request=ModelRequest(model_id=self._folder),
            candidate=candidate,
            profile=self._profile,
            device=DeviceType.CPU,
            timeout_s=600.0,
        )
        process = TrialProcess(self._launcher, spec, self._scratch / f"{spec.trial_id}.log")
        try:
            while isinstance(event := process.advance(), RungFinished):
                pass
        finally:
            process.close()
        if event.status is not TrialStatus.OK or event.facts is None:
            sys.exit(f"{candidate.label}: {event.status}, {event.message}")
        self._check_threads(event.facts.observed.threads)
        self._disturbed += [run.disturbed for run in process.runs]
        return {
            cell: {
                "ttft": [run.ttft_ms for run in process.runs if run.cell == cell],
                "decode": [run.decode_tok_s for run in process.runs if run.cell == cell],
                "itl": [statistics.median(run.itl_ms) for run in process.runs if run.cell == cell],
            }
            for cell in self._cells
        }

    def plain(self, candidate: Candidate) -> Samples:
        """Transformers alone."""
        return self._in_process(
            sys.executable,
            "plain_harness.py",
            text=str(files("kvray.engines").joinpath("prompt_text.txt")),
            dtype=candidate.dtype,
            attention=candidate.attention.partition("_")[0],
            kernel="MATH" if candidate.attention is AttentionBackend.SDPA_MATH else None,
            cache="static" if candidate.cache is CacheStrategy.STATIC else None,
            cells=[(cell.context_tokens, cell.output_tokens) for cell in self._cells],
        )

    def tool(self, candidate: Candidate) -> Samples:
        """The public tool, on the last cell."""
        cell = self._cells[-1]
        return self._in_process(
            str(self._tool_python),
            "tool_harness.py",
            dtype=candidate.dtype,
            attention=candidate.attention,
            cell=(cell.context_tokens, cell.output_tokens),
        )

    def _in_process(self, python: str, script: str, **asked: Any) -> Samples:
        order = json.dumps({"model": self._folder, "repeats": self._profile.repeats, **asked})
        done = subprocess.run(
            [python, str(Path(__file__).with_name(script)), order], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            sys.exit(f"{script} failed:\n{done.stderr}")
        said = json.loads(done.stdout.splitlines()[-1])
        self._check_threads(said["threads"])
        by_cell: dict[Cell, list[dict[str, float]]] = {}
        for run in said["runs"]:
            context, tokens = run.pop("cell")
            by_cell.setdefault(Cell(context, tokens, 1), []).append(run)
        return {cell: collect(runs) for cell, runs in by_cell.items()}

    def _check_threads(self, threads: int | None) -> None:
        self.threads = self.threads or threads
        if threads != self.threads:
            sys.exit(f"not comparable: one side computes with {self.threads} threads, another one with {threads}")


def tool_python(folder: Path) -> Path:
    """The interpreter of the public tool's environment; the environment is made if it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True, symlinks=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *TOOL_PACKAGES], check=True, stdout=sys.stderr)
    return python


def report(pairs: Sequence[Pair], control: Sequence[Pair], tool: Sequence[Pair]) -> None:
    """The tables for people."""
    labels = list(dict.fromkeys(pair.of["candidate"] for pair in pairs))
    print_table(
        "kvray ÷ plain generate, median over cells and rounds",
        ("candidate", *METRICS.values()),
        [(label, *medians([pair for pair in pairs if pair.of["candidate"] == label])) for label in labels],
    )
    rows = {"kvray ÷ plain generate": pairs, "plain ÷ plain (control)": control, f"kvray ÷ {TOOL}": tool}
    for metric, name in METRICS.items():
        ratios = [(label, len(listed), middle(listed, metric)) for label, listed in rows.items()]
        print_table(
            f"{name}: median and quartiles of all pairs",
            ("what", "pairs", "ratio", "quartile", "quartile"),
            [(label, count, found.ratio, found.low, found.high) for label, count, found in ratios if found],
        )


def medians(pairs: Sequence[Pair]) -> list[object]:
    """By metric."""
    return [found.ratio if (found := middle(pairs, metric)) else "" for metric in METRICS]


def summary(pairs: Sequence[Pair], prefix: str = "") -> dict[str, Figure]:
    """The median ratio of all pairs by metric, with its quartiles."""
    found = {f"{prefix}{metric}": one for metric in METRICS if (one := middle(pairs, metric))}
    return {
        f"{key}_{name}": value
        for key, one in found.items()
        for name, value in (("ratio", one.ratio), ("quartile_low", one.low), ("quartile_high", one.high))
    }


if __name__ == "__main__":
    main()
