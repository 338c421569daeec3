"""Whether the stated 95 % intervals of TTFT and throughput hold the mean of many fresh processes.

Each of three configurations is measured in 20 processes of its own, in turn, by the code of a trial. Then every
confirm phase that could have been is made of them: one process with all its runs, as the search measures, and one to
three successive ones of which only the first run of each cell counts, as confirming rounds measure; the same of each
configuration, because noise is pooled over the configurations of an engine. Its intervals are compared with the mean
over all 20. That mean contains the few processes themselves, so that perfect intervals would hold it in 96 to 97 %.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from output import make_parser, print_table, write_figures
from overhead import TINY, demo_model

from kvray.analysis.bimodality import find_bimodality
from kvray.analysis.evidence import DECODE, TTFT, confirm_trial_id, gather_evidence
from kvray.analysis.intervals import metric_interval
from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.engines.base import ModelRequest
from kvray.engines.transformers import TransformersAdapter
from kvray.record import Role, TrialRecord, TrialResult, TrialStatus
from kvray.trial.events import RungFinished
from kvray.trial.process import Launcher, TrialProcess
from kvray.trial.spec import TrialSpec
from kvray.workload import WorkloadProfile, get_profile, override_profile

METRICS = {"ttft": TTFT, "decode": DECODE}
PROCESSES = (2, 3, 4)
"""Processes of a configuration after one, two and three confirming rounds."""
CANDIDATES = tuple(
    Candidate(engine=TransformersAdapter.name, cache=cache, attention=AttentionBackend.SDPA, dtype=dtype)
    for cache, dtype in (
        (CacheStrategy.DYNAMIC, DType.FLOAT32),
        (CacheStrategy.DYNAMIC, DType.BFLOAT16),
        (CacheStrategy.STATIC, DType.BFLOAT16),
    )
)

Measured = Mapping[Candidate, Sequence[TrialResult]]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--processes", type=int, help="of each configuration (default 20; 5 with --quick)")
    arguments = parser.parse_args()
    count = arguments.processes or (5 if arguments.quick else 20)
    if count <= max(PROCESSES):
        parser.error(f"--processes {count}: more than {max(PROCESSES)} are needed to choose from")
    profile = get_profile("ci-micro")
    if arguments.quick:
        profile = override_profile(profile, context_lengths=(64,), output_lengths=(8,), repeats=2)
    measured = measure(f"random:{TINY}" if arguments.quick else demo_model(), profile, count)
    held = {size: coverage(measured, profile, size) for size in PROCESSES}
    every = {metric: float(np.mean([flag for of in held.values() for flag in of[metric]])) for metric in METRICS}
    disturbed = [run.disturbed for trials in measured.values() for trial in trials for run in trial.runs]
    report(measured, profile, held, every)
    print(f"\n{np.mean(disturbed):.0%} of the runs were disturbed by other programs; quote 0 % only")
    write_figures(
        arguments.json,
        {
            **{f"{metric}_coverage": value for metric, value in every.items()},
            **{
                f"{metric}_coverage_of_{size}": float(np.mean(of[metric]))
                for size, of in held.items()
                for metric in METRICS
            },
            "processes": count,
            "candidates": len(measured),
            "disturbed_share": float(np.mean(disturbed)),
        },
        quick=arguments.quick,
    )


def measure(model_id: str, profile: WorkloadProfile, count: int) -> Measured:
    """`count` processes of each candidate, in turn, one at a time."""
    adapter = TransformersAdapter()
    request = ModelRequest(model_id=model_id)
    adapter.fetch_weights(request)
    launcher = Launcher(adapter)
    measured: dict[Candidate, list[TrialResult]] = {candidate: [] for candidate in CANDIDATES}
    with tempfile.TemporaryDirectory() as folder:
        for number, candidate in itertools.product(range(count), CANDIDATES):
            spec = TrialSpec(
                run_id="benchmark",
                trial_id=f"{number}-{candidate.candidate_id}",
                role=Role.SEARCH,
                request=request,
                candidate=candidate,
                profile=profile,
                device=DeviceType.CPU,
                timeout_s=600.0,
            )
            measured[candidate].append(run_trial(launcher, spec, Path(folder)))
            print(f"process {number + 1} of {candidate.label}", file=sys.stderr)
    return measured


def run_trial(launcher: Launcher, spec: TrialSpec, scratch: Path) -> TrialResult:
    """A trial, without Ray around it."""
    process = TrialProcess(launcher, spec, scratch / f"{spec.trial_id}.log")
    try:
        while isinstance(event := process.advance(), RungFinished):
            pass
    finally:
        process.close()
    if event.status is not TrialStatus.OK:
        sys.exit(f"{spec.candidate.label}: {event.status}, {event.message}")
    record = TrialRecord.of(
        spec.candidate,
        run_id=spec.run_id,
        trial_id=spec.trial_id,
        role=spec.role,
        model_id=spec.request.model_id,
        profile=spec.profile.name,
        status=event.status,
    )
    return TrialResult(record=record, runs=tuple(process.runs))


def coverage(measured: Measured, profile: WorkloadProfile, size: int) -> dict[str, list[bool]]:
    """By metric, whether the interval from `size` processes holds the mean of all, for every choice of them."""
    count = len(next(iter(measured.values())))
    everything = gather_evidence([trial for trials in measured.values() for trial in trials], profile)
    means = [everything.logs[everything.owner == place].mean(axis=0) for place in range(len(everything.ids))]
    held: dict[str, list[bool]] = {metric: [] for metric in METRICS}
    for searched, start in itertools.product(range(count), repeat=2):
        confirmed = [(start + step) % count for step in range(size - 1)]
        if searched in confirmed:
            continue
        evidence = gather_evidence(confirm_phase(measured, searched, confirmed), profile)
        for (name, metric), place in itertools.product(METRICS.items(), range(len(means))):
            stated = metric_interval(evidence, everything.ids[place], metric)
            held[name].append(abs(means[place][metric] - stated.value) <= stated.half_width)
    return held


def confirm_phase(measured: Measured, searched: int, confirmed: Sequence[int]) -> list[TrialResult]:
    """The trials of a sweep whose search took one process of each candidate and whose rounds took `confirmed`."""
    return [
        *(trials[searched] for trials in measured.values()),
        *(
            confirming(trials[number], round_number)
            for trials in measured.values()
            for round_number, number in enumerate(confirmed, start=1)
        ),
    ]


def confirming(trial: TrialResult, round_number: int) -> TrialResult:
    """What a confirming trial would have measured: the first full-length run of each cell."""
    record = trial.record.with_(role=Role.CONFIRM, trial_id=confirm_trial_id(round_number, trial.record.candidate_id))
    return replace(trial, record=record, runs=tuple(run for run in trial.runs if run.rung == 1))


def report(
    measured: Measured, profile: WorkloadProfile, held: Mapping[int, dict[str, list[bool]]], every: Mapping[str, float]
) -> None:
    """The tables for people."""
    evidence = gather_evidence([trial for trials in measured.values() for trial in trials], profile)
    spreads = {
        candidate: evidence.logs[evidence.owner == evidence.ids.index(candidate.candidate_id)] for candidate in measured
    }
    kinds = {one.candidate_id for one in find_bimodality(evidence, evidence.ids)}
    print_table(
        "Between processes: standard deviation",
        ("candidate", "calm processes", *METRICS, "two kinds"),
        [
            (
                candidate.label,
                len(logs),
                *(f"{logs[:, metric].std(ddof=1):.1%}" for metric in METRICS.values()),
                "yes" if candidate.candidate_id in kinds else "no",
            )
            for candidate, logs in spreads.items()
        ],
    )
    print_table(
        "95 % intervals that hold the mean of all processes",
        ("processes", *METRICS, "intervals"),
        [
            *((size, *(f"{np.mean(of[one]):.1%}" for one in METRICS), len(of["ttft"])) for size, of in held.items()),
            ("all", *(f"{every[one]:.1%}" for one in METRICS), sum(len(of["ttft"]) for of in held.values())),
        ],
    )


if __name__ == "__main__":
    main()
