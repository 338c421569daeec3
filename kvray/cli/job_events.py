"""A sweep's progress in a job's log: lines for people, and before them one for the program that follows the log.

The second kind begins with `MARK` and holds JSON: what changed, and how many lines for people come next. From them
whoever follows builds the same view as that of a local sweep.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from typing_extensions import override

from kvray.analysis.aggregate import Metrics
from kvray.cli.progress import QUIET_S, LineProgress
from kvray.jobs.doorman import MARK
from kvray.record import TrialResult
from kvray.report.formats import plural
from kvray.store.batch_manifest import BatchManifest, BatchStatus
from kvray.store.batch_table import BatchRow
from kvray.store.manifest import SweepManifest
from kvray.sweep.outlook import Outlook
from kvray.trial.position import PositionBoard
from kvray.trial.spec import TrialSpec
from kvray.tuning.preview import Preview
from kvray.tuning.result import TuneResult, info_of, on_each_hardware
from kvray.tuning.standing import SweepState, TrialState

_SAID = "kvray: "
_WARNED = "kvray: warning: "


def tell_of_batch(manifest: BatchManifest, rows: Sequence[BatchRow] = ()) -> None:
    """Tell whoever follows the job how far its batch is."""
    measuring = [one for one in manifest.sweeps if one.status is BatchStatus.MEASURING]
    told = {
        "batch_id": manifest.batch_id,
        "statuses": Counter(one.status.value for one in manifest.sweeps),
        "disturbed": sum(bool(one.is_disturbed) for one in rows),
        "now": ", ".join(f"{one.shown_model} · {one.profile.name}" for one in measuring),
    }
    sys.stderr.write(f"{MARK}{json.dumps({'batch': told, 'lines': 0})}\n")
    sys.stderr.flush()


def tell_of_result(result: TuneResult) -> None:
    """Tell whoever follows the job what its sweep comes to, in the words of the report."""
    verdicts = [info_of(one).headline.sentence for one in on_each_hardware(result)]
    sys.stderr.write(f"{MARK}{json.dumps({'verdicts': verdicts, 'at': time.time(), 'lines': 0})}\n")
    sys.stderr.flush()


class JobProgress(LineProgress):
    """The view of a sweep that runs as a submitted job."""

    def __init__(self, console: Console, *, quiet_s: float = QUIET_S) -> None:
        super().__init__(console, quiet_s=quiet_s)
        self._console = console
        self._waiting: list[str] = []

    @override
    def _print(self, text: str) -> None:
        self._said.set()
        self._waiting.append(text)
        if self._preview is None:
            self._send({})

    @override
    def search_started(
        self,
        preview: Preview,
        manifest: SweepManifest,
        recorded: Sequence[TrialResult],
        positions: PositionBoard | None = None,
    ) -> None:
        super().search_started(preview, manifest, recorded, positions)
        state = self._state
        about = {"title": state.title, "total": state.total, "budget_s": state.budget_s, "recalled": state.recalled}
        about["gpu_types"] = list(state.gpu_types)
        about["launches"] = state.launches
        standings = [dataclasses.asdict(one) for one in state.standings.values()]
        about_sweep = {"run_id": manifest.run_id, "sweep": about, "notes": state.notes, "trials": standings}
        self._send({**about_sweep, **state.so_far.json_of(list(state.so_far.candidates), state.gpu_types)})

    @override
    def outlook_changed(self, outlook: Outlook) -> None:
        super().outlook_changed(outlook)
        self._send({})

    @override
    def trial_started(self, spec: TrialSpec) -> None:
        super().trial_started(spec)
        self._send_trial(spec.trial_id)

    @override
    def rung_finished(self, result: TrialResult) -> None:
        super().rung_finished(result)
        self._send_trial(result.record.trial_id)

    @override
    def trial_lost(self, spec: TrialSpec) -> None:
        super().trial_lost(spec)
        self._send_trial(spec.trial_id)

    @override
    def trial_finished(self, result: TrialResult) -> None:
        super().trial_finished(result)
        label = self._state.standings[result.record.trial_id].label
        self._send_trial(result.record.trial_id, **self._state.so_far.json_of([label], self._state.gpu_types))

    def _send_trial(self, trial_id: str, **more: Any) -> None:
        self._send({"trials": [dataclasses.asdict(self._state.standings[trial_id])], **more})

    @override
    def _print_pulse(self, text: str) -> None:
        self._send_with({}, [text])

    def _send(self, event: dict[str, Any]) -> None:
        lines, self._waiting = self._waiting, []
        self._send_with(event, lines)

    def _send_with(self, event: dict[str, Any], lines: Sequence[str]) -> None:
        """In one write, so that nobody's line comes between."""
        state = self._state
        passed_s = state.clock() - state.started if state.title else 0.0
        told = {"finished": state.finished, "passed_s": passed_s, "at": time.time()}
        outlook = dataclasses.asdict(state.outlook)
        text = json.dumps({**event, **told, "outlook": {**outlook, "left_s": state.left_s()}, "lines": len(lines)})
        self._console.file.write("".join(f"{line}\n" for line in (MARK + text, *lines)))
        self._console.file.flush()


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchState:
    """How far a job's batch is.

    Attributes:
        statuses: how many sweeps there are of each `BatchStatus`.
        now: models and profiles that are measured.
        disturbed: sweeps that ended, whose figures are not to be trusted.
    """

    batch_id: str
    statuses: Mapping[str, int]
    now: str
    disturbed: int = 0

    @property
    def progress(self) -> str:
        """E.g. `1 of 2 sweeps ended`."""
        open_ones = (BatchStatus.WAITING, BatchStatus.MEASURING, BatchStatus.INTERRUPTED)
        ended = sum(count for status, count in self.statuses.items() if status not in open_ones)
        return f"{ended} of {sum(self.statuses.values())} sweeps ended"

    @property
    def by_status(self) -> str:
        """E.g. `1 ok, 1 measuring`."""
        return ", ".join(f"{self.statuses[one]} {one}" for one in BatchStatus if self.statuses.get(one))

    @property
    def doubt(self) -> str:
        """How many of those that ended are not to be trusted; empty where none is."""
        return f"{plural(self.disturbed, 'sweep')} disturbed too much to be trusted" if self.disturbed else ""

    def frozen(self) -> BatchState:
        """As it stays when the job has ended: what was measuring is interrupted."""
        statuses = Counter(self.statuses)
        statuses[BatchStatus.INTERRUPTED] += statuses.pop(BatchStatus.MEASURING, 0)
        return dataclasses.replace(self, statuses={one: n for one, n in statuses.items() if n}, now="")


@dataclasses.dataclass
class JobLog:
    """What a job's log tells: the sweep or batch as it stands, and the lines for people that nothing else shows.

    Attributes:
        last_word: what kvray said last; for a job that failed that is the reason.
        told_at: Unix time on the cluster's head when the sweep told last how it stands.
        verdicts: what an ended sweep comes to, of each hardware one sentence.
    """

    state: SweepState = dataclasses.field(default_factory=SweepState)
    output: str | None = None
    run_id: str | None = None
    batch: BatchState | None = None
    last_word: str | None = None
    told_at: float | None = None
    verdicts: Sequence[str] = ()
    _rest: str = ""
    _hidden: int = 0

    @property
    def is_accepted(self) -> bool:
        """Whether the cluster has taken the job."""
        return self.output is not None

    @property
    def results_id(self) -> str | None:
        """The id of the sweep or batch, once it has begun."""
        return self.run_id if self.batch is None else self.batch.batch_id

    def feed(self, text: str) -> list[tuple[str, bool]]:
        """Take the next piece of the log; returns its lines for people, each with whether `state` tells it too."""
        *lines, self._rest = (self._rest + text).split("\n")
        return [shown for line in lines if (shown := self._line(line)) is not None]

    def _line(self, line: str) -> tuple[str, bool] | None:
        if line.startswith(MARK):
            try:
                event = json.loads(line.removeprefix(MARK))
                self._apply(event)
                self._hidden = int(event["lines"])
            except (ValueError, TypeError, KeyError):
                return None  # of another version
            return None
        told = self._hidden > 0
        self._hidden = max(0, self._hidden - 1)
        if line.startswith(_SAID) and not line.startswith(_WARNED):
            self.last_word = line.removeprefix(_SAID)
        return line, told

    def _apply(self, event: dict[str, Any]) -> None:
        self.output = event.get("output", self.output)
        self.run_id = event.get("run_id", self.run_id)
        self.told_at = event.get("at", self.told_at)
        self.verdicts = event.get("verdicts", self.verdicts)
        if "batch" in event:
            self.batch = BatchState(**event["batch"])
        state = self.state
        for name, value in event.get("sweep", {}).items():
            setattr(state, name, value)
        state.notes = tuple(event.get("notes", state.notes))
        for one in event.get("trials", ()):
            metrics = None if one["metrics"] is None else Metrics(**one["metrics"])
            state.standings[one["trial_id"]] = TrialState(**{**one, "metrics": metrics})
        state.so_far.hear(event)
        if "finished" in event:
            state.finished = event["finished"]
            state.started = state.clock() - event["passed_s"]
            outlook = event["outlook"]
            left = outlook["left_s"]
            state.foresee(Outlook(**{**outlook, "left_s": None if left is None else tuple(left)}))

    def freeze(self) -> None:
        """The job is over."""
        if self.batch is not None:
            self.batch = self.batch.frozen()
        self.state.break_off()
