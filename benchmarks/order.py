"""Whether a candidate's place in a sweep changes its numbers: it is measured first, in the middle and last.

Real sweeps under Ray Tune, each on a Ray of its own: one light candidate three times with heavier ones between, whose
order alternates from sweep to sweep. Pairs are divided within a sweep: last ÷ first, and middle ÷ first beside it. The
light one has the role of the baseline, so that no scheduler stops it; the heavy ones may be stopped, as in any sweep.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from output import Figure, make_parser, print_table, write_figures
from overhead import demo_model
from pairs import Pair, Sample, middle
from typing_extensions import override

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.engines.base import ModelRequest
from kvray.engines.transformers import TransformersAdapter
from kvray.record import Role, TrialResult, TrialStatus
from kvray.sweep.batch import QueuedSweep
from kvray.sweep.driver import run_sweep
from kvray.sweep.outlook import Outlook
from kvray.sweep.quiet import quiet_ray
from kvray.sweep.session import RaySession
from kvray.sweep.slot_plan import plan_slots
from kvray.sweep.trial_queue import TrialQueue
from kvray.sweep.trial_task import TrialTask
from kvray.trial.spec import TrialSpec
from kvray.workload import Cell, WorkloadProfile, get_profile, override_profile

METRICS = {"ttft": "TTFT", "decode": "decode tok/s", "peak": "peak memory"}
LIGHT = Candidate(
    engine=TransformersAdapter.name,
    cache=CacheStrategy.DYNAMIC,
    attention=AttentionBackend.SDPA,
    dtype=DType.BFLOAT16,
)
HEAVY = tuple(
    Candidate(engine=TransformersAdapter.name, cache=cache, attention=attention, dtype=DType.FLOAT32)
    for cache, attention in (
        (CacheStrategy.DYNAMIC, AttentionBackend.EAGER),
        (CacheStrategy.STATIC, AttentionBackend.SDPA_MATH),
    )
)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--sweeps", type=int, help="of five trials each (default 8; 2 with --quick)")
    arguments = parser.parse_args()
    profile = get_profile("ci-micro")
    if arguments.quick:
        profile = override_profile(profile, context_lengths=(128,), output_lengths=(16,), repeats=2)
    last_first: list[Pair] = []
    middle_first: list[Pair] = []
    for number in range(1, 1 + (arguments.sweeps or (2 if arguments.quick else 8))):
        heavy = HEAVY if number % 2 else HEAVY[::-1]
        first, between, last = measure((LIGHT, heavy[0], LIGHT, heavy[1], LIGHT), profile)
        last_first.append(Pair.divide(last, first, sweep=number, heavy=heavy[0].label))
        middle_first.append(Pair.divide(between, first, sweep=number, heavy=heavy[0].label))
    report({"last ÷ first": last_first, "middle ÷ first": middle_first}, profile)
    write_figures(
        arguments.json,
        {
            **summary(last_first, "last_over_first"),
            **summary(middle_first, "middle_over_first"),
            "candidate": LIGHT.label,
            "pairs": [pair.figures() for pair in last_first],
            "middle_pairs": [pair.figures() for pair in middle_first],
        },
        quick=arguments.quick,
    )


def measure(candidates: Sequence[Candidate], profile: WorkloadProfile) -> list[Sample]:
    """One sweep over `candidates` in their sequence; the samples of the light one's trials."""
    adapter = TransformersAdapter()
    request = ModelRequest(model_id=demo_model())
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "ray.log"
        with quiet_ray(log), RaySession(address=None, scratch=log.parent) as ray:
            adapter.fetch_weights(request)
            slots = plan_slots(ray.nodes(), device=DeviceType.CPU, slots=None)
            specs = [
                TrialSpec(
                    run_id="benchmark",
                    trial_id=f"{place}-{candidate.candidate_id}",
                    role=Role.BASELINE if candidate == LIGHT else Role.SEARCH,
                    request=request,
                    candidate=candidate,
                    profile=profile,
                    device=DeviceType.CPU,
                    timeout_s=600.0,
                )
                for place, candidate in enumerate(candidates)
            ]
            ended = Ended()
            tasks = [TrialTask(spec=spec, adapter=adapter, threads=slots.threads, scratch=log.parent) for spec in specs]
            sweep = QueuedSweep(queue=InSequence(tasks), observer=ended)
            run_sweep(sweep, ray=ray, slots=slots, scratch=log.parent)
    return [sample(result, profile.cells(1, rung=2)) for result in ended.results if result.record.candidate == LIGHT]


class InSequence(TrialQueue):
    """A queue that launches its tasks one by one and completes them all."""

    stops_early = False

    def __init__(self, tasks: Sequence[TrialTask]) -> None:
        self._waiting = list(tasks)

    @property
    @override
    def is_over(self) -> bool:
        return not self._waiting

    @override
    def next_trial(self) -> TrialTask | None:
        return self._waiting.pop(0) if self._waiting else None

    def rung_finished(self, result: TrialResult) -> None:
        """Nothing to learn from."""

    def trial_finished(self, result: TrialResult) -> None:
        """Nothing to learn from."""

    def trial_lost(self, order: TrialTask) -> None:
        """Nothing to learn from."""

    def trial_spared(self, order: TrialTask) -> None:
        """Never."""

    def is_out_of_time(self) -> bool:
        """Never."""
        return False

    def outlook(self) -> Outlook:
        """Nobody waits for it."""
        return Outlook()

    def win_chance(self, candidate_id: str) -> float:
        """Unknown."""
        del candidate_id
        return 1.0

    def is_measured_whole(self, candidate_id: str) -> bool:
        """Nothing is stopped."""
        del candidate_id
        return True


class Ended:
    """Keeps the results in the order in which the trials ended."""

    def __init__(self) -> None:
        self.results: list[TrialResult] = []

    def trial_started(self, spec: TrialSpec) -> None:
        """Nothing to keep."""

    def rung_finished(self, result: TrialResult) -> None:
        """Nothing to keep."""

    def trial_lost(self, spec: TrialSpec) -> None:
        """It runs again."""

    def outlook_changed(self, outlook: Outlook) -> None:
        """Nothing to keep."""

    def trial_finished(self, result: TrialResult) -> None:
        """Keep it."""
        record = result.record
        print(f"{record.trial_id}: {record.candidate.label} {record.status}", file=sys.stderr)
        if record.status not in (TrialStatus.OK, TrialStatus.STOPPED):
            sys.exit(f"{record.candidate.label}: {record.message}")
        self.results.append(result)


def sample(result: TrialResult, cells: Sequence[Cell]) -> Sample:
    """TTFT in ms, decode in tok/s, peak in MiB of the runs of full length."""
    runs = [run for run in result.runs if run.cell in cells]
    return {
        "ttft": [run.ttft_ms for run in runs],
        "decode": [run.decode_tok_s for run in runs],
        "peak": [run.peak_mib for run in runs if run.peak_mib is not None],
    }


def report(ratios: dict[str, list[Pair]], profile: WorkloadProfile) -> None:
    """The table for people."""
    print_table(
        f"{LIGHT.label} on {profile.name} among heavier candidates: medians and quartiles over sweeps",
        ("what", "of", "sweeps", "ratio", "quartile", "quartile"),
        [
            (what, name, len(pairs), found.ratio, found.low, found.high)
            for what, pairs in ratios.items()
            for metric, name in METRICS.items()
            if (found := middle(pairs, metric))
        ],
    )


def summary(pairs: Sequence[Pair], name: str) -> dict[str, Figure]:
    """Median ratios over sweeps, with their quartiles."""
    found = {f"{metric}_{name}": one for metric in METRICS if (one := middle(pairs, metric))}
    return {
        **{key: one.ratio for key, one in found.items()},
        **{f"{key}_quartile_low": one.low for key, one in found.items()},
        **{f"{key}_quartile_high": one.high for key, one in found.items()},
    }


if __name__ == "__main__":
    main()
