"""`BatchPool`: the sweeps of a batch over one pool of slots, in one Ray.

What is ready waits in a `BatchQueue`. A thread writes up each sweep that has ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from typing_extensions import override

from kvray.config import TuneConfig
from kvray.errors import SweepError
from kvray.files.redaction import redact
from kvray.store.batch_manifest import BatchStatus, BatchSweep
from kvray.store.parquet import ResultsStore
from kvray.sweep.batch import Newcomers, QueuedSweep
from kvray.sweep.driver import run_sweep
from kvray.sweep.imports import engine_folders
from kvray.sweep.quiet import quiet_ray
from kvray.sweep.remote_device import ask_nodes
from kvray.sweep.session import RaySession
from kvray.sweep.slot_plan import SlotPlan
from kvray.tuning.batch_budget import BatchBudget
from kvray.tuning.batch_queue import BatchQueue, BatchStatuses, KeepStatus, Waiting
from kvray.tuning.begun_sweep import BatchPlace, BegunSweep, SweepView, begin_sweep, written_up
from kvray.tuning.each_type import each_type
from kvray.tuning.ready_sweep import named_adapters
from kvray.tuning.share import slots_on
from kvray.tuning.surroundings import passing_log


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
        self._store = store
        self._configs = configs
        self._budget = budget
        self._starting = starting
        self._keep = keep
        self._keep_log = keep_log
        self._view = view
        self._farewell = farewell
        self._begun: dict[str, BegunSweep] = {}
        self._joining: list[QueuedSweep] = []
        """Shares of sweeps that have begun, which the slots of their type have not asked for yet."""
        self._open_shares: Counter[str] = Counter()
        self._share_errors: dict[str, Exception] = {}
        self._place: BatchPlace | None = None
        self._surroundings = ExitStack()
        self._statuses = BatchStatuses(keep, budget)
        self._queue = BatchQueue(
            sweeps,
            batch_id=batch_id,
            store=store,
            configs=configs,
            statuses=self._statuses,
            surroundings=self._surroundings,
            is_measuring=lambda: self._place is not None,
        )
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
                while self._queue.has_one():
                    self._measure_a_round()
        finally:
            self._queue.stop()
            self._writer.shutdown()

    def is_over_on(self, gpu_type: str | None) -> bool:
        """Whether no further sweep will begin on that type of GPU."""
        is_none_joining = all(one.gpu_type != gpu_type for one in self._joining)
        return is_none_joining and self._queue.has_seen_all_for(gpu_type)

    def next_sweep_on(self, gpu_type: str | None) -> QueuedSweep | None:
        """What has begun for that type of GPU and was not asked for, else the largest sweep that is ready: it begins
        now, on all types."""
        while (share := self._joining_on(gpu_type)) is None:
            if (one := self._queue.take(lambda waiting: waiting.is_for(gpu_type))) is None:
                return None
            sweep = one.sweep
            if self._statuses.left_out(sweep):
                continue
            if (begun := self._statuses.guarded(sweep, partial(self._begin, one))) is not None:
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

    def _start_looking(self) -> None:
        self._starting()
        self._queue.start()

    def _measure_a_round(self) -> None:
        """Measure until all have ended, or Ray breaks down: what had not begun then is another round's."""
        try:
            with self._session() as (ray, folder):
                if not self._queue.is_looking:
                    self._ask_nodes(ray)
                    self._start_looking()
                if self._queue.has_one():
                    self._measure(ray, folder)
        except KeyboardInterrupt:
            self._queue.stop()
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
        before_launch = self._queue.quiet.wait if self._queue.quiet else None
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
        if not self._queue.is_looking:
            raise error
        if not self._begun:
            while (one := self._queue.take()) is not None:
                self._statuses.guarded(one.sweep, partial(_raise, error))
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
                if self._queue.is_looking and log.is_file():
                    self._keep_log(redact(log.read_text(encoding="utf-8", errors="replace")))

    def _ask_nodes(self, ray: RaySession) -> None:
        ray.nodes()
        for config in self._configs.values():
            if config.engines not in self._queue.nodes and (adapters := named_adapters([config])):
                self._queue.nodes[config.engines] = ask_nodes(
                    adapters,
                    device=config.device,
                    gpu_type=config.gpu_type,
                    check_alive=ray.check_alive,
                    slots=config.slots_beside,
                )

    def _slots(self, ray: RaySession) -> dict[str | None, SlotPlan]:
        """By type of GPU: all sweeps of a batch may use the same ones."""
        first = self._queue.first()
        types = list(dict.fromkeys(one.gpu_type for nodes in self._queue.nodes.values() for one in nodes)) or [None]
        nodes, device = ray.nodes(), first.preview.device.device

        def slots(gpu_type: str | None) -> SlotPlan:
            return slots_on(nodes, first.config, device, gpu_type=gpu_type, is_only_type=len(types) == 1)

        return {one.gpu_type: one for one in each_type(types, slots)}

    def _begin(self, waiting: Waiting) -> BegunSweep | None:
        """`None` where it ended at once."""
        if self._place is None:
            raise RuntimeError("nothing is there to measure on")
        sweep = waiting.sweep
        begun = self._begun[sweep.run_id] = begin_sweep(
            sweep, waiting.ready, self._place, store=self._store, budget=self._budget, view=self._view
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
            self._statuses.guarded,
            begun.sweep,
            lambda: self._keep(begun.sweep, *written_up(begun, error, interrupted=interrupted)),
        )
        del self._begun[begun.sweep.run_id]


def _raise(error: Exception) -> None:
    raise error
