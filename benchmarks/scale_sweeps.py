"""How well slots are kept busy, and what the driver costs per trial against bare Tune."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
import scale_slots
from output import Figure
from ray import cloudpickle, tune
from ray.cluster_utils import Cluster
from scale_slots import PROFILE, config_for, run_trials, running_share, sleeping_slot

from kvray.candidate import DeviceType
from kvray.environment import changed_environment
from kvray.record import TrialResult, TrialStatus
from kvray.store.manifest import SweepManifest
from kvray.sweep.outlook import Outlook
from kvray.sweep.quiet import quiet_ray
from kvray.sweep.session import RaySession
from kvray.trial.position import PositionBoard
from kvray.trial.spec import TrialSpec
from kvray.tuning.preview import Preview

SLOT_COUNTS = (1, 4, 16, 64)
GPUS = 64
MOST_NODES = 16
SLEEP_S = 5.0
TRIAL = "fake:=slow@load,=slow@measure"
"""Sleeps 4 s; its generations take the rest of about 5 s."""
NODE_MIB, SLOT_MIB = 350, 260
"""What a node's servers take, and a slot's actor with its fork server."""
BESIDE_MIB = 2048
RESULTS_PER_TRIAL = 3
DRIVER_SLOTS = 2
for _module in (scale_slots, sys.modules[__name__]):
    cloudpickle.register_pickle_by_value(_module)  # Ray's workers cannot import from this folder


class Ear:
    """Hears of everything that a sweep tells; subclasses take what they need."""

    def measuring_device(self) -> None: ...  # noqa: D102

    def checking_code(self) -> None: ...  # noqa: D102

    def search_started(  # noqa: D102
        self,
        preview: Preview,
        manifest: SweepManifest,
        recorded: Sequence[TrialResult],
        positions: PositionBoard | None = None,
    ) -> None: ...

    def trial_started(self, spec: TrialSpec) -> None: ...  # noqa: D102

    def rung_finished(self, result: TrialResult) -> None: ...  # noqa: D102

    def trial_lost(self, spec: TrialSpec) -> None: ...  # noqa: D102

    def trial_finished(self, result: TrialResult) -> None: ...  # noqa: D102

    def outlook_changed(self, outlook: Outlook) -> None: ...  # noqa: D102


def measure_efficiency(quick: bool) -> dict[str, Figure]:
    """The part `efficiency`: sleeping and real trials on the same slots, one number of slots after the other."""
    counts = (1, 4) if quick else SLOT_COUNTS
    window_s = 8.0 if quick else 10.0
    nodes, known_slots = _layout(max(counts))
    figures: dict[str, Figure] = {"efficiency_nodes": nodes, "efficiency_gpus_per_node": max(counts) // nodes}
    begun = time.monotonic()
    with _cluster(nodes, max(counts) // nodes) as (address, log):
        figures["cluster_start_s"] = round(time.monotonic() - begun, 1)
        length_s = 0.0
        for slots in (one for one in counts if one <= known_slots):
            watch = _watched(slots, window_s, address, log)
            length_s = length_s or watch.median_s(1)
            for stage, name, alone_s in ((0, f"{slots}_sleep", SLEEP_S), (1, f"{slots}", length_s)):
                figures[f"efficiency_{name}"] = round(watch.share(stage, length_s=alone_s), 4)
            figures[f"slots_up_{slots}_s"] = round(watch.up_s, 1)
            figures[f"trial_{slots}_s"] = round(watch.median_s(1), 2)
    return {**figures, "trial_alone_s": round(length_s, 2), "sleep_trial_s": SLEEP_S}


def _layout(slots: int) -> tuple[int, int]:
    """Nodes, and slots of them that this machine's memory holds."""
    free_mib = psutil.virtual_memory().available / 2**20 - BESIDE_MIB
    wanted = max(1, min(MOST_NODES, slots // 4))
    nodes = next((one for one in (wanted, 4, 1) if one <= wanted and one * NODE_MIB + slots * SLOT_MIB < free_mib), 1)
    return nodes, max(1, min(slots, int((free_mib - nodes * NODE_MIB) // SLOT_MIB)))


@contextmanager
def _cluster(nodes: int, gpus: int) -> Iterator[tuple[str, Path]]:
    """Ray nodes of this machine, each with GPUs in name only; yields their address and a file for what Ray says."""
    with (
        tempfile.TemporaryDirectory(prefix="kvray-scale-", ignore_cleanup_errors=True) as folder,
        changed_environment({"RAY_worker_niceness": "0", "KVRAY_CACHE": f"{folder}/cache"}),
        quiet_ray(log := Path(folder) / "ray.log"),
    ):
        node = {"num_cpus": 2 * gpus, "num_gpus": gpus, "object_store_memory": 80 * 2**20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        try:
            for _ in range(nodes - 1):
                cluster.add_node(**node)
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            cluster.wait_for_nodes()
            yield str(cluster.address), log
        finally:
            ray.shutdown()
            cluster.shutdown()


def _watched(slots: int, window_s: float, address: str, log: Path) -> Watch:
    """A sweep on `slots`, until both kinds of trials were watched for `window_s`."""
    with tempfile.TemporaryDirectory(dir=log.parent, ignore_cleanup_errors=True) as folder:
        all_up, real_from = Path(folder) / "all_up", Path(folder) / "real"
        watch = Watch(slots, window_s, all_up=all_up, real_from=real_from)
        config = config_for(10_000, TRIAL, PROFILE, DeviceType.CUDA, address=address, folder=Path(folder))
        with RaySession(address=address, scratch=Path(folder)) as session:
            slot = sleeping_slot(SLEEP_S, all_up=all_up, real_from=real_from)
            run_trials(config, session, slots=slots, slot=slot, observer=watch, scratch=Path(folder))
    return watch


class Watch(Ear):
    """Watches all slots at work: first while their trials sleep, then while they start processes.

    Attributes:
        up_s: from the first trial's start until every slot had one.
        spans: start and end of every trial, by stage.
    """

    def __init__(self, slots: int, window_s: float, *, all_up: Path, real_from: Path) -> None:
        self.up_s = 0.0
        self.spans: list[list[tuple[float, float]]] = [[], []]
        self._slots = slots
        self._window_s = window_s
        self._all_up = all_up
        self._real_from = real_from
        self._running: set[str] = set()
        self._windows: list[tuple[float, float]] = []
        self._first_s: float | None = None
        self._begin_s: float | None = None
        self._awaited: set[str] | None = None

    def share(self, stage: int, *, length_s: float) -> float:
        """The efficiency of a stage: ideal time over real time."""
        begin, end = self._windows[stage]
        return running_share(self.spans[stage], begin, end, slots=self._slots, length_s=length_s)

    def median_s(self, stage: int) -> float:
        """What a trial of a stage took."""
        return statistics.median(end - start for start, end in self.spans[stage])

    def trial_started(self, spec: TrialSpec) -> None:
        """Begins the window of a stage when every slot is at work on its second trial of it."""
        now = time.time()
        self._first_s = self._first_s or now
        self._running.add(spec.trial_id)
        if len(self._running) < self._slots:
            return
        if not self._all_up.exists():
            self._all_up.touch()
            self.up_s = now - self._first_s
        if self._begin_s is None and self._awaited is None and len(self.spans[len(self._windows)]) >= self._slots:
            self._begin_s = now

    def trial_finished(self, result: TrialResult) -> None:
        """Ends the window once it is long enough, and waits for what ran at that moment."""
        record, now = result.record, time.time()
        self._running.discard(record.trial_id)
        if record.status is not TrialStatus.OK or record.started_at is None or record.ended_at is None:
            return
        is_real = record.cache_class is not None
        self.spans[is_real].append((record.started_at.timestamp(), record.ended_at.timestamp()))
        if self._begin_s is not None and now - self._begin_s >= self._window_s:
            self._windows.append((self._begin_s, now))
            self._begin_s, self._awaited = None, set(self._running)
            if len(self._windows) == 1:
                self._real_from.touch()
        if self._awaited is not None:
            self._awaited.discard(record.trial_id)
            if not self._awaited:
                self._awaited = None
                if len(self._windows) == len(self.spans):
                    raise KeyboardInterrupt


def measure_driver(quick: bool) -> dict[str, Figure]:
    """The part `driver`: kvray's driver on slots that do not even sleep, then bare Tune on as many."""
    trials, bare_trials = (500, 500) if quick else (10_000, 2_000)
    with (
        tempfile.TemporaryDirectory(prefix="kvray-scale-", ignore_cleanup_errors=True) as folder,
        changed_environment({"KVRAY_CACHE": f"{folder}/cache"}),
        quiet_ray(Path(folder) / "ray.log"),
        RaySession(address=None, scratch=Path(folder)) as session,
    ):
        session.nodes()
        config = config_for(trials, "fake:ok", PROFILE, DeviceType.CPU, address=None, folder=Path(folder))
        bare_s, bare_cpu_s, bare_growth = _bare_tune(bare_trials, Path(folder))
        pace = Pace(trials)
        prepared = run_trials(
            config, session, slots=DRIVER_SLOTS, slot=sleeping_slot(0.0), observer=pace, scratch=Path(folder)
        )
    if pace.ended != trials or len(prepared.keeper.results) != trials:
        raise SystemExit(f"{pace.ended} of {trials} trials ended: the figures mean nothing")
    return {
        "driver_ms_per_trial": round(pace.ms_per_trial(), 2),
        "bare_tune_ms_per_trial": round(1e3 * bare_s, 2),
        "driver_over_bare_tune": round(pace.ms_per_trial() / (1e3 * bare_s), 3),
        "driver_ms_per_result": round(pace.ms_per_trial() / RESULTS_PER_TRIAL, 2),
        "driver_cpu_ms_per_trial": round(pace.cpu_ms_per_trial(), 2),
        "bare_tune_cpu_ms_per_trial": round(1e3 * bare_cpu_s, 2),
        "driver_ms_first_tenth": round(pace.ms_per_trial(0, 1), 2),
        "driver_ms_last_tenth": round(pace.ms_per_trial(9, 10), 2),
        "driver_rss_growth_mib": round(pace.rss_mib[10] - pace.rss_mib[1], 1),
        "driver_rss_mib": round(pace.rss_mib[10], 1),
        "bare_tune_rss_growth_kib_per_trial": round(bare_growth / 1024 / bare_trials, 1),
        "driver_trials": trials,
        "bare_tune_trials": bare_trials,
        "driver_slots": DRIVER_SLOTS,
    }


class Pace(Ear):
    """When each tenth of the trials had ended, and what the driver's process held by then."""

    def __init__(self, trials: int) -> None:
        self.ended = 0
        self.rss_mib: list[float] = []
        self._tenth = trials // 10
        self._moments: list[tuple[float, float]] = []

    def trial_finished(self, result: TrialResult) -> None:
        """Looks at clock and memory at the first trial, and after every tenth."""
        del result
        self.ended += 1
        if self.ended == 1 or self.ended % self._tenth == 0:
            self._moments.append((time.perf_counter(), time.process_time()))
            self.rss_mib.append(psutil.Process().memory_info().rss / 2**20)

    def ms_per_trial(self, begin: int = 0, end: int = 10) -> float:
        """The trials between two tenths."""
        return self._per_trial(0, begin, end)

    def cpu_ms_per_trial(self) -> float:
        """What of it is time that the driver's own process computes."""
        return self._per_trial(1, 0, 10)

    def _per_trial(self, clock: int, begin: int, end: int) -> float:
        passed = self._moments[end][clock] - self._moments[begin][clock]
        return 1e3 * passed / (self._tenth * (end - begin))


class Empty(tune.Trainable):
    """Returns as many results as a trial of kvray's, and nothing in them."""

    def setup(self, config: dict[str, Any]) -> None:
        """Nothing."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Nothing to reset."""
        del new_config
        return True

    def step(self) -> dict[str, Any]:
        """One result."""
        return {"value": 0.0, "done": self.iteration == RESULTS_PER_TRIAL - 1}


class Moments(tune.Callback):
    """When the first trial had ended, and when the latest."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float, int]] = []

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """One more."""
        del iteration, trials, trial, info
        self.ends.append((time.perf_counter(), time.process_time(), psutil.Process().memory_info().rss))


def _bare_tune(trials: int, folder: Path) -> tuple[float, float, int]:
    """Seconds and CPU seconds per trial, and bytes by which the process grew."""
    moments = Moments()
    tuner = tune.Tuner(
        tune.with_resources(Empty, {"CPU": 1}),
        param_space={"number": tune.grid_search(list(range(trials)))},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(
            name="bare",
            storage_path=str(folder),
            verbose=0,
            callbacks=[moments],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    tuner.fit()
    first, last = moments.ends[0], moments.ends[-1]
    each = trials - 1
    return (last[0] - first[0]) / each, (last[1] - first[1]) / each, last[2] - first[2]
