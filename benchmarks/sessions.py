"""What a session is worth: two sittings of the same code differ more than two processes of one sitting.

`--append FILE` measures one session: a few fresh processes of one fixed candidate of llama.cpp and, where it is
installed, of Transformers, in turn, through kvray's own trial machinery. Each run becomes a line of logarithms. Start
it again and again over hours, because a session stands for a sitting at another time. `--report FILE` computes the
variance between sessions, between the processes of one session, and between the runs of one process.

    for n in $(seq 20); do python benchmarks/sessions.py --append sessions.jsonl; sleep 240; done
    python benchmarks/sessions.py --report sessions.jsonl --json benchmarks/results/sessions.json
"""

from __future__ import annotations

import datetime as dt
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from output import Figure, make_parser, print_table, write_figures
from overhead import demo_model
from whole_trial import run_trial, trial_spec

from kvray.candidate import DeviceType
from kvray.engines.base import EngineAdapter, ModelRequest
from kvray.engines.llama_cpp import LlamaCppAdapter
from kvray.record import Role, Run
from kvray.trial.process import Launcher
from kvray.tuning.local_device import detect_device
from kvray.workload import get_profile

METRICS = ("ttft", "decode", "memory")
PROCESSES = 4
FULL_LENGTH = (1, 2)
"""Rungs: every cell at full length, then its repeats."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One run of one process; `logs` are natural logarithms of TTFT (ms), decode (tok/s) and peak (MiB)."""

    session: str
    candidate: str
    process: int
    repeat: int
    logs: tuple[float, ...]
    disturbed: bool


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--append", type=Path, metavar="FILE", help="measure one session and append it to FILE")
    parser.add_argument("--processes", type=int, default=PROCESSES, help=f"of each candidate (default {PROCESSES})")
    parser.add_argument("--report", type=Path, metavar="FILE", help="compute the variances of the sessions in FILE")
    arguments = parser.parse_args()
    if arguments.append is None and arguments.report is None:
        parser.error("give --append FILE to measure a session, or --report FILE to evaluate them")
    if arguments.append is not None:
        append_session(arguments.append, processes=2 if arguments.quick else arguments.processes)
    if arguments.report is not None:
        write_figures(arguments.json, report(read_lines(arguments.report)), quick=arguments.quick)


def append_session(path: Path, *, processes: int) -> None:
    """Measure all candidates in turn, so that what drifts within the session meets all of them."""
    session = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    launchers = [Launcher(adapter) for adapter in adapters()]
    with tempfile.TemporaryDirectory() as folder:
        lines = [
            line
            for process in range(1, processes + 1)
            for launcher in launchers
            for line in measured(launcher, session, process, Path(folder))
        ]
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(line)) + "\n" for line in lines)
    print(f"{session}: {len(lines)} runs of {processes} processes each", file=sys.stderr)


def adapters() -> list[EngineAdapter]:
    """llama.cpp's, and Transformers' where it is installed."""
    found: list[EngineAdapter] = [LlamaCppAdapter()]
    if find_spec("transformers") is not None:
        from kvray.engines.transformers import TransformersAdapter

        found.append(TransformersAdapter())
    return found


def measured(launcher: Launcher, session: str, process: int, folder: Path) -> list[Line]:
    """The runs of one fresh process of the engine's baseline."""
    adapter, request = launcher.adapter, ModelRequest(model_id=demo_model())
    model = adapter.identify_model(request, adapter.describe_model(request))
    candidate = adapter.baseline(model, detect_device(DeviceType.CPU), batch_size=1)
    spec = trial_spec(request.model_id, candidate, get_profile("ci-micro"), role=Role.CONFIRM, rungs=FULL_LENGTH)
    runs, _ = run_trial(launcher, spec, folder)
    return [
        Line(
            session=session,
            candidate=candidate.label,
            process=process,
            repeat=repeat,
            logs=logs_of(run),
            disturbed=run.disturbed,
        )
        for repeat, run in enumerate(runs)
    ]


def logs_of(run: Run) -> tuple[float, ...]:
    return tuple(round(math.log(value), 5) for value in (run.ttft_ms, run.decode_tok_s, run.peak_mib or 1.0))


def read_lines(path: Path) -> list[Line]:
    """What `--append` wrote."""
    return [Line(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True, kw_only=True)
class Components:
    """Standard deviations of one metric's logarithm.

    Attributes:
        session: between sessions, beyond what their processes explain.
        session_low, session_high: 95 % interval of `session`, by resampling sessions.
        process: between fresh processes of a session, beyond what their runs explain.
        run: between runs of a process.
    """

    session: float
    session_low: float
    session_high: float
    process: float
    run: float


def report(lines: Sequence[Line]) -> dict[str, Figure]:
    """The table, and its figures."""
    calm = [line for line in lines if not line.disturbed]
    figures: dict[str, Figure] = {**described(lines), "disturbed_runs": len(lines) - len(calm)}
    rows: list[tuple[object, ...]] = []
    for candidate in sorted({line.candidate for line in calm}):
        for metric, name in enumerate(METRICS):
            parts = components([line for line in calm if line.candidate == candidate], metric)
            shown = {key: round(value, 5) for key, value in asdict(parts).items()}
            figures |= {f"{key_of(candidate)}_{name}_{part}_sd": value for part, value in shown.items()}
            rows.append((candidate, name, *(f"{value:.2%}" for value in asdict(parts).values())))
    heads = ("candidate", "metric", "between sessions", "low", "high", "between processes", "between runs")
    print_table(f"Standard deviations of logarithms over {figures['sessions']} sessions", heads, rows)
    return figures


def described(lines: Sequence[Line]) -> dict[str, Figure]:
    """When the sessions were, and how much they measured."""
    starts = sorted({line.session for line in lines})
    first, last = (dt.datetime.fromisoformat(one) for one in (starts[0], starts[-1]))
    hours = (last - first).total_seconds() / 3600
    return {
        "sessions": len(starts),
        "first_session": starts[0],
        "last_session": starts[-1],
        "hours": round(hours, 2),
        "runs": len(lines),
        "note": f"All sessions lie within {hours:.1f} hours of one day on one machine: days may differ more than this.",
    }


def components(lines: Sequence[Line], metric: int) -> Components:
    """By a nested analysis of variance of each process's median run; a part that comes out below zero is zero."""
    processes: dict[str, dict[int, list[float]]] = {}
    for line in lines:
        processes.setdefault(line.session, {}).setdefault(line.process, []).append(line.logs[metric])
    runs = [values for of in processes.values() for values in of.values()]
    run = pooled_variance(runs)
    sessions = [[float(np.median(values)) for values in of.values()] for of in processes.values()]
    process = pooled_variance(sessions)
    generator = np.random.default_rng(0)
    drawn = [
        session_variance([sessions[at] for at in generator.integers(len(sessions), size=len(sessions))])
        for _ in range(1000)
    ]
    low, high = np.sqrt(np.quantile(drawn, (0.025, 0.975))).tolist()
    between_runs = run * float(np.mean([median_share(len(values)) for values in runs]))
    return Components(
        session=math.sqrt(session_variance(sessions)),
        session_low=low,
        session_high=high,
        process=math.sqrt(max(process - between_runs, 0.0)),
        run=math.sqrt(run),
    )


def session_variance(sessions: Sequence[Sequence[float]]) -> float:
    """The variance of the sessions' means, less what processes contribute to it."""
    if len(sessions) < 2:
        return 0.0
    means = float(np.var([np.mean(values) for values in sessions], ddof=1))
    return max(means - pooled_variance(sessions) * float(np.mean([1 / len(values) for values in sessions])), 0.0)


def pooled_variance(groups: Sequence[Sequence[float]]) -> float:
    """Within groups; 0 where no group has two values."""
    squares = sum(float(np.var(values)) * len(values) for values in groups)
    freedom = sum(len(values) - 1 for values in groups)
    return squares / freedom if freedom else 0.0


def median_share(runs: int) -> float:
    """Variance of the median of `runs` normal values, in units of one's."""
    return 1 / runs if runs < 3 else math.pi / 2 / runs


def key_of(candidate: str) -> str:
    """The engine's name, which starts a label of this benchmark's candidates, as a part of a JSON key."""
    return "llama_cpp" if candidate.startswith("llama") else "transformers"


if __name__ == "__main__":
    main()
