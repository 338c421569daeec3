"""What a watch measures: the plan's winner, found fit for this machine, and one sitting of fresh processes of it."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import math
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from typing_extensions import override

from kvray.analysis.comparison import ComparedMetric, SideSamples, side_samples
from kvray.candidate import Candidate, DeviceType
from kvray.check.baseline import Baseline, read_baseline
from kvray.check.config import Consent
from kvray.check.measured import failure_text
from kvray.check.side import Side, SideFacts, SideSpec
from kvray.check.side_request import SideRequest
from kvray.check.subject import (
    CheckedEngine,
    check_candidates,
    check_consent,
    check_workload,
    device_of,
    found_engine,
)
from kvray.check.watch.anchor import AnchorRates, measure_anchor
from kvray.check.watch.events import WatchIdentity
from kvray.engines.base import DeviceFacts
from kvray.errors import ResultsError
from kvray.probes.cpu import trial_threads, wished_threads
from kvray.probes.environment import kvray_version
from kvray.record import TrialResult, short_model_name
from kvray.store.history import Observation, ObservationRole
from kvray.store.speed_variables import users_variables


@dataclass(frozen=True, kw_only=True)
class Target:
    """The configuration that a plan says to watch, whether or not it can be measured now.

    Attributes:
        watch_id: the same for every plan that has this configuration measured in this way.
    """

    baseline: Baseline
    candidate: Candidate
    watch_id: str

    @property
    def shown(self) -> str:
        """What is watched, in short."""
        return f"{self.candidate.label} of {short_model_name(self.baseline.model_id)} ({self.baseline.profile.name})"

    @property
    def identity(self) -> WatchIdentity:
        """Which watch it is."""
        return WatchIdentity(
            watch_id=self.watch_id,
            model_id=self.baseline.model_id,
            engine=self.candidate.engine,
            profile=self.baseline.profile.name,
            device_name=self.device_name,
        )

    @property
    def device_name(self) -> str:
        """That of the machine that made the plan."""
        return self.baseline.side.device_name or self.baseline.device.value


@dataclass(frozen=True, kw_only=True)
class Subject(Target):
    """The watched configuration on this machine."""

    engine: CheckedEngine
    device: DeviceFacts

    @property
    @override
    def device_name(self) -> str:
        return self.device.device_name


def read_target(plan: str) -> Target:
    """What the plan (or whatever `kvray check` takes) says to watch.

    Raises:
        KvrayError: it cannot be read.
    """
    baseline = read_baseline(plan)
    candidate = baseline.ranked[0]
    return Target(baseline=baseline, candidate=candidate, watch_id=_watch_id(baseline, candidate))


def prepare(target: Target, consent: Consent) -> Subject:
    """`target` on this machine.

    Raises:
        KvrayError: it cannot be measured here.
    """
    baseline, candidate = target.baseline, target.candidate
    device = device_of(baseline)
    check_consent(baseline, [candidate], consent)
    engine = found_engine(baseline, candidate.engine, consent, device)
    if engine.has_other_weights:
        raise ResultsError(
            f"{baseline.model_id!r} has other weights now ({engine.model.revision}) than the plan was measured with "
            f"({engine.recorded_revision}).",
            hint="Tune again, and watch the new plan.",
        )
    check_workload(engine, baseline.profile)
    check_candidates({candidate.engine: engine}, [candidate], device, baseline.profile)
    return Subject(baseline=baseline, candidate=candidate, watch_id=target.watch_id, engine=engine, device=device)


def _watch_id(baseline: Baseline, candidate: Candidate) -> str:
    recorded = baseline.models.get(candidate.engine)
    known = {
        "candidate": candidate.candidate_id,
        "model": baseline.model_id,
        "revision": None if recorded is None else recorded.model_revision,
        "profile": baseline.profile.measured,
        "device": baseline.device.value,
    }
    return f"w{hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:8]}"


class Measuring(Protocol):
    """What observes the subject."""

    def observe(
        self, role: ObservationRole, processes: int, *, at: dt.datetime, load: str | None, run_id: str
    ) -> Observation:
        """The anchor and one fresh process of the subject, in turn, as often as `processes` says; of a GPU the anchor
        once. States and events are not decided yet."""


class Measurer:
    """Measures the subject in a side of its own, which starts with it; use it in a `with` statement.

    Raises:
        EngineError: on entering: the engine cannot run.
    """

    def __init__(self, subject: Subject, timeout_s: float) -> None:
        self._subject = subject
        self._timeout_s = timeout_s
        self._ending = contextlib.ExitStack()

    def __enter__(self) -> Self:
        subject = self._subject
        python = subject.engine.python
        spec = SideSpec(
            name="now",
            engines=(subject.candidate.engine,),
            engine_pythons={} if python is None else {subject.candidate.engine: python},
            device=subject.device.device,
            offline=subject.engine.request.offline,
        )
        with contextlib.ExitStack() as stack:
            folder = tempfile.TemporaryDirectory(prefix="kvray-watch-", ignore_cleanup_errors=True)
            self._side = stack.enter_context(Side(spec, Path(stack.enter_context(folder))))
            self._ending = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def observe(
        self, role: ObservationRole, processes: int, *, at: dt.datetime, load: str | None, run_id: str
    ) -> Observation:
        """As `Measuring` says; why a process failed is in the observation's message."""
        results, rates, device = [], [], self._subject.device.device
        threads = trial_threads(wished_threads(), 1)
        for number in range(1, processes + 1):
            if number == 1 or device is DeviceType.CPU:  # a GPU's takes an engine's start
                anchor = measure_anchor(device, self._subject.engine.adapter, threads)
                rates += [] if anchor is None else [anchor]
            results.append(self._side.measure(self._request(number, run_id)))
        sitting = _Sitting(at=at, facts=self._side.facts, results=tuple(results), rates=tuple(rates), run_id=run_id)
        return _observation(self._subject, sitting, role, load)

    def _request(self, number: int, run_id: str) -> SideRequest:
        subject = self._subject
        return SideRequest(
            run_id=run_id,
            trial_id=f"watch{number}-{secrets.token_hex(2)}",
            round_number=number,
            candidate=subject.candidate,
            model=subject.engine.request,
            profile=subject.baseline.profile,
            device=subject.device.device,
            timeout_s=self._timeout_s,
        )


@dataclass(frozen=True, kw_only=True)
class _Sitting:
    """What was measured at one moment."""

    at: dt.datetime
    facts: SideFacts
    results: tuple[TrialResult, ...]
    rates: tuple[AnchorRates, ...]
    run_id: str


def _observation(subject: Subject, sitting: _Sitting, role: ObservationRole, load: str | None) -> Observation:
    records = [one.record for one in sitting.results]
    whole = [one for one in sitting.results if not one.record.status.is_failure]
    failures = dict.fromkeys(failure_text(one) for one in records if one.status.is_failure)
    samples = side_samples(whole, subject.baseline.profile)
    ttft, decode, peak = (_each(samples, metric) for metric in ComparedMetric)
    processes = len(ttft)
    copies = tuple(one.copy_gb_s for one in sitting.rates)
    products = tuple(one.matmul_gflop_s for one in sitting.rates)
    facts = sitting.facts
    return Observation(
        observation_id=observation_id(sitting.at, role),
        watch_id=subject.watch_id,
        observed_at=sitting.at,
        role=role if processes or role is ObservationRole.CONFIRM else ObservationRole.ANCHOR,
        candidate_id=subject.candidate.candidate_id,
        model_id=subject.baseline.model_id,
        profile=subject.baseline.profile.name,
        engine=subject.candidate.engine,
        device_name=facts.device_name,
        hardware=_machine_digest(facts),
        host=facts.host,
        processes=processes,
        ttft_ms=_mean(ttft),
        decode_tok_s=_mean(decode),
        peak_mib=_mean(peak),
        ttft_ms_each=ttft,
        decode_tok_s_each=decode,
        peak_mib_each=peak,
        copy_gb_s=_mean(copies),
        matmul_gflop_s=_mean(products),
        copy_gb_s_each=copies,
        matmul_gflop_s_each=products,
        anchor=sitting.rates[-1].anchor if sitting.rates else None,
        driver_version=facts.driver_version,
        engine_versions=dict(facts.engine_versions.get(subject.candidate.engine, {})),
        python_version=facts.python_version,
        kvray_version=facts.kvray_version,
        variables=users_variables(),
        kernels=_kernels(whole),
        disturbed=bool(len(samples.disturbed)) and float(np.mean(samples.disturbed)) > 0.5,
        load=load,
        message=f"{'; '.join(failures)}." if failures else None,
        run_id=sitting.run_id,
        trial_ids=tuple(one.trial_id for one in records),
    )


def unmeasured(target: Target, last: Observation, *, at: dt.datetime, why: str) -> Observation:
    """The observation of a moment when nothing could be measured, on the machine of the observation `last`."""
    return Observation(
        observation_id=observation_id(at, ObservationRole.ANCHOR),
        watch_id=target.watch_id,
        observed_at=at,
        role=ObservationRole.ANCHOR,
        candidate_id=target.candidate.candidate_id,
        model_id=target.baseline.model_id,
        profile=target.baseline.profile.name,
        engine=target.candidate.engine,
        device_name=last.device_name,
        hardware=last.hardware,
        host=last.host,
        kvray_version=kvray_version(),
        message=why,
    )


def observation_id(at: dt.datetime, role: ObservationRole) -> str:
    """Sorts by time, and the confirming observation after the one that asked for it even if no time has passed."""
    return f"{at:%Y%m%dT%H%M%S}.{at.microsecond:06}Z-{list(ObservationRole).index(role)}-{role}"


def _machine_digest(facts: SideFacts) -> str:
    """What the machine is, without the software on it, which may change during a watch."""
    known = [facts.device_name, facts.cpus, facts.memory_gib]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:8]


def _each(samples: SideSamples, metric: ComparedMetric) -> tuple[float, ...]:
    """The geometric mean over the cells of each process that measured them all. Files of libraries are no part of the
    memory, because the system decides how many of their pages it keeps."""
    means = samples.with_libraries_of(0).logs[:, :, metric.column].mean(axis=1)
    return tuple(float(math.exp(one)) for one in means if math.isfinite(one))


def _mean(values: Sequence[float]) -> float | None:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def _kernels(results: Sequence[TrialResult]) -> str | None:
    records = [one.record for one in results]
    named = [(one.kernel_prefill, one.kernel_decode, one.cache_class) for one in records]
    found = max(named, key=lambda parts: sum(part is not None for part in parts), default=())
    return ", ".join(filter(None, found)) or None
