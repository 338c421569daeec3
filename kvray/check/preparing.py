"""What a check will do, found out before anything is measured: candidates, engines, sides, and whether the record of
this very machine is there to compare with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kvray.candidate import Candidate
from kvray.check.baseline import Baseline, read_baseline
from kvray.check.config import CheckConfig
from kvray.check.result import CheckMode
from kvray.check.side import SideSpec
from kvray.check.subject import (
    CheckedEngine,
    check_candidates,
    check_consent,
    check_workload,
    device_of,
    found_engine,
)
from kvray.engines.base import DeviceFacts
from kvray.errors import InvalidValueError, KvrayError, ResultsError
from kvray.files.remote import is_uri
from kvray.probes.cpu import available_cpus, total_memory_mib
from kvray.tuning.candidate_list import listed_candidates

_A_B = "compare here and now with --against python=PATH or --against env=FILE"
_logger = logging.getLogger("kvray.check")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is checked, found fit for this machine.

    Attributes:
        engines: of the candidates, by name.
        reference: the engine that makes what quality is compared with; `None` leaves quality unmeasured.
    """

    baseline: Baseline
    mode: CheckMode
    candidates: tuple[Candidate, ...]
    device: DeviceFacts
    engines: Mapping[str, CheckedEngine]
    reference: CheckedEngine | None

    @property
    def names(self) -> tuple[str, str]:
        """Names of the sides, before and now."""
        return ("A", "B") if self.mode is CheckMode.A_B else ("baseline", "now")


def prepared(config: CheckConfig) -> Subject:
    """What `config` asks for.

    Raises:
        KvrayError: the baseline cannot be read, or cannot be checked here.
    """
    _check_output(config)
    baseline = read_baseline(config.baseline)
    mode = CheckMode.RECORD if config.against is None else CheckMode.A_B
    candidates = _chosen(config, baseline)
    device = device_of(baseline)
    if mode is CheckMode.RECORD:
        _check_recorded(baseline, candidates)
        _check_same_machine(baseline, device)
    check_consent(baseline, candidates, config.consent)
    names = dict.fromkeys(one.engine for one in candidates)
    engines = {name: found_engine(baseline, name, config.consent, device) for name in names}
    for engine in engines.values():
        _check_weights(engine, mode)
        check_workload(engine, baseline.profile)
    check_candidates(engines, candidates, device, baseline.profile)
    reference = _reference_engine(config, baseline, engines, device)
    return Subject(
        baseline=baseline, mode=mode, candidates=candidates, device=device, engines=engines, reference=reference
    )


def side_specs(config: CheckConfig, subject: Subject) -> tuple[SideSpec, ...]:
    """The sides that are measured: now alone, or A and B."""
    used = [*subject.engines.values(), *([] if subject.reference is None else [subject.reference])]
    here = SideSpec(
        name=subject.names[0] if subject.mode is CheckMode.A_B else subject.names[1],
        engines=tuple(dict.fromkeys(one.adapter.name for one in used)),
        engine_pythons={one.adapter.name: one.python for one in used if one.python is not None},
        device=subject.device.device,
        offline=config.consent.offline,
    )
    if config.against is None:
        return (here,)
    other = replace(
        here,
        name=subject.names[1],
        python=config.against.python,
        variables=config.against.variables,
        engines=tuple(subject.engines),
        # Another Python brings its own engines, or says what it lacks.
        engine_pythons=here.engine_pythons if config.against.python is None else {},
    )
    return here, other


def _check_output(config: CheckConfig) -> None:
    """Refuse to replace the baseline: the next check would allow as much again."""
    if is_uri(config.baseline) or is_uri(config.check_file):
        same = config.baseline == config.check_file
    else:
        place = Path(config.baseline)
        same = (place / "check.json" if place.is_dir() else place).resolve() == Path(config.check_file).resolve()
    if same:
        raise InvalidValueError(
            f"The check would replace its own baseline {config.baseline!r}.", hint="Name another --output or --json."
        )


def _chosen(config: CheckConfig, baseline: Baseline) -> tuple[Candidate, ...]:
    if config.candidates is not None and config.all_ranked:
        raise InvalidValueError("--candidates and --all-ranked exclude each other.")
    if config.candidates is not None:
        return listed_candidates(config.candidates, results=baseline.folder)
    return baseline.ranked if config.all_ranked else baseline.ranked[:1]


def _check_recorded(baseline: Baseline, candidates: Sequence[Candidate]) -> None:
    """Raises `ResultsError` where the record of a candidate is not there."""
    if baseline.why_unrecorded is not None:
        raise ResultsError(
            f"{baseline.why_unrecorded.rstrip('.')}, so there is no record to compare with.",
            hint=f"Name the results folder (FOLDER#RUN_ID) or a check.json, or {_A_B}.",
        )
    missing = [one.label for one in candidates if one.candidate_id not in baseline.recorded]
    if missing:
        raise ResultsError(
            f"Baseline {baseline.shown!r} has no whole measurement of {', '.join(missing)}.",
            hint=f"Name others, or {_A_B}.",
        )


def _check_same_machine(baseline: Baseline, device: DeviceFacts) -> None:
    """Raises `ResultsError` where this machine is not the one that the record is of, as far as both are known."""
    side = baseline.side
    pairs = {
        "device": (side.device_name, device.device_name),
        "usable CPUs": (side.cpus, available_cpus()),
        "memory, GiB": (side.memory_gib, round(total_memory_mib() / 1024)),
    }
    changed = [f"{name}: {one} → {two}" for name, (one, two) in pairs.items() if one is not None and one != two]
    if changed:
        raise ResultsError(
            f"This is not the machine that the baseline was measured on ({'; '.join(changed)}), so its record does not "
            "count here.",
            hint=f"{_A_B[:1].upper()}{_A_B[1:]}, or measure a new baseline here.",
        )


def _check_weights(engine: CheckedEngine, mode: CheckMode) -> None:
    """Raises `ResultsError` where the model's files are not those of the record; both sides may measure others."""
    if not engine.has_other_weights:
        return
    told = (
        f"The model {engine.request.model_id!r} is not the one that the baseline measured: revision "
        f"{engine.recorded_revision} then, {engine.model.revision} now"
    )
    if mode is CheckMode.RECORD:
        raise ResultsError(f"{told}.", hint=f"Measure a new baseline, or {_A_B}.")
    _logger.warning("%s. Both sides measure the present one.", told)


def _reference_engine(
    config: CheckConfig, baseline: Baseline, engines: Mapping[str, CheckedEngine], device: DeviceFacts
) -> CheckedEngine | None:
    """The engine of the baseline's reference; `None` where no limit is to be kept, or quality says nothing."""
    reference = baseline.reference
    if reference is None or baseline.profile.limits.max_quality_loss is None:
        return None
    try:
        engine = engines.get(reference.engine) or found_engine(baseline, reference.engine, config.consent, device)
    except KvrayError as error:
        _logger.warning("Quality is not measured, because the reference's engine cannot run here: %s", error)
        return None
    return None if engine.model.random_weights else engine
