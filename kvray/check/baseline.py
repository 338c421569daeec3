"""`Baseline`: what a check, or a comparison, measures against. Read from a plan, a results folder or a `check.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvray.candidate import Candidate, DeviceType
from kvray.check.check_file import MOST_BYTES, parse_check
from kvray.check.measured import measured_side
from kvray.check.result import CheckedModel, CheckMode, CheckResult, MeasuredSide, SideInfo
from kvray.errors import InvalidValueError, KvrayError, ResultsError
from kvray.files.documents import read_document, shown_document
from kvray.files.remote import has_suffix, is_uri
from kvray.plan.plan import Plan, load_plan_file
from kvray.record import RANDOM_PREFIX
from kvray.store.manifest import SweepManifest
from kvray.store.parquet import ResultsStore
from kvray.store.speed_variables import names_in
from kvray.tuning.result import TuneResult, chosen_run, read_measured
from kvray.workload import WorkloadProfile

_FORMS = "A baseline is a plan (best_plan.json), a results folder (FOLDER or FOLDER#RUN_ID), or a check.json."
_NAME = "baseline"


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What was measured before.

    Attributes:
        shown: what was named on the command line, without credentials.
        folder: results folder around it, in which candidates are looked up by their ids.
        models: by engine.
        reference: the candidate that qualities are held against; `None` where there is none.
        side: who measured, with what, and where.
        variables: that make libraries faster or slower, as they were set.
        known_variables: names of all that would be among `variables` if they had been set.
        ranked: candidates that may be checked, the winner first.
        recorded: by candidate id, what was measured.
        is_check: whether it is the result of a check, all candidates of which were measured to be judged.
        why_unrecorded: why `recorded` is empty, as a sentence; `None` where it is not.
    """

    shown: str
    folder: str = "."
    model_id: str
    models: Mapping[str, CheckedModel]
    device: DeviceType
    profile: WorkloadProfile
    reference: Candidate | None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    side: SideInfo
    variables: Mapping[str, str] = field(default_factory=dict)
    known_variables: frozenset[str] = frozenset()
    ranked: tuple[Candidate, ...]
    recorded: Mapping[str, MeasuredSide] = field(default_factory=dict)
    why_unrecorded: str | None = None
    is_check: bool = False


def read_baseline(place: str) -> Baseline:
    """The baseline that `place` names: a path or URI of a plan or of a `check.json`, or `FOLDER` or `FOLDER#RUN_ID`.

    Raises:
        InvalidValueError: it names nothing that can be a baseline.
        ResultsError, PlanError: it cannot be read, or holds nothing that was measured.
    """
    folder, separator, run = place.partition("#")
    if not folder or (separator and not run):
        raise InvalidValueError(f"{place!r} names no baseline.", hint=_FORMS)
    if separator or not _is_file(place):
        return replace(_of_folder(folder, run or None, shown=shown_document(place)), folder=folder)
    data = _document(place)
    if "check_version" in data:
        return of_check(parse_check(json.dumps(data), shown=shown_document(place)), shown=shown_document(place))
    if "plan_version" in data:
        return _of_plan(load_plan_file(place), place)
    raise ResultsError(f"{shown_document(place)!r} is no baseline: it is neither a plan nor a check.json.", hint=_FORMS)


def _is_file(place: str) -> bool:
    if is_uri(place):
        return has_suffix(place, ".json")
    return Path(place).is_file() or (place.endswith(".json") and not Path(place).is_dir())


def _document(place: str) -> Mapping[str, object]:
    shown = shown_document(place)
    try:
        data = json.loads(read_document(place, most_bytes=MOST_BYTES))
    except OSError as error:
        raise ResultsError(f"Cannot read baseline {shown!r}: {error.strerror}.", hint=_FORMS) from error
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{shown!r} is no baseline: it is not JSON ({error}).", hint=_FORMS) from error
    if not isinstance(data, dict):
        raise ResultsError(f"{shown!r} is no baseline: it holds a {type(data).__name__}, not an object.", hint=_FORMS)
    return data


# A results folder


def _of_folder(folder: str, run: str | None, *, shown: str) -> Baseline:
    kept = Path(folder) / "check.json"
    store = ResultsStore(folder)
    if run is None and not is_uri(folder) and kept.is_file() and not store.run_ids():
        return read_baseline(str(kept))
    return of_sweep(read_measured(store, chosen_run(store, run)), shown=shown)


def of_sweep(result: TuneResult, *, shown: str) -> Baseline:
    """The baseline that a sweep is.

    Raises:
        ResultsError: it has no winner.
    """
    ranked = tuple(entry.record.candidate for entry in result.analysis.ranking.entries)
    if not ranked:
        raise ResultsError(
            f"Sweep {result.manifest.run_id!r} has no winner, so there is nothing to compare with.",
            hint="See kvray rank for what it measured.",
        )
    manifest = result.manifest
    return Baseline(
        shown=shown,
        model_id=manifest.model_id,
        models={name: _model_of(manifest, name) for name in manifest.engines},
        device=manifest.device,
        profile=manifest.profile,
        reference=_reference_of(result),
        trust_remote_code=manifest.trust_remote_code,
        allow_pickle=manifest.allow_pickle,
        side=_side_of(result),
        **_variables_of(manifest),
        ranked=ranked,
        recorded=_recorded_of(result),
    )


def _model_of(manifest: SweepManifest, engine: str) -> CheckedModel:
    model = manifest.model_of(engine)
    return CheckedModel(
        model_id=_id_here(model.model_id, manifest.sent_models),
        model_revision=model.model_revision,
        python=manifest.engine_pythons.get(engine),
    )


def _id_here(model_id: str, sent_models: Mapping[str, str]) -> str:
    """The path of the user's own, where the model was sent to a cluster and its copy there is not here."""
    own = sent_models.get(model_id)
    return model_id if own is None or Path(model_id.removeprefix(RANDOM_PREFIX)).exists() else own


def _reference_of(result: TuneResult) -> Candidate | None:
    ids = (one.record for one in result.records)
    return next((one.candidate for one in ids if one.candidate_id == result.manifest.baseline_id), None)


def _side_of(result: TuneResult) -> SideInfo:
    winner, manifest = result.analysis.ranking.winner.record, result.manifest
    attempt = manifest.attempts[-1] if manifest.attempts else None
    known = None if attempt is None else attempt.fingerprint
    return SideInfo(
        name=_NAME,
        kvray_version=winner.kvray_version or manifest.kvray_version,
        speed_variables=None if known is None or known.variables is None else dict(known.variables),
        speed_variables_list=None if known is None else known.variables_list,
        engine_versions=winner.versions,
        host=winner.host,
        device_name=winner.device_name or result.device_name,
        driver_version=winner.driver_version,
        cpus=None if known is None else known.cpus,
        memory_gib=None if known is None else known.memory_gib,
        hardware=winner.hardware,
        run_id=manifest.run_id,
        measured_at=manifest.measured_since,
    )


def _variables_of(manifest: SweepManifest) -> dict[str, Any]:
    known = manifest.attempts[-1].fingerprint if manifest.attempts else None
    if known is None or known.variables is None:
        return {}
    return {"variables": known.variables, "known_variables": names_in(known.variables_list)}


def _recorded_of(result: TuneResult) -> dict[str, MeasuredSide]:
    ids = dict.fromkeys(one.record.candidate_id for one in result.results if one.record.status.was_launched)
    trials = {key: [one for one in result.results if one.record.candidate_id == key] for key in ids}
    sides = {key: measured_side(own, result.manifest.profile) for key, own in trials.items()}
    return {key: side for key, side in sides.items() if side.processes}


# A plan


def _of_plan(plan: Plan, place: str) -> Baseline:
    """The plan with the records that it was made from where they lie beside it."""
    missing = (
        f"{shown_document(place)!r} holds no single measurements, and the results folder that it was made in is not "
        "around it."
    )
    try:
        sweep = _sweep_beside(plan, place)
    except KvrayError as error:
        sweep, missing = None, f"The records that {shown_document(place)!r} was made from cannot be read: {error}"
    others = sweep.ranked if sweep is not None else tuple(one.candidate for one in plan.candidates.values())
    return Baseline(
        shown=shown_document(place),
        folder="." if sweep is None else sweep.folder,
        model_id=_id_here(plan.model_id, plan.sent_models),
        models={name: _planned_model(plan, name, sweep) for name in (plan.engine, *plan.other_engines)},
        device=plan.device,
        profile=plan.profile,
        reference=plan.baseline.candidate if plan.baseline else sweep.reference if sweep else None,
        trust_remote_code=plan.trust_remote_code,
        allow_pickle=plan.allow_pickle,
        side=_planned_side(plan) if sweep is None else sweep.side,
        variables={} if sweep is None else sweep.variables,
        known_variables=frozenset() if sweep is None else sweep.known_variables,
        ranked=tuple(dict.fromkeys((plan.winner.candidate, *others))),
        recorded={} if sweep is None else sweep.recorded,
        why_unrecorded=missing if sweep is None else None,
    )


def _sweep_beside(plan: Plan, place: str) -> Baseline | None:
    """The sweep of `plan`, if its file lies where the sweep wrote it: `FOLDER/reports/RUN_ID/best_plan.json`."""
    head, found, _ = place.rpartition(f"reports/{plan.run_id}/")
    if not found:
        absolute = Path(place).absolute().as_posix() if not is_uri(place) else place
        head, found, _ = absolute.rpartition(f"reports/{plan.run_id}/")
    if not found:
        return None
    options = place.partition("?")[1:] if is_uri(place) else ()
    folder = "".join((head.rstrip("/") or ".", *options))
    store = ResultsStore(folder)
    sweep = of_sweep(read_measured(store, chosen_run(store, plan.run_id)), shown=place)
    return replace(sweep, folder=folder)


def _planned_model(plan: Plan, engine: str, sweep: Baseline | None) -> CheckedModel:
    model = plan.model_of(engine)
    return CheckedModel(
        model_id=_id_here(model.model_id, plan.sent_models),
        model_revision=model.model_revision,
        python=None if sweep is None or engine not in sweep.models else sweep.models[engine].python,
    )


def _planned_side(plan: Plan) -> SideInfo:
    seen = plan.fingerprint
    return SideInfo(
        name=_NAME,
        kvray_version=seen.kvray_version,
        engine_versions=seen.versions,
        device_name=seen.device_name,
        driver_version=seen.driver_version,
        run_id=plan.run_id,
        measured_at=plan.measured_at,
    )


# A check


def of_check(result: CheckResult, *, shown: str) -> Baseline:
    """The baseline that an earlier check is: what it measured then as the side that it judged.

    Raises:
        ResultsError: it measured nothing that can be measured again.
    """
    if result.mode is CheckMode.SUITE:
        raise ResultsError(
            f"{shown!r} is a check of the micro-suite.",
            hint="kvray suite check compares with what kvray suite run wrote.",
        )
    checked = [one for one in result.candidates if one.candidate is not None]
    if not checked:
        raise ResultsError(f"{shown!r} names no candidate that could be measured again.")
    return Baseline(
        shown=shown,
        model_id=result.model_id,
        models=result.models,
        device=result.device,
        profile=result.profile,
        reference=result.reference,
        trust_remote_code=result.trust_remote_code,
        allow_pickle=result.allow_pickle,
        side=result.now.model_copy(update={"name": _NAME}),
        is_check=True,
        ranked=tuple(one.candidate for one in checked if one.candidate is not None),
        recorded={
            one.candidate.candidate_id: one.now for one in checked if one.candidate is not None and one.now.processes
        },
        why_unrecorded=None
        if any(one.now.processes for one in checked)
        else f"{shown!r} holds no measurement that came to its end.",
    )
