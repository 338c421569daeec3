"""Slots that sleep instead of starting a process, and the sweep that is run on them or on real ones.

Everything but the measuring process is kvray's own: the queue, the scheduler, the slot's actor, the records, the store.
"""

from __future__ import annotations

import datetime as dt
import gc
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from kvray.candidate import AttentionBackend, AttentionChoice, CacheChoice, CacheStrategy, DeviceType, DType
from kvray.config import SearchStrategy, TuneConfig
from kvray.measuring.runner import MeasuredTrial
from kvray.record import Run, TrialStatus
from kvray.store.claim import claimed_sweep
from kvray.store.parquet import ResultsStore
from kvray.sweep import slot as slot_module
from kvray.sweep.driver import run_sweep
from kvray.sweep.remote_device import ask_nodes
from kvray.sweep.session import RaySession
from kvray.sweep.slot import Slot
from kvray.sweep.slot_plan import plan_slots
from kvray.trial.events import RungFinished, TrialEnded, TrialFacts
from kvray.trial.process import Launcher
from kvray.trial.spec import TrialSpec
from kvray.tuning.engines import SweepEngines
from kvray.tuning.observer import SearchObserver
from kvray.tuning.prepared import PreparedSweep, prepare_sweep
from kvray.tuning.ready_sweep import look_at
from kvray.tuning.share import Share
from kvray.workload import WorkloadProfile, create_custom_profile

RUN_ID = "scale-20260101"
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
LONGEST_TILE = 2500
LOOK_S = 0.1
PROFILE = create_custom_profile(
    "scale",
    context_lengths=(LONGEST_TILE,),
    output_lengths=(4,),
    repeats=2,
    weight_ttft=0.4,
    weight_throughput=0.4,
    weight_memory=0.2,
)


class Sleeper:
    """What a slot holds in place of a measuring process: it sleeps, and makes its runs up."""

    def __init__(self, spec: TrialSpec, sleep_s: float, awaited: Path | None) -> None:
        self.spec = spec
        self.runs: list[Run] = []
        self.pids: tuple[int, ...] = ()
        self._rungs = list(spec.rungs)
        self._sleep_s = sleep_s / len(spec.rungs)
        self._awaited = awaited
        self._facts = TrialFacts(pid=1, host="made up", niceness=0, cpus=1)

    def advance(self) -> RungFinished | TrialEnded:
        """One rung, then the end."""
        if not self._rungs:
            return TrialEnded(status=TrialStatus.OK, phase=None, message=None, facts=self._facts)
        while self._awaited is not None and not self._awaited.exists():
            time.sleep(LOOK_S)
        if self._sleep_s:
            time.sleep(self._sleep_s)
        rung = self._rungs.pop(0)
        self.runs += [_run(self.spec, rung, *cell) for cell in self.spec.profile.cells(1, rung=rung)]
        return RungFinished(rung=rung, facts=self._facts)

    def close(self) -> None:
        """Nothing was started."""

    def log_tail(self) -> str | None:
        """Nothing was printed."""
        return None


def _run(spec: TrialSpec, rung: int, context_tokens: int, output_tokens: int, batch_size: int) -> Run:
    tile = dict(spec.candidate.settings).get("tile") or LONGEST_TILE
    ttft_ms = 100.0 + float(tile) / LONGEST_TILE
    return Run(
        run_id=spec.run_id,
        trial_id=spec.trial_id,
        candidate_id=spec.candidate.candidate_id,
        context_tokens=context_tokens,
        output_tokens=output_tokens,
        batch_size=batch_size,
        rung=rung,
        repeat=0,
        ttft_ms=ttft_ms,
        itl_ms=(25.0,) * (output_tokens - 1),
        decode_tok_s=40.0,
        peak_mib=500.0,
        started_at=NOW,
    )


def sleeping_slot(sleep_s: float, *, all_up: Path | None = None, real_from: Path | None = None) -> type[Slot]:
    """A slot whose trials sleep `sleep_s`.

    Args:
        all_up: a file before which no trial ends, so that all slots are at work from then on.
        real_from: a file after which trials start processes.
    """

    class SleepingSlot(Slot):
        """As the function says."""

        def setup(self, config: dict[str, Any]) -> None:
            """As the real one, without a fork server before one is needed."""
            with patch.object(Launcher, "warm"):
                super().setup(config)

        def _begin(self) -> Any:
            if real_from is not None and real_from.exists():
                return super()._begin()
            return MeasuredTrial(
                self._task.spec,
                environment=slot_module._environment(self._task),
                hardware=None,
                start=lambda: Sleeper(self._task.spec, sleep_s, all_up),  # type: ignore[arg-type,return-value]
            )

    return SleepingSlot


def config_for(
    trials: int, model_id: str, profile: WorkloadProfile, device: DeviceType, *, address: str | None, folder: Path
) -> TuneConfig:
    """A grid of at least `trials` candidates of the fake engine, each of which is measured once."""
    return TuneConfig(
        model_id=model_id,
        profile=profile,
        engine="fake",
        device=device,
        address=address,
        output_dir=str(folder / "results"),
        dtypes=(DType.FLOAT32,),
        caches=tuple(CacheChoice(one) for one in (CacheStrategy.DYNAMIC, CacheStrategy.STATIC)),
        attentions=tuple(AttentionChoice(one) for one in (AttentionBackend.SDPA, AttentionBackend.EAGER)),
        settings={"tile": tuple(range(1, min(LONGEST_TILE, -(-trials // 4)) + 1))},
        search=SearchStrategy.GRID,
        max_trials=trials,
        confirm_rounds=0,
        forecast=False,
        check_snippet=False,
    )


def run_trials(
    config: TuneConfig, ray: RaySession, *, slots: int, slot: type[Slot], observer: SearchObserver, scratch: Path
) -> PreparedSweep:
    """What `kvray tune` does between its checks and its reports. An observer may end it by a `KeyboardInterrupt`."""
    store, nodes = ResultsStore(config.output_dir), ray.nodes()
    node = None
    if config.address is not None:
        adapters = SweepEngines.named(config.engines).adapters
        node = ask_nodes(adapters, device=config.device, gpu_type=None, check_alive=ray.check_alive)[0]
    ready = look_at(config, store, node=node)
    with claimed_sweep(store, RUN_ID) as claim:
        plan = plan_slots(nodes, device=ready.preview.device.device, slots=slots)
        share = Share(
            preview=ready.preview,
            parts=ready.parts,
            slots=plan,
            environments=node.environments if node else {},
            observers=[observer],
        )
        prepared = prepare_sweep(
            store, config, [share], claim=claim, run_id=RUN_ID, scratch=scratch, started_s=time.monotonic()
        )
        prepared.start()
        with patch.object(slot_module, "Slot", slot), suppress(KeyboardInterrupt):
            run_sweep(*prepared.queued, ray=ray, slots=plan, scratch=scratch)
        prepared.keeper.finish_writing()
        gc.collect()  # Tune gives the slots back when its controller is collected
    return prepared


def running_share(
    spans: Sequence[tuple[float, float]], begin: float, end: float, *, slots: int, length_s: float
) -> float:
    """Trials' worth of work that was done between two moments, over what `slots` could have done.

    Args:
        spans: start and end of each trial.
        length_s: what a trial takes alone: one that takes longer has done no more.
    """
    done = sum(max(0.0, min(end, stop) - max(begin, start)) / (stop - start) for start, stop in spans)
    return done * length_s / (slots * (end - begin))
