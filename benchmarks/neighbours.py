"""What a trial in another slot of the same machine costs: one candidate alone, and beside trials in all other slots.

One sweep on real slots under Ray: two on a CPU, which share its cores, or one per GPU where there are several. The
candidate is measured alone and beside others in turn, in an order that alternates; each round gives the ratio of the
two. The neighbours are trials of another candidate, one after the other, and they do all that trials do: they load,
warm up, generate and end. Threads are the same in both cases. For comparison the last column says how far two trials
that run alone differ: a cost below that cannot be seen.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from order import HEAVY, Ended, InSequence, sample
from output import Figure, make_parser, print_table, write_figures
from overhead import TINY, demo_model
from scipy.stats import t
from typing_extensions import override

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.engines.base import ModelRequest
from kvray.engines.transformers import TransformersAdapter
from kvray.probes.gpu import list_gpus
from kvray.record import Role, TrialResult
from kvray.sweep.batch import QueuedSweep
from kvray.sweep.driver import run_sweep
from kvray.sweep.quiet import quiet_ray
from kvray.sweep.session import RaySession
from kvray.sweep.slot_plan import SlotPlan, plan_slots
from kvray.sweep.trial_task import TrialTask
from kvray.trial.spec import SEARCH_RUNGS, TrialSpec
from kvray.workload import WorkloadProfile, get_profile, override_profile

METRICS = {"ttft": "TTFT", "decode": "decode tok/s", "peak": "peak memory"}
MEASURED = Candidate(
    engine=TransformersAdapter.name,
    cache=CacheStrategy.DYNAMIC,
    attention=AttentionBackend.SDPA,
    dtype=DType.FLOAT32,
)
NEIGHBOUR = HEAVY[0]
SECONDS = 200.0
FEWEST_ROUNDS = 2
RUNGS = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Beside ÷ alone: the mean over rounds with its 95 % interval, and the factor by which two trials that run alone
    differ at most 19 times in 20."""

    ratio: float
    low: float
    high: float
    alone: float

    @classmethod
    def of(cls, alone: Sequence[float], beside: Sequence[float]) -> Effect:
        """From the medians of each round's two trials."""
        logs = [math.log(theirs / ours) for ours, theirs in zip(alone, beside, strict=True)]
        mean, rounds = statistics.fmean(logs), len(logs)
        half = float(t.ppf(0.975, rounds - 1)) * statistics.stdev(logs) / math.sqrt(rounds)
        between = statistics.stdev([math.log(one) for one in alone])
        return cls(
            ratio=math.exp(mean),
            low=math.exp(mean - half),
            high=math.exp(mean + half),
            alone=math.exp(1.96 * math.sqrt(2) * between),
        )


class InTurn(InSequence):
    """Launches the candidate alone and beside neighbours in turn, until the time for another round is over."""

    def __init__(self, make: TaskFactory, *, neighbours: int, seconds: float) -> None:
        super().__init__(())
        self._make = make
        self._neighbours = neighbours
        self._deadline_s = time.monotonic() + seconds
        self._round_s = 0.0
        self._round_began_s = 0.0
        self._out: set[str] = set()
        self._turns: list[str] = []
        """The one that runs first in this round."""
        self._is_measured = True
        self._launched = 0
        self.rounds = 0

    @property
    @override
    def is_over(self) -> bool:
        return not self._out and not self._turns and self._has_enough()

    @override
    def next_trial(self) -> TrialTask | None:
        if self._is_measured and not self._out and not self._next_turn():
            return None
        if self._is_measured:
            return None
        others = sum(key.startswith("neighbour") for key in self._out)
        if self._turns[0] == "beside" and others < self._neighbours:
            return self._started(f"neighbour-{self._launched}", NEIGHBOUR, Role.SEARCH)
        name = f"{self._turns[0]}-{self.rounds}"
        return None if name in self._out else self._started(name, MEASURED, Role.BASELINE)

    @override
    def trial_finished(self, result: TrialResult) -> None:
        key = result.record.trial_id
        self._out.discard(key)
        self._is_measured = self._is_measured or not key.startswith("neighbour")

    @override
    def is_out_of_time(self) -> bool:
        """Tasks of neighbours, which end with their rung once the candidate is measured."""
        return self._is_measured

    def _next_turn(self) -> bool:
        if self._turns:
            self._turns.pop(0)
        if not self._turns:
            now = time.monotonic()
            if self.rounds:
                self._round_s = max(self._round_s, now - self._round_began_s)
            if self._has_enough():
                return False
            self._round_began_s = now
            self.rounds += 1
            self._turns = ["alone", "beside"] if self.rounds % 2 else ["beside", "alone"]
        self._is_measured = False
        return True

    def _has_enough(self) -> bool:
        return self.rounds >= FEWEST_ROUNDS and time.monotonic() + self._round_s > self._deadline_s

    def _started(self, trial_id: str, candidate: Candidate, role: Role) -> TrialTask:
        self._launched += 1
        self._out.add(trial_id)
        return self._make(trial_id, candidate, role)


@dataclass(frozen=True, kw_only=True)
class TaskFactory:
    """Makes the tasks of trials of one model."""

    model: str
    profile: WorkloadProfile
    slots: SlotPlan
    device: DeviceType
    scratch: Path

    def __call__(self, trial_id: str, candidate: Candidate, role: Role) -> TrialTask:
        """One trial."""
        spec = TrialSpec(
            run_id="benchmark",
            trial_id=trial_id,
            role=role,
            request=ModelRequest(model_id=self.model),
            candidate=candidate,
            profile=self.profile,
            device=self.device,
            timeout_s=600.0,
            rungs=RUNGS if role is Role.BASELINE else (*SEARCH_RUNGS, RUNGS[-1]),
        )
        return TrialTask(spec=spec, adapter=TransformersAdapter(), threads=self.slots.threads, scratch=self.scratch)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seconds", type=float, help=f"for all rounds (default {SECONDS:g}; with --quick two rounds)")
    parser.add_argument("--device", choices=[one.value for one in DeviceType], help="by default GPUs if there are two")
    arguments = parser.parse_args()
    gpus = len(list_gpus())
    device = DeviceType(arguments.device) if arguments.device else (DeviceType.CUDA if gpus > 1 else DeviceType.CPU)
    if device is DeviceType.CUDA and gpus < 2:
        sys.exit("There is no neighbour on a single GPU: this needs two, or --device cpu.")
    profile = override_profile(get_profile("ci-micro"), context_lengths=(128,), output_lengths=(16,), repeats=4)
    if device is DeviceType.CUDA:
        profile = override_profile(profile, context_lengths=(2048,), output_lengths=(64,))
    model = f"random:{TINY}" if arguments.quick else demo_model()
    seconds = arguments.seconds or (0.0 if arguments.quick else SECONDS)
    results, slots = measure(model, profile, device, slots=gpus if device is DeviceType.CUDA else 2, seconds=seconds)
    rounds = len([one for one in results if one.record.trial_id.startswith("alone")])
    found = effects(results, profile)
    where = results[0].record.device_name or device.value
    print_table(
        f"{MEASURED.label} of {Path(model).name} alone and beside {slots.slots - 1} other on {where}, {rounds} rounds",
        ("what", "beside ÷ alone", "95 % from", "to", "two alone differ by up to"),
        [(METRICS[key], one.ratio, one.low, one.high, one.alone) for key, one in found.items()],
    )
    shares = {name: disturbed_share(results, name) for name in ("alone", "beside")}
    print(f"\nruns marked as disturbed: {shares['alone']:.0%} alone, {shares['beside']:.0%} beside others")
    write_figures(
        arguments.json,
        {
            **figures(found),
            **{f"disturbed_share_{name}": share for name, share in shares.items()},
            "rounds": rounds,
            "slots": slots.slots,
            "threads": slots.threads,
            "device": where,
            "model": Path(model).name,
            "candidate": MEASURED.label,
            "neighbour": NEIGHBOUR.label,
        },
        quick=arguments.quick,
    )


def measure(
    model: str, profile: WorkloadProfile, device: DeviceType, *, slots: int, seconds: float
) -> tuple[list[TrialResult], SlotPlan]:
    """The results of all trials, and the slots that they ran in."""
    TransformersAdapter().fetch_weights(ModelRequest(model_id=model))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "ray.log"
        with quiet_ray(log), RaySession(address=None, scratch=log.parent) as ray:
            plan = plan_slots(ray.nodes(), device=device, slots=slots)
            make = TaskFactory(model=model, profile=profile, slots=plan, device=device, scratch=log.parent)
            ended = Ended()
            queue = InTurn(make, neighbours=plan.slots - 1, seconds=seconds)
            run_sweep(QueuedSweep(queue=queue, observer=ended), ray=ray, slots=plan, scratch=log.parent)
    return ended.results, plan


def effects(results: Sequence[TrialResult], profile: WorkloadProfile) -> dict[str, Effect]:
    """By metric, of the rounds in sequence."""
    medians: dict[str, dict[str, list[float]]] = {"alone": {}, "beside": {}}
    for result in sorted(results, key=lambda one: int(one.record.trial_id.rpartition("-")[2])):
        kind = result.record.trial_id.partition("-")[0]
        if kind in medians:
            for metric, values in sample(result, profile.cells(1, rung=RUNGS[-1])).items():
                medians[kind].setdefault(metric, []).append(statistics.median(values))
    alone, beside = medians["alone"], medians["beside"]
    return {key: Effect.of(alone[key], beside[key]) for key in METRICS if key in alone}


def disturbed_share(results: Sequence[TrialResult], kind: str) -> float:
    """Figures of the candidate's runs, alone or beside others."""
    runs = [run for one in results if one.record.trial_id.startswith(kind) for run in one.runs]
    return sum(run.disturbed for run in runs) / len(runs)


def figures(found: Mapping[str, Effect]) -> dict[str, Figure]:
    """Flat, as the JSON file has them."""
    return {
        key: value
        for metric, one in found.items()
        for key, value in (
            (f"{metric}_beside_over_alone", one.ratio),
            (f"{metric}_beside_over_alone_low", one.low),
            (f"{metric}_beside_over_alone_high", one.high),
            (f"{metric}_alone_differs_by", one.alone),
        )
    }


if __name__ == "__main__":
    main()
