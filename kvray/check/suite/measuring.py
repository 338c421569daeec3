"""Measures the suite's cases in rounds: each case on each side in a fresh process, one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from kvray.candidate import DeviceType
from kvray.check.measured import measured_side
from kvray.check.side import Side
from kvray.check.side_request import SideRequest
from kvray.check.suite.cases import SUITE_PROFILE, TOLD_TOKENS, Case
from kvray.check.suite.files import write_folder, write_gguf
from kvray.check.suite.models import SuiteModel
from kvray.check.suite.record import Outputs, RecordedCase
from kvray.engines.base import ModelRequest
from kvray.record import TrialRecord, TrialResult
from kvray.trial.forced_logs import ForcedLogs

TIMED_RUNGS, ANSWERED_RUNGS = (1, 2), (1,)
"""The cell at full length, three times in each process; once where times are not looked at."""
_PHASE_S = 120.0
_GGUF_ENGINES = ("llama_cpp",)

Tell = Callable[[str], None]


class SuiteModels:
    """The suite's models as files in `folder`, written when they are first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: set[Path] = set()

    def request(self, case: Case) -> ModelRequest:
        """The model of `case` as its engine reads it."""
        takes_gguf = case.engine in _GGUF_ENGINES
        path = self._folder / (f"{case.model.name}.gguf" if takes_gguf else case.model.name)
        if path not in self._written:
            _write(case.model, path, as_gguf=takes_gguf)
            self._written.add(path)
        return ModelRequest(model_id=str(path), offline=True)


def _write(model: SuiteModel, path: Path, *, as_gguf: bool) -> None:
    if as_gguf:
        write_gguf(model, path)
    else:
        write_folder(model, path)


class SuiteRounds:
    """Rounds of one sitting.

    Args:
        sides: those that take turns; in every second round the other way round.
        is_timed: whether times are looked at, or outputs alone.
        tell: is told what is measured next.
    """

    def __init__(
        self,
        sides: Sequence[Side],
        models: SuiteModels,
        *,
        run_id: str,
        device: DeviceType,
        is_timed: bool,
        tell: Tell,
    ) -> None:
        self.rounds = 0
        self._sides = tuple(sides)
        self._models = models
        self._run_id = run_id
        self._device = device
        self._rungs = TIMED_RUNGS if is_timed else ANSWERED_RUNGS
        self._tell = tell
        self._results: dict[tuple[str, str], list[TrialResult]] = {}

    def measure(self, cases: Iterable[Case]) -> None:
        """One more round of `cases`."""
        self.rounds += 1
        order = self._sides if self.rounds % 2 else self._sides[::-1]
        for case in cases:
            self._tell(f"round {self.rounds}: {case.name}")
            for side in order:
                self._results.setdefault((side.spec.name, case.name), []).append(side.measure(self._asked(case, side)))

    def results(self, side: Side, case: Case) -> tuple[TrialResult, ...]:
        """What `side` has measured of `case` so far."""
        return tuple(self._results.get((side.spec.name, case.name), ()))

    def has(self, case: Case) -> bool:
        """Whether every side has measured `case` at least once."""
        return all(self.results(side, case) for side in self._sides)

    def recorded(self, side: Side, case: Case) -> RecordedCase:
        """The same, as a record keeps it."""
        return recorded_case(case, self.results(side, case))

    def _asked(self, case: Case, side: Side) -> SideRequest:
        return SideRequest(
            run_id=self._run_id,
            trial_id=f"{side.spec.name}-{self.rounds:03d}-{case.candidate.candidate_id}-{case.attention}",
            round_number=self.rounds,
            candidate=case.candidate,
            model=self._models.request(case),
            profile=SUITE_PROFILE,
            device=self._device,
            timeout_s=_PHASE_S,
            rungs=self._rungs,
            told_tokens=TOLD_TOKENS,
        )


def recorded_case(case: Case, results: Sequence[TrialResult]) -> RecordedCase:
    """What `results`, at least one, say of `case`. Where some of its processes failed, the first failure counts."""
    records = [one.record for one in results]
    failed = [one for one in records if one.status.is_failure]
    first = (failed or records)[0]
    working = [one for one in records if not one.status.is_failure]
    return RecordedCase(
        name=case.name,
        model=case.model.digest,
        candidate=case.candidate,
        status=first.status,
        message=first.message,
        versions=first.versions,
        kv_cache_mib=max((one.kv_cache_mib for one in working if one.kv_cache_mib is not None), default=None),
        outputs=_outputs(working),
        measured=measured_side(results, SUITE_PROFILE),
    )


def _outputs(records: Sequence[TrialRecord]) -> Outputs:
    """Outputs of the first process; the others say whether it repeats itself."""
    if not records:
        return Outputs()
    first, *others = [_outputs_of(record) for record in records]
    repeats = all(other == first for other in others) if others else None
    return first.model_copy(update={"repeats": repeats})


def _outputs_of(record: TrialRecord) -> Outputs:
    tokens: Sequence[Sequence[int]] = json.loads(record.sample_tokens or "[]")
    forced: ForcedLogs | None = None
    with suppress(ValueError):
        forced = ForcedLogs.from_json(record.forced_logs or "")
    return Outputs(
        tokens=tuple(map(tuple, tokens)),
        text=None if forced is None else forced.text,
        logs=() if forced is None else tuple(tuple(map(_shortest, row)) for row in forced.rows),
        note=record.quality_note if forced is None else None,
    )


def _shortest(value: float) -> float | None:
    """The shortest decimal that reads back as the same float32; `None` for what is not finite."""
    return float(str(np.float32(value))) if np.isfinite(value) else None
