"""`BatchPool`: the sweeps of a batch over one pool of slots, in one Ray.

A thread looks at the models and fetches their weights, one after the other, while the sweeps that are ready measure.
Another thread writes up each sweep that has ended.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from typing_extensions import override

from kvray.config import TuneConfig
from kvray.errors import KvrayError, SweepError
from kvray.files.redaction import redact
from kvray.probes.contention import QuietWait
from kvray.store.batch_manifest import BatchStatus, BatchSweep
from kvray.store.parquet import ResultsStore
from kvray.sweep.batch import Newcomers, QueuedSweep
from kvray.sweep.driver import run_sweep
from kvray.sweep.imports import engine_folders
from kvray.sweep.quiet import quiet_ray
from kvray.sweep.remote_device import NodeFacts, ask_nodes
from kvray.sweep.session import RaySession
from kvray.sweep.slot_plan import SlotPlan
from kvray.tuning.batch_budget import BatchBudget
from kvray.tuning.batch_words import reason_of
from kvray.tuning.begun_sweep import BatchPlace, BegunSweep, SweepView, begin_sweep, written_up
from kvray.tuning.each_type import each_type
from kvray.tuning.ready_sweep import ReadySweep, engines_first, look_at, named_adapters
from kvray.tuning.resolved import CheckedRequest
from kvray.tuning.share import slots_on
from kvray.tuning.surroundings import contention_noticed, passing_log

T = TypeVar("T")
KeepStatus = Callable[[BatchSweep, BatchStatus, str | None], None]
OUT_OF_BUDGET = "the budget ended before its turn"


class _NewcomersOfType(Newcomers):
    """The sweeps of a pool that have something to measure on one type of GPU."""

    def __init__(self, pool: BatchPool, gpu_type: str | None) -> None:
        self._pool = pool
        self._gpu_type = gpu_type

    @property
    @override
    def is_over(self) -> bool:
        return self._pool.is_over_on(self._gpu_type)

    @override
    def next_sweep(self) -> QueuedSweep | None:
        return self._pool.next_sweep_on(self._gpu_type)


class BatchPool:
    """Measures sweeps until each has a status that `keep` is told of, from several threads.

    Args:
        sweeps: what is to be measured.
        configs: what each sweep asks, by run id, the options of the batch included.
        starting: called once before the first model is looked at. What fails before it is no model's fault.
        keep_log: is given what Ray and libraries said.
        view: makes an observer of each sweep that begins.
        farewell: what to say if Ray breaks down and takes this process with it.
    """

    def __init__(
        self,
        sweeps: Sequence[BatchSweep],
        *,
        batch_id: str,
        store: ResultsStore,
        configs: Mapping[str, TuneConfig],
        budget: BatchBudget,
        starting: Callable[[], None],
        keep: KeepStatus,
        keep_log: Callable[[str], None],
        view: SweepView | None = None,
        farewell: Callable[[SweepError], str] = str,
    ) -> None:
        self._sweeps, self._start_after = engines_first(sweeps, configs)
        self._batch_id = batch_id
        self._store = store
        self._configs = configs
        self._budget = budget
        self._starting = starting
        self._keep = keep
        self._keep_log = keep_log
        self._view = view
        self._farewell = farewell
        self._changed = threading.Condition()
        self._seen = 0
        self._ready: list[tuple[BatchSweep, tuple[ReadySweep, ...]]] = []
        self._begun: dict[str, BegunSweep] = {}
        self._joining: list[QueuedSweep] = []
        """Shares of sweeps that have begun, which the slots of their type have not asked for yet."""
        self._open_shares: Counter[str] = Counter()
        self._share_errors: dict[str, Exception] = {}
        self._failure: BaseException | None = None
        self._is_looking = False
        self._is_stopping = False
        self._nodes: dict[tuple[str, ...], tuple[NodeFacts, ...]] = {}
        self._place: BatchPlace | None = None
        self._quiet: QuietWait | None = None
        self._surroundings = ExitStack()
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kvray-write-up")

    def run(self) -> None:
        """Measure all that can be measured.

        Raises:
            KeyboardInterrupt: the user stopped it; what was measured is written up.
            SweepError: the cluster cannot be joined, or has nothing to measure on; `starting` was not called.
        """
        try:
            with self._surroundings:
                if not self._is_on_cluster:
                    self._start_looking()
                while self._has_one_to_begin():
                    self._measure_a_round()
        finally:
            self._is_stopping = True
            self._writer.shutdown()

    def is_over_on(self, gpu_type: str | None) -> bool:
        """Whether no further sweep will begin on that type of GPU."""
        with self._changed:
            waits = any(_is_for(gpu_type, ready) for _, ready in self._ready)
            return self._has_seen_all and not waits and all(one.gpu_type != gpu_type for one in self._joining)

    def next_sweep_on(self, gpu_type: str | None) -> QueuedSweep | None:
        """What has begun for that type of GPU and was not asked for, else the largest sweep that is ready: it begins
        now, on all types."""
        while (share := self._joining_on(gpu_type)) is None:
            if (one := self._taken(partial(_is_for, gpu_type))) is None:
                return None
            sweep, ready = one
            if self._budget.is_spent:
                self._end(sweep, BatchStatus.WAITING, OUT_OF_BUDGET)
            elif (begun := self._guarded(sweep, partial(self._begin, sweep, ready))) is not None:
                queued = begun.prepared.queued
                self._open_shares[sweep.run_id] = len(queued)
                self._joining += [
                    replace(
                        each,
                        observer=self._budget.charged(each.observer),
                        ended=partial(self._share_ended, begun),
                    )
                    for each in queued
                ]
        return share

    def _joining_on(self, gpu_type: str | None) -> QueuedSweep | None:
        found = next((one for one in self._joining if one.gpu_type == gpu_type), None)
        if found is not None:
            self._joining.remove(found)
        return found

    def _share_ended(self, begun: BegunSweep, error: Exception | None) -> None:
        run_id = begun.sweep.run_id
        self._open_shares[run_id] -= 1
        if error is not None:
            self._share_errors.setdefault(run_id, error)
        if not self._open_shares[run_id]:
            self._ended(begun, self._share_errors.get(run_id))

    @property
    def _is_on_cluster(self) -> bool:
        return any(config.address is not None for config in self._configs.values())

    @property
    def _has_seen_all(self) -> bool:
        return self._seen >= len(self._sweeps) or self._failure is not None

    def _start_looking(self) -> None:
        self._starting()
        self._is_looking = True
        threading.Thread(target=self._look_at_all, name="kvray-look", daemon=True).start()

    def _look_at_all(self) -> None:
        """The background thread: each sweep becomes ready, or is told of as failed."""
        for sweep in self._sweeps:
            if self._is_stopping:
                return
            found: tuple[ReadySweep, ...] | None = None
            try:
                if self._budget.is_spent:
                    self._end(sweep, BatchStatus.WAITING, OUT_OF_BUDGET)
                else:
                    found = self._guarded(sweep, partial(self._looked_at, sweep))
            except BaseException as error:  # noqa: BLE001  (raised in the thread that measures)
                self._failure = error
            with self._changed:
                self._seen += 1
                if found is not None:
                    self._ready.append((sweep, found))
                self._changed.notify_all()
            if self._failure is not None:
                return

    def _looked_at(self, sweep: BatchSweep) -> tuple[ReadySweep, ...]:
        """For each type of GPU."""
        config = self._configs[sweep.run_id]
        with self._changed:
            is_quiet = self._place is None and not self._may_start
        before_rates = self._notice if is_quiet else None
        nodes = self._nodes.get(config.engines) or (None,)
        return tuple(each_type(nodes, lambda node: look_at(config, self._store, node=node, before_rates=before_rates)))

    def _notice(self, checked: CheckedRequest) -> None:
        """Look who else uses the device, once, before anything is measured on it."""
        if self._quiet is None:
            noticed = contention_noticed(checked.config, checked.device.device, self._batch_id)
            self._quiet = self._surroundings.enter_context(noticed)

    @property
    def _may_start(self) -> bool:
        """Rates of a device are measured while nothing runs on it: by the first sweep of each engine."""
        return bool(self._ready) and self._seen >= self._start_after

    def _has_one_to_begin(self) -> bool:
        """Waits until that is known."""
        with self._changed:
            if not (self._is_looking or self._has_seen_all):
                return True  # on a cluster its nodes are asked first
            while not (self._has_seen_all or self._may_start):
                self._changed.wait(1.0)
            if self._failure is not None:
                raise self._failure
            return bool(self._ready)

    def _measure_a_round(self) -> None:
        """Measure until all have ended, or Ray breaks down: what had not begun then is another round's."""
        try:
            with self._session() as (ray, folder):
                if not self._is_looking:
                    self._ask_nodes(ray)
                    self._start_looking()
                if self._has_one_to_begin():
                    self._measure(ray, folder)
        except KeyboardInterrupt:
            self._is_stopping = True
            for begun in tuple(self._begun.values()):
                self._ended(begun, None, interrupted=not begun.prepared.is_over)
            raise
        except Exception as error:  # noqa: BLE001  (the boundary of those that had begun: the others go on)
            self._broke_down(error)

    def _measure(self, ray: RaySession, folder: Path) -> None:
        self._place = BatchPlace(ray=ray, folder=folder, slots=self._slots(ray))
        first, *others = self._place.slots.values()
        self._budget.slots = sum(one.slots for one in (first, *others))
        self._joining.clear()
        before_launch = self._quiet.wait if self._quiet else None
        try:
            run_sweep(
                ray=ray,
                slots=first,
                further_slots=others,
                scratch=folder,
                newcomers=partial(_NewcomersOfType, self),
                before_launch=before_launch,
            )
        finally:
            for begun in self._begun.values():  # while Ray is there
                begun.watching.close()

    def _broke_down(self, error: Exception) -> None:
        """All that has begun fails; if nothing has, that would be so for what is ready, too.

        What fails before any model is looked at is raised.
        """
        if not self._is_looking:
            raise error
        if not self._begun:
            while (one := self._taken()) is not None:
                self._guarded(one[0], partial(_raise, error))
        for begun in tuple(self._begun.values()):
            self._ended(begun, error)

    @contextmanager
    def _session(self) -> Iterator[tuple[RaySession, Path]]:
        configs = list(self._configs.values())
        with passing_log() as log:
            try:
                with (
                    quiet_ray(log),
                    RaySession(
                        address=configs[0].address,
                        scratch=log.parent,
                        imports=engine_folders(*named_adapters(configs)),
                        last_words=self._farewell,
                    ) as ray,
                ):
                    yield ray, log.parent
            finally:
                self._place = None
                if self._is_looking and log.is_file():
                    self._keep_log(redact(log.read_text(encoding="utf-8", errors="replace")))

    def _ask_nodes(self, ray: RaySession) -> None:
        ray.nodes()
        for config in self._configs.values():
            if config.engines not in self._nodes and (adapters := named_adapters([config])):
                self._nodes[config.engines] = ask_nodes(
                    adapters,
                    device=config.device,
                    gpu_type=config.gpu_type,
                    check_alive=ray.check_alive,
                    slots=config.slots_beside,
                )

    def _slots(self, ray: RaySession) -> dict[str | None, SlotPlan]:
        """By type of GPU: all sweeps of a batch may use the same ones."""
        _, (first, *_) = self._ready[0]
        types = list(dict.fromkeys(one.gpu_type for nodes in self._nodes.values() for one in nodes)) or [None]
        nodes, device = ray.nodes(), first.preview.device.device

        def slots(gpu_type: str | None) -> SlotPlan:
            return slots_on(nodes, first.config, device, gpu_type=gpu_type, is_only_type=len(types) == 1)

        return {one.gpu_type: one for one in each_type(types, slots)}

    def _taken(
        self, fits: Callable[[Sequence[ReadySweep]], bool] = lambda _: True
    ) -> tuple[BatchSweep, tuple[ReadySweep, ...]] | None:
        """The largest sweep that is ready and `fits`."""
        if self._failure is not None:
            raise self._failure
        with self._changed:
            found = [one for one in self._ready if fits(one[1])]
            largest = max(found, key=lambda one: one[1][0].preview.baseline_mib, default=None)
            if largest is not None:
                self._ready.remove(largest)
            return largest

    def _begin(self, sweep: BatchSweep, ready: tuple[ReadySweep, ...]) -> BegunSweep | None:
        """`None` where it ended at once."""
        if self._place is None:
            raise RuntimeError("nothing is there to measure on")
        begun = self._begun[sweep.run_id] = begin_sweep(
            sweep, ready, self._place, store=self._store, budget=self._budget, view=self._view
        )
        # From here on Ctrl-C ends it like any sweep that measures.
        try:
            self._keep(sweep, BatchStatus.MEASURING, None)
            begun.prepared.start()
        except Exception as error:  # noqa: BLE001  (the boundary of one sweep: the others of a night go on)
            self._ended(begun, error)
            return None
        return begun

    def _ended(self, begun: BegunSweep, error: Exception | None, *, interrupted: bool = False) -> None:
        """Has the sweep written up, while others measure. It counts as begun until then: Ctrl-C may come meanwhile."""
        begun.watching.close()
        self._budget.ended(begun.sweep.run_id)
        self._writer.submit(
            self._guarded,
            begun.sweep,
            lambda: self._keep(begun.sweep, *written_up(begun, error, interrupted=interrupted)),
        )
        del self._begun[begun.sweep.run_id]

    def _guarded(self, sweep: BatchSweep, do: Callable[[], T]) -> T | None:
        """What `do` returns; an error becomes the sweep's status."""
        try:
            return do()
        except KvrayError as error:
            self._end(sweep, BatchStatus.FAILED, reason_of(error))
        except Exception as error:  # noqa: BLE001  (the boundary of one sweep: the others of a night go on)
            self._end(sweep, BatchStatus.ERROR, f"{type(error).__name__}: {reason_of(error)}")
        return None

    def _end(self, sweep: BatchSweep, status: BatchStatus, reason: str) -> None:
        self._budget.ended(sweep.run_id)
        self._keep(sweep, status, reason)


def _raise(error: Exception) -> None:
    raise error


def _is_for(gpu_type: str | None, ready: Sequence[ReadySweep]) -> bool:
    return any(one.gpu_type == gpu_type for one in ready)
