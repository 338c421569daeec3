"""`RegressionCheck`: `kvray check` from the baseline to `check.json`."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kvray.analysis.comparison import Margins
from kvray.candidate import DeviceType
from kvray.check.check_file import write_check
from kvray.check.config import CheckConfig
from kvray.check.judge import default_margins
from kvray.check.kept import KeptRecords, write_or_rescue
from kvray.check.outcome import Outcome
from kvray.check.preparing import Subject, prepared, side_specs
from kvray.check.result import CheckMode, CheckResult
from kvray.check.rounds import RoundPlan, Rounds
from kvray.check.side import Side
from kvray.errors import InvalidValueError, OutputError
from kvray.probes.contention import QuietWait, announced_sweep, disturbers
from kvray.search_paths import python_command
from kvray.store.parquet import ResultsStore
from kvray.trial.spec import ReferenceSpec

_logger = logging.getLogger("kvray.check")


class RegressionCheck:
    """Measures what the baseline measured, and says whether it became worse.

    Args:
        on_round: is given the state after each round, e.g. for a line on a terminal.
    """

    def __init__(
        self,
        config: CheckConfig,
        *,
        on_round: Callable[[CheckResult], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._on_round = on_round
        self._clock = clock
        self.unwritten: OutputError | None = None
        """Why something could not be written, and where it is instead; `None` where all was written."""

    def run(self) -> CheckResult:
        """Measure until every candidate has a verdict, or the budget is spent; writes records and `check.json`.

        Ctrl-C ends it early with what was measured so far: `CheckResult.is_interrupted`.

        Raises:
            KvrayError: the baseline cannot be checked here, or nothing can be written; nothing was measured then.
        """
        config, started_at, started_s = self._config, dt.datetime.now(dt.UTC), self._clock()
        subject = prepared(config)
        margins = _margins(config, subject)
        store = ResultsStore(config.output_dir)
        store.check_writable()
        records, run_id = KeptRecords(store), f"{started_at:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        busy = disturbers(subject.device.device)  # before a side starts to work, which is not another program's
        with _sides(config, subject) as sides:
            outcome = Outcome(
                config=config,
                subject=subject,
                sides=sides,
                margins=margins,
                run_id=run_id,
                results=store.display_name,
                started_at=started_at,
                elapsed_s=lambda: self._clock() - started_s,
            )
            rounds = Rounds(_round_plan(outcome), sides, keep=records.keep, clock=self._clock)
            write_check(outcome.result(rounds, is_interrupted=True), config.check_file)  # in place of an older one
            result = self._measured(rounds, outcome, busy)
        self.unwritten = write_or_rescue(result, config.check_file, records.finish(run_id))
        if self.unwritten is not None:
            _logger.warning("%s", self.unwritten)
        return result

    def _measured(self, rounds: Rounds, outcome: Outcome, busy: Sequence[str]) -> CheckResult:
        """The result so far is on the disk after every round, so that a killed check leaves what it knew."""
        config, device = self._config, outcome.subject.device.device
        try:
            with _contention_noticed(device, config.wait_quiet_s, outcome.run_id, busy) as quiet:
                while rounds.has_time and not rounds.is_over:
                    quiet.wait()
                    rounds.measure()
                    so_far = outcome.result(rounds, is_interrupted=True)
                    with contextlib.suppress(OutputError):  # it is tried again at the end
                        write_check(so_far, config.check_file)
                    self._on_round(so_far)
        except KeyboardInterrupt:
            return outcome.result(rounds, is_interrupted=True)
        return outcome.result(rounds)


def _margins(config: CheckConfig, subject: Subject) -> Margins:
    asked = {**default_margins(subject.baseline.profile, subject.mode), **config.margins}
    margins = {metric: margin for metric, margin in asked.items() if margin is not None}
    if not margins:
        raise InvalidValueError(
            "The margins leave nothing to judge.", hint="Give one for ttft, decode or memory: --margin ttft=5%."
        )
    return margins


@contextlib.contextmanager
def _sides(config: CheckConfig, subject: Subject) -> Iterator[Sequence[Side]]:
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvray-", ignore_cleanup_errors=True)))
        yield [stack.enter_context(Side(spec, scratch / spec.name)) for spec in side_specs(config, subject)]


@contextlib.contextmanager
def _contention_noticed(
    device: DeviceType, wait_quiet_s: float, run_id: str, busy: Sequence[str]
) -> Iterator[QuietWait]:
    """Warn of who else uses `device`, or wait for quiet as long as is allowed.

    Args:
        busy: a sentence for everything that kept the device busy before the check began.
    """
    quiet = QuietWait(device, wait_quiet_s, tell=_warn)
    with announced_sweep(device, run_id) as others:
        for sentence in (*others, *(() if wait_quiet_s else busy)):
            _warn(sentence)
        yield quiet


def _warn(sentence: str) -> None:
    _logger.warning("%s", sentence)


def _round_plan(outcome: Outcome) -> RoundPlan:
    subject, config = outcome.subject, outcome.config
    return RoundPlan(
        run_id=outcome.run_id,
        names=subject.names,
        candidates=subject.candidates,
        requests={name: engine.request for name, engine in subject.engines.items()},
        profile=subject.baseline.profile,
        device=subject.device.device,
        margins=outcome.margins,
        timeout_s=config.timeout_s,
        budget_s=config.budget_s,
        recorded=subject.baseline.recorded if subject.mode is CheckMode.RECORD else {},
        reference=_reference(outcome),
    )


def _reference(outcome: Outcome) -> ReferenceSpec | None:
    """What quality is compared with. Both sides take what the first of them makes of it, with its own libraries."""
    subject = outcome.subject
    engine, candidate = subject.reference, subject.baseline.reference
    if engine is None or candidate is None:
        return None
    versions = outcome.sides[0].facts.engine_versions.get(engine.adapter.name, {})
    return ReferenceSpec(
        candidate=candidate,
        model_revision=engine.model.revision,
        adapter=engine.adapter,
        request=engine.request,
        python=engine.python or python_command()[0],
        engine_versions=tuple(sorted(versions.items())),
    )
