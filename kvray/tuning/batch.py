"""`BatchSearch`: many models over one pool of slots; one that fails is a row of the overview, the others go on."""

from __future__ import annotations

import datetime as dt
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from kvray.config import TuneConfig
from kvray.engines.offline import offline_environment
from kvray.errors import KvrayError, OutputError, ResultsError, SweepInterruptedError
from kvray.jobs.sent_model import as_typed, is_sent
from kvray.probes.environment import kvray_version
from kvray.record import TrialStatus
from kvray.report.overview import overview_info, render_overview_html, render_overview_markdown
from kvray.store.batch_manifest import BatchAttempt, BatchManifest, BatchStatus, BatchSweep
from kvray.store.batch_store import BatchStore
from kvray.store.batch_table import BatchRow
from kvray.store.claim import claimed_sweep
from kvray.store.parquet import ResultsStore
from kvray.store.paths import run_id_in_batch
from kvray.tuning.batch_budget import BatchBudget, excess_of
from kvray.tuning.batch_file import AskedSweep
from kvray.tuning.batch_options import BatchOptions
from kvray.tuning.batch_pool import BatchPool
from kvray.tuning.batch_rows import batch_row
from kvray.tuning.batch_words import in_file_words, interruption_of, models_of, reason_of, unlike_sweeps
from kvray.tuning.begun_sweep import SweepView
from kvray.tuning.code_run import CodeRunner
from kvray.tuning.engines import SweepEngines
from kvray.tuning.outcome import check_code_of
from kvray.tuning.preview import Preview
from kvray.tuning.search import TuningSearch

_LAST_WRITE_S = 5.0
"""So long a process that leaves at once waits for another thread that writes the overview."""


class BatchSearch:
    """Measures the sweeps of a batch and keeps its overview.

    Args:
        asked: sweeps of a new batch, or what the batch file of the one to be resumed says now; empty: as it was.
        resume: id of a batch in the results folder. Its measured sweeps are not measured again.
        tell: is given one line as each sweep begins and ends.
        kept: is given the manifest whenever it was written, and the rows of the overview.
        view: makes an observer of each sweep as it begins.
    """

    def __init__(
        self,
        asked: Sequence[AskedSweep],
        options: BatchOptions,
        *,
        resume: str | None = None,
        tell: Callable[[str], None] = lambda _: None,
        kept: Callable[[BatchManifest, Sequence[BatchRow]], None] = lambda _, __: None,
        view: SweepView | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._asked = asked
        self._options = options
        self._resume = resume
        self._tell = tell
        self._kept = kept
        self._view = view
        self._clock = clock
        self._store = ResultsStore(options.output_dir)
        self._batches = BatchStore(options.output_dir)
        self._retried: dict[str, tuple[TrialStatus, ...]] = {}
        self._rows: dict[str, BatchRow] = {}
        self._manifest: BatchManifest | None = None
        self._unwritten: OutputError | None = None
        """Why manifest and overview do not tell how the batch stands."""
        self._log = ""
        self._writing = threading.RLock()

    def previews(self) -> list[tuple[AskedSweep | BatchSweep, Preview | KvrayError]]:
        """What each sweep that is not measured yet would measure, or why it cannot; nothing is started or written.

        Raises:
            ResultsError: there is no batch to resume, or its file asks for other sweeps.
        """
        sweeps: Sequence[AskedSweep | BatchSweep] = self._asked
        if self._resume is not None:
            before = self._batches.read_manifest(self._resume)
            self._check_same(before)
            again = self._again(before)
            sweeps = [one for one in before.sweeps if not one.status.is_measured or one.run_id in again]
        return [(one, self._preview(one)) for one in sweeps]

    def config_of(self, sweep: AskedSweep | BatchSweep) -> TuneConfig:
        """What one of the sweeps is asked, with the options of the batch."""
        return self._config(sweep)

    def run(self) -> BatchManifest:
        """Measure what is not measured yet. The overview is written as each sweep ends.

        Raises:
            ResultsError: there is no batch to resume, another process measures it, or its file asks for other sweeps.
            SweepError: the cluster cannot be joined; nothing was written.
            SweepInterruptedError: the user pressed Ctrl-C.
            OutputError: all has been measured, and how it ended cannot be written.
        """
        manifest = self._begun()
        with ExitStack() as claims, offline_environment(enabled=self._options.offline):
            try:
                self._measure_all(manifest, claims)
                self._check_codes()
            except (KeyboardInterrupt, SweepInterruptedError) as error:
                raise self.interrupted() from error
            self._keep(self._now.ended(dt.datetime.now(dt.UTC)))
            if self._unwritten is not None:
                raise self._without_overview(self._unwritten)
            if any(row.trials for row in self._rows.values()) and (told := excess_of(self._now.attempts[-1])):
                self._tell(told)
        return self._now

    def interrupted(self) -> SweepInterruptedError:
        """What to say of an interruption at this moment."""
        if self._manifest is None:
            return SweepInterruptedError("Interrupted before anything was measured.")
        overview = self._batches.shown(self._batches.paths(self._manifest.batch_id).overview_html)
        return interruption_of(self._manifest, overview=overview, resume=self.command_to_go_on)

    def left_at_once(self) -> SweepInterruptedError:
        """`interrupted`, for a process that ends without writing up what measures: the overview says so. A signal's
        handler may call it, whatever the program is doing."""
        if self._manifest is not None and self._writing.acquire(timeout=_LAST_WRITE_S):
            try:
                self._keep_broken_off(self._manifest)
            finally:
                self._writing.release()
        return self.interrupted()

    def _keep_broken_off(self, manifest: BatchManifest) -> None:
        """The records of what measures are not read for it: that would take a moment for each sweep."""
        status = BatchStatus.INTERRUPTED
        for sweep in (one for one in manifest.sweeps if one.status is BatchStatus.MEASURING):
            if (row := self._rows.get(sweep.run_id)) is not None:
                self._rows[sweep.run_id] = replace(row, status=status)
            manifest = manifest.having(sweep.model_copy(update={"status": status}))
        if manifest is not self._manifest:
            self._keep(manifest)

    @property
    def command_to_go_on(self) -> str:
        """What measures the rest of the batch, which has begun."""
        sends_models = any(is_sent(name) for one in self._asked for name in models_of(one))
        return self._options.command(self._now.batch_id, sends_models=sends_models)

    @property
    def _now(self) -> BatchManifest:
        if self._manifest is None:
            raise RuntimeError("the batch has not begun")
        return self._manifest

    def _begun(self) -> BatchManifest:
        now = dt.datetime.now(dt.UTC)
        attempt = BatchAttempt(started_at=now, kvray_version=kvray_version(), budget_s=self._options.budget_s)
        if self._resume is not None:
            before = self._batches.read_manifest(self._resume)
            self._check_same(before)
            return before.continued(attempt, again=self._again(before))
        batch_id = f"batch-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        sweeps = tuple(
            BatchSweep(
                run_id=run_id_in_batch(batch_id, number),
                sent_from=as_typed(one.model_id) if is_sent(one.model_id) else None,
                **dict(one),
            )
            for number, one in enumerate(self._asked, 1)
        )
        return BatchManifest(batch_id=batch_id, created_at=now, sweeps=sweeps, attempts=(attempt,))

    def _again(self, before: BatchManifest) -> set[str]:
        """Run ids of the sweeps that are measured to their end and are to be retried."""
        retry = self._options.retry
        self._retried = {one.run_id: retry.statuses_of(one) for one in before.sweeps}
        return {one.run_id for one in before.sweeps if one.status.is_measured and retry.takes(self._store, one)}

    def _check_same(self, before: BatchManifest) -> None:
        known = [(one.model_id, one.profile, one.settings) for one in before.sweeps]
        now = [(one.model_id, one.profile, one.settings) for one in self._asked]
        if now and now != known:
            raise ResultsError(
                f"The batch file asks for other sweeps than batch {before.batch_id!r}: "
                f"{unlike_sweeps(before.sweeps, self._asked)}.",
                hint="Leave the file out to go on with the batch, or start a new one without --resume.",
            )

    def _measure_all(self, manifest: BatchManifest, claims: ExitStack) -> None:
        waiting, configs, failed = [], {}, []
        for sweep in manifest.sweeps:
            try:
                if not sweep.status.is_measured:
                    configs[sweep.run_id] = self._config(sweep, resume=self._to_resume(sweep))
                    waiting.append(sweep)
            except KvrayError as error:
                failed.append((sweep, reason_of(error)))

        def start() -> None:
            """Be the one who measures the batch, and write for the first time."""
            self._store.check_writable()
            claims.enter_context(claimed_sweep(self._store, manifest.batch_id, kind="batch"))
            self._keep(manifest)
            for sweep, reason in failed:
                self._keep_sweep(sweep, BatchStatus.FAILED, reason)

        if not waiting:
            start()
        else:
            BatchPool(
                waiting,
                batch_id=manifest.batch_id,
                store=self._store,
                configs=configs,
                budget=BatchBudget(configs, self._options.budget_s, clock=self._clock),
                starting=start,
                keep=self._keep_sweep,
                keep_log=self._keep_log,
                view=self._view,
                farewell=lambda error: f"{error} {self.interrupted().hint}",
            ).run()

    def _to_resume(self, sweep: BatchSweep) -> str | None:
        return sweep.run_id if self._store.has_manifest(sweep.run_id) else None

    def _check_codes(self) -> None:
        """Run the winners' code once, when no trial runs any more that it would disturb."""
        for sweep in self._now.sweeps:
            if sweep.status is not BatchStatus.OK or not (config := self._config(sweep)).check_snippet:
                continue
            try:
                with claimed_sweep(self._store, sweep.run_id):
                    runner = self._code_runner(sweep, config)
                    check_code_of(self._store, sweep.run_id, runner.check)
            except KvrayError as error:
                self._tell(f"warning: the code of sweep {sweep.run_id} was not checked: {in_file_words(str(error))}")
                continue
            if runner.was_interrupted:
                raise KeyboardInterrupt

    def _code_runner(self, sweep: BatchSweep, config: TuneConfig) -> CodeRunner:
        of_baseline = self._store.read_manifest(sweep.run_id).engine
        adapters = sorted(SweepEngines.named(config.engines).adapters, key=lambda one: one.name != of_baseline)
        return CodeRunner(
            adapters[0],
            others=tuple(adapters[1:]),
            before=lambda: self._tell(f"{sweep.title}: the winner's code is run"),
        )

    def _config(self, sweep: BatchSweep | AskedSweep, *, resume: str | None = None) -> TuneConfig:
        values = {**sweep.settings, **self._options.of_a_sweep, "resume": resume}
        if resume is not None:
            values["retry"] = self._retried.get(resume, ())
            values["retry_disturbed"] = self._options.retry.disturbed
        return TuneConfig(model_id=sweep.model_id, profile=sweep.profile, **values)

    def _preview(self, asked: AskedSweep | BatchSweep) -> Preview | KvrayError:
        try:
            resume = self._to_resume(asked) if isinstance(asked, BatchSweep) else None
            return TuningSearch(config=self._config(asked, resume=resume)).preview()
        except KvrayError as error:
            return error

    def _keep_sweep(self, sweep: BatchSweep, status: BatchStatus, reason: str | None = None) -> None:
        """Write how far the sweep is, and tell of it in one line. Several threads call it."""
        with self._writing:
            update = {"status": status, "reason": reason}
            self._rows.pop(sweep.run_id, None)
            self._keep(self._now.having(sweep.model_copy(update=update)))
            row = self._rows[sweep.run_id]
            place = [one.run_id for one in self._now.sweeps].index(sweep.run_id) + 1
        detail = f"sweep {sweep.run_id}" if status is BatchStatus.MEASURING else row.winner or row.reason
        told = ": ".join(str(part) for part in (row.status, detail) if part)
        self._tell(f"{place} of {len(self._now.sweeps)}: {sweep.title}: {told}")

    def _without_overview(self, error: OutputError) -> OutputError:
        return OutputError(
            f"{error.message} The batch was measured to its end, and its overview does not tell so.",
            hint=f"Where it can be written again, that is done by: {self.command_to_go_on}",
        )

    def _keep_log(self, text: str) -> None:
        """After what was said before: each Ray of a batch has a log of its own."""
        self._log += text
        if text.strip():
            try:
                self._batches.write_log(self._now.batch_id, self._log)
            except OutputError as error:
                self._tell(f"warning: {error}")

    def _keep(self, manifest: BatchManifest) -> None:
        self._manifest = manifest
        for sweep in manifest.sweeps:
            if sweep.run_id not in self._rows or sweep.status is not self._rows[sweep.run_id].status:
                self._rows[sweep.run_id] = batch_row(self._store, self._now.batch_id, sweep)
        rows = [self._rows[sweep.run_id] for sweep in manifest.sweeps]
        info = overview_info(manifest, rows, written_at=dt.datetime.now(dt.UTC))
        try:
            self._batches.write_overview(
                manifest.batch_id, html=render_overview_html(info), markdown=render_overview_markdown(info), rows=rows
            )
            self._batches.write_manifest(manifest)
            self._unwritten = None
        except OutputError as error:  # the sweeps' own records have a second place; the night goes on
            self._unwritten = error
            self._tell(f"warning: {error}")
        self._kept(manifest, rows)
