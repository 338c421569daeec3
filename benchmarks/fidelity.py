"""Whether kvray's numbers are those that a user of the engine alone gets.

Each candidate is measured by kvray (a trial's own forked process, through the code of a trial) and by a plain program
that knows the engine and a clock, two processes each in the order A B B A, and each pair of neighbours is divided:
kvray ÷ plain. The two plain ones, divided by each other, are the control: what the machine's own unrest makes of two
things that are equal. A public tool measures the candidates that it can express in the same turn.

- `--engine transformers`: plain `model.generate()` (`plain_harness.py`); with `--public-tool`, optimum-benchmark.
- `--engine llama_cpp`: a loop over the C API (`plain_llama.py`); `llama-bench` where `make llama-tools` has built it.
- `--engine vllm`: vLLM's own step loop (`plain_vllm.py`), in the Python that `make vllm-env` makes.

What differs in optimum-benchmark: it needs Transformers 4.57 (it does not import under 5), so another `generate` runs,
and one that does not know the newer config's rope base (other text, the same arithmetic). Its prompts are random ids;
`min_new_tokens` instead of a disabled end-of-sequence token adds a small logits processor to each token. Its prefill
ends when the first logits are there, kvray's when the first token is on the host; its decode starts there and ends
when `generate` returns. Tokens are counted alike: N - 1 of them are decode.

What differs in llama-bench: its prompts are random ids, no token is chosen from the logits, and its ITL is a mean.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fidelity_engines import TOOL, LlamaSides, TransformersSides, VllmSides, tool_python
from fidelity_sides import Samples, Sides
from output import Figure, make_parser, print_table, write_figures
from pairs import Pair, middle

from kvray.candidate import Candidate
from kvray.config import cache_dir
from kvray.workload import WorkloadProfile, create_custom_profile

METRICS = {"ttft": "TTFT", "decode": "decode tok/s", "itl": "ITL"}
ROUNDS = (0, 1)
"""Rounds of a block. The second one runs backwards: a steady drift cancels, and both plain processes are neighbours."""
FIRST_ENGINE = TransformersSides.engine
"""Its figures have no engine's name in front: they had none when it was the only one."""


VLLM_PYTHON = Path(__file__).parent.parent / ".venv-vllm" / "bin" / "python"


def main() -> None:
    arguments = parse_arguments()
    blocks = arguments.blocks or (1 if arguments.quick else 2)
    with tempfile.TemporaryDirectory() as folder:
        sides = make_sides(arguments, Path(folder))
        candidates = sides.candidates()
        candidates = candidates[:1] + candidates[-1:] if arguments.quick else candidates
        pairs, control, tool = measure(sides, candidates, blocks)
    report(sides, pairs, control, tool)
    print(f"\n{sides.disturbed_share:.0%} of kvray's runs were disturbed by other programs; quote 0 % only")
    lists = {"pairs": pairs, "control_pairs": control, "tool_pairs": tool}
    figures: dict[str, Figure] = {
        **summary(pairs),
        **summary(control, "control_"),
        **summary(tool, "tool_"),
        "candidates": len(candidates),
        "disturbed_share": sides.disturbed_share,
        "threads": sides.threads,
        "tool": sides.tool_name,
        **{name: [pair.figures() for pair in listed] for name, listed in lists.items()},
    }
    front = "" if sides.engine == FIRST_ENGINE else f"{sides.engine}_"
    write_figures(arguments.json, {f"{front}{name}": value for name, value in figures.items()}, quick=arguments.quick)


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    engines = (TransformersSides.engine, LlamaSides.engine, VllmSides.engine)
    parser.add_argument("--engine", choices=engines, default=FIRST_ENGINE, help="whose numbers")
    parser.add_argument("--engine-python", type=Path, default=VLLM_PYTHON, help="the Python that holds vLLM")
    parser.add_argument("--blocks", type=int, help="A B B A per candidate, this often (default 2; 1 with --quick)")
    parser.add_argument("--public-tool", action="store_true", help=f"measure with {TOOL} too, in an own environment")
    parser.add_argument(
        "--tool-venv", type=Path, metavar="FOLDER", default=cache_dir() / TOOL, help="that environment, made if need be"
    )
    return parser.parse_args()


def make_sides(arguments: argparse.Namespace, scratch: Path) -> Sides:
    """Those of the engine that was asked for."""
    workload = profile(quick=arguments.quick)
    if arguments.engine == LlamaSides.engine:
        return LlamaSides(profile=workload, scratch=scratch)
    if arguments.engine == VllmSides.engine:
        return VllmSides(profile=workload, scratch=scratch, python=arguments.engine_python)
    python = tool_python(arguments.tool_venv) if arguments.public_tool else None
    return TransformersSides(profile=workload, scratch=scratch, tool_python=python)


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


def measure(sides: Sides, candidates: Sequence[Candidate], blocks: int) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Pairs kvray ÷ plain, plain ÷ plain, and kvray ÷ public tool. One process at a time."""
    pairs: list[Pair] = []
    control: list[Pair] = []
    tool: list[Pair] = []
    for block, candidate in itertools.product(range(blocks), candidates):
        before: Samples = {}
        for turn in ROUNDS:
            number = block * len(ROUNDS) + turn
            harnesses = sides.applicable(candidate)
            names = list(harnesses) if turn == 0 else list(reversed(harnesses))
            now = {name: harnesses[name](candidate) for name in names}
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


def report(sides: Sides, pairs: Sequence[Pair], control: Sequence[Pair], tool: Sequence[Pair]) -> None:
    """The tables for people."""
    labels = list(dict.fromkeys(pair.of["candidate"] for pair in pairs))
    print_table(
        f"kvray ÷ {sides.plain_name}, median over cells and rounds",
        ("candidate", *METRICS.values()),
        [(label, *medians([pair for pair in pairs if pair.of["candidate"] == label])) for label in labels],
    )
    rows = {f"kvray ÷ {sides.plain_name}": pairs, "plain ÷ plain (control)": control, "kvray ÷ public tool": tool}
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
