"""`TuningSearch`: the whole job in order: preview, sweep, records, analysis, plan, reports."""

from __future__ import annotations

import datetime as dt
import functools
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from kvray.config import TuneConfig
from kvray.engines.base import EngineAdapter
from kvray.engines.offline import offline_environment
from kvray.errors import KvrayError, SweepError, SweepInterruptedError
from kvray.extras import Extra
from kvray.probes.contention import QuietWait
from kvray.store.claim import Claim, claimed_sweep
from kvray.store.keeper import RecordKeeper
from kvray.store.parquet import ResultsStore
from kvray.sweep.driver import run_sweep
from kvray.sweep.imports import engine_folders
from kvray.sweep.metrics import exports_metrics
from kvray.sweep.quiet import quiet_ray
from kvray.sweep.remote_device import NodeFacts, ask_nodes
from kvray.sweep.samplers import check_search
from kvray.sweep.session import RaySession
from kvray.sweep.slot_plan import SlotPlan
from kvray.tuning.code_run import CodeRunner
from kvray.tuning.each_type import each_type
from kvray.tuning.engines import SweepEngines, preview_engines
from kvray.tuning.observer import SearchObserver
from kvray.tuning.outcome import broken_off, interruption, no_winner, warn_of_disturbance, write_up
from kvray.tuning.prepared import PreparedSweep, prepare_sweep
from kvray.tuning.preview import Preview
from kvray.tuning.ready_sweep import ReadySweep, made_ready, with_rates
from kvray.tuning.resolved import CheckedRequest, Resolved
from kvray.tuning.rest import Seen, with_rest
from kvray.tuning.result import TuneResult
from kvray.tuning.share import Share, share_of, slots_on
from kvray.tuning.surroundings import contention_noticed, log_kept_in, passing_log, warn_of_quota
from kvray.tuning.watching import MetricsObserver

T = TypeVar("T")
BreakOff = Callable[[], KvrayError]
"""Makes the error of a sweep that was broken off. It says where the records are, so it is called when they are."""


def _offline_where_asked(method: Callable[[TuningSearch], T]) -> Callable[[TuningSearch], T]:
    @functools.wraps(method)
    def wrapped(self: TuningSearch) -> T:
        with offline_environment(enabled=self._config.offline):
            return method(self)

    return wrapped


@dataclass(frozen=True, kw_only=True)
class _Cluster:
    """The Ray cluster that a sweep was told of, joined.

    Attributes:
        folder: the sweep's temporary one.
        nodes: for each type of GPU that is there, what a node that will measure says of itself.
    """

    ray: RaySession
    folder: Path
    nodes: tuple[NodeFacts, ...]


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What is asked for on one type of GPU, or on the one device that there is.

    Attributes:
        engines: those that can take part there.
        node: of the cluster, where there is one.
        checked: what is asked of each engine.
    """

    engines: SweepEngines
    checked: tuple[CheckedRequest, ...]
    node: NodeFacts | None = None


class TuningSearch:
    """Measures the configurations of one model and decides.

    Args:
        config: what to tune.
        adapter: the engine, or several, the baseline's first; by default those that `config.engine` names.
        observer: is told of every trial.
        arguments: what a user typed after `kvray tune`, kept without secrets to tell how to resume.
        ray: a Ray that runs already and goes on afterwards; by default the sweep has one of its own.
        run_id: id of a new sweep; by default one is made.
    """

    def __init__(
        self,
        *,
        config: TuneConfig,
        adapter: EngineAdapter | Sequence[EngineAdapter] | None = None,
        observer: SearchObserver | None = None,
        arguments: Sequence[str] = (),
        ray: RaySession | None = None,
        run_id: str | None = None,
    ) -> None:
        self._config = config
        self._adapter = adapter
        self._observer = observer
        self._arguments = tuple(arguments)
        self._ray = ray
        self._run_id = run_id
        self._keeper: RecordKeeper | None = None
        self._quiet: QuietWait | None = None
        self._written_up: TuneResult | None = None

    @property
    def written_up(self) -> TuneResult | None:
        """What plan and reports say of the sweep, also of one that was broken off; `None` before they are written."""
        return self._written_up

    @_offline_where_asked
    def preview(self) -> Preview:
        """What would be measured; nothing is started or written. A cluster is asked what its nodes have.

        Raises:
            KvrayError: the model, the engine or the profile cannot be used, or no candidate is left.
        """
        recorded = self._recorded_pythons(ResultsStore(self._config.output_dir))
        if self._config.address is None:
            return self._previewed([self._look(recorded)])
        with self._session(passing_log(), self._engines()) as (ray, _):
            return self._previewed(each_type(self._asked_nodes(ray), partial(self._look, recorded)))

    def _previewed(self, looks: Sequence[_Look]) -> Preview:
        check_search(self._config.search)
        warn_of_quota(self._config)
        previews = each_type(looks, self._preview_of)
        if self._config.resume is not None:
            previews = with_rest(previews, self._config)
        first, *others = (one.preview for one in previews)
        return replace(first, other_types=tuple(others))

    def run(self) -> TuneResult:
        """Measure; leave records, plan, snippet and reports in `config.output_dir`.

        Raises:
            KvrayError: before any trial for what can be known before; afterwards `AllTrialsFailedError`,
                `LimitsMissedError`, or `SweepInterruptedError` when the user pressed Ctrl-C. Records are kept in any
                case.
        """
        result = self.outcome()
        if not result.analysis.ranking.entries:
            raise no_winner(result)
        return result

    @_offline_where_asked
    def outcome(self) -> TuneResult:
        """Like `run`, and returns a sweep in which nothing can be ranked, too."""
        self._keeper = self._written_up = None
        try:
            return self._run()
        except KeyboardInterrupt:
            raise self.interrupted() from None

    def interrupted(self) -> SweepInterruptedError:
        """What to say of an interruption at this moment: where the records are, and how to go on."""
        if self._keeper is not None:
            return interruption(self._keeper)
        return SweepInterruptedError(
            "Interrupted before anything was measured.",
            hint=self._config.resume and f"What sweep {self._config.resume} had measured before is kept.",
        )

    def _run(self) -> TuneResult:
        config, store = self._config, ResultsStore(self._config.output_dir)
        recorded = self._recorded_pythons(store)
        # What this machine refuses is told before anything is written; a cluster has to be joined to be asked.
        looks = [self._look(recorded)] if config.address is None else []
        Extra.TUNE.require("Measuring")
        check_search(config.search)
        store.check_writable()
        run_id = config.resume or self._run_id or _new_run_id()
        with claimed_sweep(store, run_id) as claim, ExitStack() as while_measuring:
            cluster = self._joined(store, run_id, while_measuring)
            if cluster is not None:
                looks = each_type(cluster.nodes, partial(self._look, recorded))
            result, break_off = self._looked_at_and_measured(store, run_id, looks, claim, cluster, while_measuring)
        self._written_up = result
        if self._keeper is not None and self._keeper.has_moved:
            raise self._keeper.moved()
        if break_off is not None:
            raise break_off
        warn_of_disturbance(result)
        return result

    def _looked_at_and_measured(
        self,
        store: ResultsStore,
        run_id: str,
        looks: Sequence[_Look],
        claim: Claim,
        cluster: _Cluster | None,
        while_measuring: ExitStack,
    ) -> tuple[TuneResult, KvrayError | None]:
        with contention_noticed(self._config, looks[0].checked[0].device.device, run_id) as self._quiet:
            # While nothing else runs.
            resolved = each_type(looks, lambda look: (look, self._resolved(look)))
            return self._measured_and_written_up(store, run_id, resolved, claim, cluster, while_measuring)

    def _look(self, recorded: Mapping[str, str] = MappingProxyType({}), node: NodeFacts | None = None) -> _Look:
        engines = self._engines()
        checked = engines.check(self._config, recorded_pythons=recorded, node=node)
        return _Look(engines=engines, checked=tuple(checked), node=node)

    def _preview_of(self, look: _Look) -> Seen:
        resolved = look.engines.resolve(look.checked)
        preview = preview_engines(look.engines, resolved)
        taking_part = tuple(one for one in resolved if one.adapter in look.engines.adapters)
        return Seen(preview=preview, resolved=taking_part, node=look.node)

    def _resolved(self, look: _Look) -> list[Resolved]:
        resolved = look.engines.resolve(look.checked)
        before = {} if self._observer is None else {"before": self._observer.measuring_device}
        return with_rates(look.engines, resolved, **before)

    def _recorded_pythons(self, store: ResultsStore) -> Mapping[str, str]:
        """By engine, the path of the Python that a sweep had which is to go on."""
        return {} if self._config.resume is None else store.read_manifest(self._config.resume).engine_pythons

    def _engines(self) -> SweepEngines:
        if self._adapter is None:
            return SweepEngines.named(self._config.engines)
        return SweepEngines([self._adapter] if isinstance(self._adapter, EngineAdapter) else self._adapter)

    def _measured_and_written_up(
        self,
        store: ResultsStore,
        run_id: str,
        resolved: Sequence[tuple[_Look, Sequence[Resolved]]],
        claim: Claim,
        cluster: _Cluster | None,
        while_measuring: ExitStack,
    ) -> tuple[TuneResult, KvrayError | None]:
        """The sweep as far as it came, and the error if that was broken off."""
        engines = resolved[0][0].engines
        try:
            with while_measuring:  # Ray has ended, or is left, when the records are written up
                keeper, break_off = self._measure(store, run_id, resolved, claim, cluster, while_measuring)
            runner = self._code_runner(engines, interrupted=break_off is not None)
            result = write_up(keeper, self._config.profile, runner.check)
            return result, None if break_off is None else break_off()
        except KeyboardInterrupt:
            # After the last trial too: a user who does not press again gets what was measured.
            if self._keeper is None:
                raise
            runner = self._code_runner(engines, interrupted=True)
            return write_up(self._keeper, self._config.profile, runner.check), interruption(self._keeper)

    def _code_runner(self, engines: SweepEngines, *, interrupted: bool) -> CodeRunner:
        excuse = "the sweep was interrupted" if interrupted else None
        if not self._config.check_snippet:
            excuse = "--no-check-snippet was given"
        before = (lambda: None) if self._observer is None else self._observer.checking_code
        first, *others = engines.adapters
        return CodeRunner(first, others=tuple(others), excuse=excuse, before=before)

    def _measure(
        self,
        store: ResultsStore,
        run_id: str,
        resolved: Sequence[tuple[_Look, Sequence[Resolved]]],
        claim: Claim,
        cluster: _Cluster | None,
        while_measuring: ExitStack,
    ) -> tuple[RecordKeeper, BreakOff | None]:
        """Run all trials that `run_id` still lacks; returns who keeps them, and how to tell that it was broken off."""
        config, started_s = self._config, time.monotonic()
        # Whatever would end every trial alike is found before a private Ray starts.
        ready = each_type(resolved, lambda one: made_ready(config, one[0].engines, one[1], node=one[0].node))
        if cluster is None:
            engines = resolved[0][0].engines
            ray, folder = while_measuring.enter_context(self._session(log_kept_in(store, run_id), engines))
        else:
            ray, folder = cluster.ray, cluster.folder
        nodes = ray.nodes()
        shares = each_type(ready, lambda one: self._share(one, nodes, is_only=len(ready) == 1))
        shares = [replace(share, observers=self._observers(ray, share, while_measuring)) for share in shares]
        prepared = prepare_sweep(
            store,
            config,
            shares,
            claim=claim,
            run_id=run_id,
            scratch=folder,
            started_s=started_s,
            arguments=self._arguments,
            pythons={name: python for one in ready for name, python in one.pythons.items()},
        )
        return prepared.keeper, self._run_trials(prepared, ray, [share.slots for share in shares], folder)

    def _share(self, ready: ReadySweep, nodes: Sequence[Mapping[str, float]], *, is_only: bool) -> Share:
        device = ready.preview.device.device
        return share_of(ready, slots_on(nodes, self._config, device, gpu_type=ready.gpu_type, is_only_type=is_only))

    def _observers(self, ray: RaySession, share: Share, while_measuring: ExitStack) -> list[SearchObserver]:
        """Whoever is told of the trials: the caller's observer, and Ray's metrics on a cluster that has them."""
        found = [] if self._observer is None else [self._observer]
        if exports_metrics(ray):
            observer = MetricsObserver(gpus_per_slot=share.slots.gpus_per_slot, gpu_type=share.slots.gpu_type)
            found.append(while_measuring.enter_context(observer))
        return found

    def _run_trials(
        self, prepared: PreparedSweep, ray: RaySession, slots: Sequence[SlotPlan], folder: Path
    ) -> BreakOff | None:
        """Run all trials that are still to run; returns how to tell of it if that was broken off."""
        keeper = self._keeper = prepared.keeper
        prepared.start()
        before_launch = self._quiet.wait if self._quiet else None
        try:
            run_sweep(
                *prepared.queued,
                ray=ray,
                slots=slots[0],
                further_slots=slots[1:],
                scratch=folder,
                before_launch=before_launch,
            )
        except KeyboardInterrupt:
            if not prepared.is_over:
                return partial(interruption, keeper)
        except SweepError as error:
            return partial(broken_off, error, keeper)
        except Exception:
            keeper.finish_writing()
            raise
        prepared.end()
        return None

    def _joined(self, store: ResultsStore, run_id: str, while_measuring: ExitStack) -> _Cluster | None:
        """The cluster that was named, joined until `while_measuring` ends; `None` where none was."""
        if self._config.address is None:
            return None
        ray, folder = while_measuring.enter_context(self._session(log_kept_in(store, run_id), self._engines()))
        return _Cluster(ray=ray, folder=folder, nodes=self._asked_nodes(ray))

    def _asked_nodes(self, ray: RaySession) -> tuple[NodeFacts, ...]:
        """What nodes that will measure say of themselves."""
        ray.nodes()
        config, adapters = self._config, self._engines().adapters
        return ask_nodes(
            adapters,
            device=config.device,
            gpu_type=config.gpu_type,
            check_alive=ray.check_alive,
            slots=config.slots_beside,
        )

    @contextmanager
    def _session(self, log: AbstractContextManager[Path], engines: SweepEngines) -> Iterator[tuple[RaySession, Path]]:
        """The Ray that was handed in, else one for this sweep alone; and a temporary folder beside its log."""
        with log as file:
            if self._ray is not None:
                yield self._ray, file.parent
                return
            with (
                quiet_ray(file),
                RaySession(
                    address=self._config.address,
                    scratch=file.parent,
                    imports=engine_folders(*engines.adapters),
                    last_words=self._last_words,
                ) as ray,
            ):
                yield ray, file.parent

    def _last_words(self, error: SweepError) -> str:
        return str(error if self._keeper is None else broken_off(error, self._keeper))


def _new_run_id() -> str:
    """Sorts by time, is unique, and reads as a date: `20261124-211419-3f9a`."""
    return f"{dt.datetime.now(dt.UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
