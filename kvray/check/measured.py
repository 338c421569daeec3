"""What one side measured of one candidate, from its trials to `check.json` and to the arrays that are compared."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence

import numpy as np

from kvray.analysis.comparison import SideSamples, side_samples
from kvray.analysis.samples import known_or_none
from kvray.check.result import LogValues, MeasuredSide, ProcessSample, RanFacts, SideInfo
from kvray.check.side import Side
from kvray.errors import sentence_of
from kvray.record import TrialRecord, TrialResult, TrialStatus
from kvray.store.speed_variables import LIST, SPEED_VARIABLES, users_variables
from kvray.workload import WorkloadProfile

_METRICS = 3
_FAILED = {
    TrialStatus.QUALITY: "the quality fell below the limit",
    TrialStatus.SUBSTITUTED: "something else than what was asked for ran",
    TrialStatus.OOM: "it ran out of memory",
    TrialStatus.TIMEOUT: "it hung",
    TrialStatus.CRASHED: "it crashed",
    TrialStatus.UNSUPPORTED: "the engine refused it",
}


def measured_side(results: Sequence[TrialResult], profile: WorkloadProfile) -> MeasuredSide:
    """What the trials `results`, all of one candidate, come to."""
    complete = [one for one in results if not one.record.status.is_failure]
    samples = side_samples(complete, profile)
    logs = [[_log_values(row) for row in process] for process in samples.logs.tolist()]
    libraries = [None] * len(logs) if samples.library_mib is None else samples.library_mib.tolist()
    facts = zip(samples.rounds.tolist(), samples.sessions, samples.disturbed.tolist(), logs, libraries, strict=True)
    return MeasuredSide(
        cells=samples.cells,
        processes=tuple(
            ProcessSample(round=number, session=session, disturbed=disturbed, logs=tuple(rows), library_mib=mib)
            for number, session, disturbed, rows, mib in facts
        ),
        ran=ran_facts([one.record for one in complete]),
        failures=tuple(failure_text(one.record) for one in results if one.record.status.is_failure),
    )


def side_info(side: Side, *, run_id: str, measured_at: dt.datetime) -> SideInfo:
    """What results tell of a side that measured."""
    facts = side.facts
    versions = {name: version for one in facts.engine_versions.values() for name, version in one.items()}
    return SideInfo(
        name=side.spec.name,
        kvray_version=facts.kvray_version,
        engine_versions=versions,
        python=facts.python,
        variables=side.spec.variable_names,
        speed_variables=_speed_variables(side),
        speed_variables_list=LIST,
        host=facts.host,
        device_name=facts.device_name,
        driver_version=facts.driver_version,
        cpus=facts.cpus,
        memory_gib=facts.memory_gib,
        hardware=facts.hardware,
        run_id=run_id,
        measured_at=measured_at,
    )


def _speed_variables(side: Side) -> dict[str, str | None]:
    own = {name: value for name, value in side.spec.variables.items() if name in SPEED_VARIABLES}
    return {**users_variables(), **own}


def samples_of(side: MeasuredSide) -> SideSamples:
    """`side` as arrays."""
    rows = [[[math.nan if log is None else log for log in cell] for cell in one.logs] for one in side.processes]
    shape = (len(side.processes), len(side.cells), _METRICS)
    return SideSamples(
        cells=side.cells,
        logs=np.array(rows, dtype=np.float64).reshape(shape),
        rounds=np.array([one.round for one in side.processes], dtype=np.int64),
        sessions=tuple(one.session for one in side.processes),
        disturbed=np.array([one.disturbed for one in side.processes], dtype=np.bool_),
        library_mib=known_or_none([one.library_mib for one in side.processes]),
    )


def ran_facts(records: Sequence[TrialRecord]) -> RanFacts | None:
    """What the last of `records` saw run, with the quality of that one which measured it; `None` without any."""
    if not records:
        return None
    seen = max(records, key=lambda one: (one.kernel_decode is not None, one.started_at is not None and one.started_at))
    quality = next((one for one in records if one.kl_mean is not None), seen)
    own = {name: getattr(seen, name) for name in RanFacts.model_fields}
    return RanFacts(**{**own, "kl_mean": quality.kl_mean, "nll_delta": quality.nll_delta})


def failure_text(record: TrialRecord) -> str:
    """Why a trial failed, e.g. `it crashed in load: exit code 7`."""
    how = _FAILED.get(record.status, "it ended with an error")
    phase = "" if record.phase is None else f" in {record.phase}"
    why = "" if record.message is None else f": {sentence_of(RuntimeError(record.message))}"
    return f"{how}{phase}{why}"


def _log_values(row: Sequence[float]) -> LogValues:
    ttft, decode, peak = (value if math.isfinite(value) else None for value in row)
    return ttft, decode, peak
