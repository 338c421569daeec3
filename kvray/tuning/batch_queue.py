"""`BatchQueue`: the sweeps of a batch until they begin.

A thread looks at the models and fetches their weights, one after the other, while the sweeps that are ready measure.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple, TypeVar

from kvray.config import TuneConfig
from kvray.errors import KvrayError
from kvray.probes.contention import QuietWait
from kvray.store.batch_manifest import BatchStatus, BatchSweep
from kvray.store.parquet import ResultsStore
from kvray.sweep.remote_device import NodeFacts
from kvray.tuning.batch_budget import BatchBudget
from kvray.tuning.batch_words import reason_of
from kvray.tuning.each_type import each_type
from kvray.tuning.ready_sweep import ReadySweep, engines_first, look_at
from kvray.tuning.resolved import CheckedRequest
from kvray.tuning.surroundings import contention_noticed

T = TypeVar("T")
KeepStatus = Callable[[BatchSweep, BatchStatus, str | None], None]
_OUT_OF_BUDGET = "the budget ended before its turn"


class BatchStatuses:
    """Tells `keep` how sweeps end that are not written up. Several threads use it."""

    def __init__(self, keep: KeepStatus, budget: BatchBudget) -> None:
        self._keep = keep
        self._budget = budget

    def guarded(self, sweep: BatchSweep, do: Callable[[], T]) -> T | None:
        """What `do` returns; an error becomes the sweep's status."""
        try:
            return do()
        except KvrayError as error:
            self._end(sweep, BatchStatus.FAILED, reason_of(error))
        except Exception as error:  # noqa: BLE001  (the boundary of one sweep: the others of a night go on)
            self._end(sweep, BatchStatus.ERROR, f"{type(error).__name__}: {reason_of(error)}")
        return None

    def left_out(self, sweep: BatchSweep) -> bool:
        """Whether the budget is spent, so that the sweep must wait for another attempt; that is kept."""
        if self._budget.is_spent:
            self._end(sweep, BatchStatus.WAITING, _OUT_OF_BUDGET)
            return True
        return False

    def _end(self, sweep: BatchSweep, status: BatchStatus, reason: str) -> None:
        self._budget.ended(sweep.run_id)
        self._keep(sweep, status, reason)


class Waiting(NamedTuple):
    """A sweep whose models were looked at: `ready` has it for each type of GPU."""

    sweep: BatchSweep
    ready: tuple[ReadySweep, ...]

    def is_for(self, gpu_type: str | None) -> bool:
        """Whether it has something to measure on that type of GPU."""
        return any(one.gpu_type == gpu_type for one in self.ready)


class BatchQueue:
    """The sweeps of a batch until they begin.

    Args:
        configs: what each sweep asks, by run id.
        surroundings: left when the batch has ended; holds what was noticed of other users of the device.
        is_measuring: whether something may be running on the device at this moment.

    Attributes:
        nodes: by the engines of a sweep, what the nodes of a cluster say of themselves.
        quiet: how trials wait for a quiet machine; `None` without such a wish.
    """

    def __init__(
        self,
        sweeps: Sequence[BatchSweep],
        *,
        batch_id: str,
        store: ResultsStore,
        configs: Mapping[str, TuneConfig],
        statuses: BatchStatuses,
        surroundings: ExitStack,
        is_measuring: Callable[[], bool],
    ) -> None:
        self._sweeps, self._start_after = engines_first(sweeps, configs)
        self._batch_id = batch_id
        self._store = store
        self._configs = configs
        self._statuses = statuses
        self._surroundings = surroundings
        self._is_measuring = is_measuring
        self._changed = threading.Condition()
        self._seen = 0
        self._waiting: list[Waiting] = []
        self._failure: BaseException | None = None
        self._is_stopping = False
        self.is_looking = False
        self.nodes: dict[tuple[str, ...], tuple[NodeFacts, ...]] = {}
        self.quiet: QuietWait | None = None

    def start(self) -> None:
        """Begin to look at the models."""
        self.is_looking = True
        threading.Thread(target=self._look_at_all, name="kvray-look", daemon=True).start()

    def stop(self) -> None:
        """Look at no further model."""
        self._is_stopping = True

    def has_one(self) -> bool:
        """Whether a sweep is ready, or one may still become so. Waits until that is known."""
        with self._changed:
            if not (self.is_looking or self._has_seen_all):
                return True  # on a cluster its nodes are asked first
            while not (self._has_seen_all or self._may_start):
                self._changed.wait(1.0)
            if self._failure is not None:
                raise self._failure
            return bool(self._waiting)

    def has_seen_all_for(self, gpu_type: str | None) -> bool:
        """Whether no further sweep will come from here for that type of GPU."""
        with self._changed:
            return self._has_seen_all and not any(one.is_for(gpu_type) for one in self._waiting)

    def first(self) -> ReadySweep:
        """The first sweep that is ready, on its first type of GPU. It stays here. Call it when `has_one`."""
        return self._waiting[0].ready[0]

    def take(self, fits: Callable[[Waiting], bool] = lambda _: True) -> Waiting | None:
        """Remove the largest sweep that is ready and `fits`; `None` where there is none."""
        if self._failure is not None:
            raise self._failure
        with self._changed:
            found = [one for one in self._waiting if fits(one)]
            largest = max(found, key=lambda one: one.ready[0].preview.baseline_mib, default=None)
            if largest is not None:
                self._waiting.remove(largest)
            return largest

    @property
    def _has_seen_all(self) -> bool:
        return self._seen >= len(self._sweeps) or self._failure is not None

    @property
    def _may_start(self) -> bool:
        """Rates of a device are measured while nothing runs on it: by the first sweep of each engine."""
        return bool(self._waiting) and self._seen >= self._start_after

    def _look_at_all(self) -> None:
        """The background thread: each sweep becomes ready, or is told of as failed."""
        for sweep in self._sweeps:
            if self._is_stopping:
                return
            found: tuple[ReadySweep, ...] | None = None
            try:
                if not self._statuses.left_out(sweep):
                    found = self._statuses.guarded(sweep, partial(self._looked_at, sweep))
            except BaseException as error:  # noqa: BLE001  (raised in the thread that measures)
                self._failure = error
            with self._changed:
                self._seen += 1
                if found is not None:
                    self._waiting.append(Waiting(sweep, found))
                self._changed.notify_all()
            if self._failure is not None:
                return

    def _looked_at(self, sweep: BatchSweep) -> tuple[ReadySweep, ...]:
        """For each type of GPU."""
        config = self._configs[sweep.run_id]
        with self._changed:
            is_quiet = not self._is_measuring() and not self._may_start
        before_rates = self._notice if is_quiet else None
        nodes = self.nodes.get(config.engines) or (None,)
        return tuple(each_type(nodes, lambda node: look_at(config, self._store, node=node, before_rates=before_rates)))

    def _notice(self, checked: CheckedRequest) -> None:
        """Look who else uses the device, once, before anything is measured on it."""
        if self.quiet is None:
            noticed = contention_noticed(checked.config, checked.device.device, self._batch_id)
            self.quiet = self._surroundings.enter_context(noticed)
