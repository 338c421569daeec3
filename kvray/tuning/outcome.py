"""How a sweep ends: its records put together, plan and reports written, or the error that says what came of it."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace

from kvray.analysis import analyse
from kvray.analysis.hardware import by_hardware
from kvray.analysis.misses import nearest_misses
from kvray.analysis.shared_error import shared_error
from kvray.errors import (
    AllTrialsFailedError,
    KvrayError,
    LimitsMissedError,
    ModelError,
    OutputError,
    ResultsError,
    SweepError,
    SweepInterruptedError,
)
from kvray.record import TrialResult
from kvray.report.disturbances import disturbances
from kvray.report.formats import plural
from kvray.store.keeper import RecordKeeper
from kvray.store.manifest import CodeCheck
from kvray.store.parquet import ResultsStore
from kvray.tuning.result import TuneResult, read_result, write_artefacts
from kvray.workload import WorkloadProfile

_logger = logging.getLogger("kvray.tuning.outcome")
CodeTest = Callable[[TuneResult], CodeCheck | None]


def write_up(keeper: RecordKeeper, profile: WorkloadProfile, check_code: CodeTest) -> TuneResult:
    """Read the sweep back from where all of it is, merge its files, and write plan and reports beside them; then again
    with what `check_code` says of the winner's code.

    Raises:
        OutputError, ResultsError: it could be written nowhere, or not be read where it was written.
    """
    try:
        store = keeper.settle()
    except OutputError as error:
        rankings = [analyse(group, profile).ranking.entries for group in by_hardware(keeper.results).values()]
        winners = dict.fromkeys(entries[0].record.candidate.label for entries in rankings if entries)
        best = f" The best measured was {', or on other hardware '.join(winners)}." if winners else ""
        raise OutputError(f"{error.message}{best}", hint=error.hint) from error
    try:
        return _written_to(store, keeper.run_id, check_code)
    except (OutputError, ResultsError) as trouble:
        return _written_to(keeper.move(trouble), keeper.run_id, check_code)


def _written_to(store: ResultsStore, run_id: str, check_code: CodeTest) -> TuneResult:
    try:
        store.compact(run_id)
    except OutputError as error:  # every record is there, some perhaps twice, which readers know
        _logger.warning("%s The records of sweep %s stay in several files.", error.message, run_id)
    result = read_result(store, run_id)
    write_artefacts(store, result)
    return _with_code_check(store, result, check_code)


def check_code_of(store: ResultsStore, run_id: str, check_code: CodeTest) -> TuneResult:
    """Write plan and reports of a sweep that is written up again, with what `check_code` says of the winner's code.

    Raises:
        KvrayError: the records cannot be read, or nothing be written.
    """
    return _with_code_check(store, read_result(store, run_id), check_code)


def _with_code_check(store: ResultsStore, result: TuneResult, check_code: CodeTest) -> TuneResult:
    check = check_code(result)
    if check is not None and check != result.manifest.code_check:
        update = {"code_check": check}
        store.write_manifest(store.read_manifest(result.manifest.run_id).model_copy(update=update))
        result = replace(result, manifest=result.manifest.model_copy(update=update))
        write_artefacts(store, result)
    return result


def interruption(keeper: RecordKeeper) -> SweepInterruptedError:
    """The error that tells the user where the ended trials are and how to go on."""
    if keeper.is_complete:
        return SweepInterruptedError(
            f"Interrupted after the last trial; all are kept in {keeper.place.display_name}.",
            hint=f"Plan and reports are there too, or are written by kvray report {_shown(keeper)}.",
        )
    late = f" {plural(keeper.unwritten, 'trial')} could not be written there yet." if keeper.unwritten else ""
    return SweepInterruptedError(
        f"Interrupted; finished trials, and the finished rungs of the others, are kept in {keeper.place.display_name}."
        f"{late}",
        hint=_to_go_on(keeper),
    )


def broken_off(error: SweepError, keeper: RecordKeeper, *, hint: str | None = None) -> SweepError:
    """The `error` that ended the sweep, of the same class, with where its trials are and how to go on.

    Args:
        hint: how, where that is not by the command of a single sweep.
    """
    return type(error)(
        f"{error.message} The trials that had finished are kept in {keeper.place.display_name}.",
        hint=hint or _to_go_on(keeper),
    )


def _to_go_on(keeper: RecordKeeper) -> str:
    elsewhere = f"--output {shlex.quote(keeper.place.display_name)} " if keeper.has_moved else ""
    return f"Repeat the command with {elsewhere}--resume {keeper.run_id} to measure the rest."


def _shown(keeper: RecordKeeper) -> str:
    return f"{shlex.quote(keeper.place.display_name)} --run {keeper.run_id}"


def warn_of_disturbance(result: TuneResult, *, name: str = "") -> None:
    """Say on stderr how much of a finished sweep was disturbed, where that may have changed its result.

    Args:
        name: of the sweep, where others run beside it.
    """
    if warning := disturbances(result.results).warning(result.manifest):
        _logger.warning("%s%s", f"{name}: " if name else "", warning)


def no_winner(result: TuneResult) -> KvrayError:
    """The error of a sweep in which nothing can be ranked."""
    return (
        limits_missed(result)
        or everybodys_error(result)
        or AllTrialsFailedError(
            f"No candidate was measured completely: {_failures(result.results)}.",
            hint=f"See {result.paths.shown(result.paths.report_markdown)} for each one's reason and log.",
        )
    )


def everybodys_error(result: TuneResult) -> KvrayError | None:
    """The error of a sweep that ended because its baseline's error was no candidate's own; `None` for any other."""
    records = [one.record for one in result.results]
    shared = shared_error(records, result.manifest.baseline_id)
    if shared is None:
        return None
    others = [one for one in records if one.status.was_launched and one.candidate_id != shared.candidate_id]
    told = others[0].candidate.label if len(others) == 1 else f"{len(others)} other candidates"
    error, message = _named_error(shared.message or f"{shared.status}")
    return error(
        f"The baseline and {told} ended with the same error, so no candidate causes it: {message.rstrip('.')}.",
        hint=f"{result.paths.shown(result.paths.report_markdown)} has the log. Once it is fixed, repeat the command "
        f"with --resume {result.manifest.run_id} --retry {shared.status}.",
    )


def _named_error(message: str) -> tuple[type[KvrayError], str]:
    """The class of the error that ended a trial, and its words without that name; a trial's error is known by them."""
    named = f"{ModelError.__name__}: "
    if message.startswith(named):
        return ModelError, message.removeprefix(named)
    return AllTrialsFailedError, message


def limits_missed(result: TuneResult) -> LimitsMissedError | None:
    """The error of a sweep in which candidates were measured and none keeps the limits; `None` for any other sweep."""
    profile, ranking = result.manifest.profile, result.analysis.ranking
    nearest = () if ranking.entries else nearest_misses(ranking, profile.limits)
    if not nearest:
        return None
    told = " ".join(f"{place}. {near.record.candidate.label}: {near.text}." for place, near in enumerate(nearest, 1))
    return LimitsMissedError(
        f"No candidate keeps the limits of profile {profile.name!r}. Nearest: {told}",
        hint="Loosen a limit (kvray rank judges these records anew), or let kvray tune --space full try more.",
    )


def _failures(results: Sequence[TrialResult]) -> str:
    """E.g. `oom (3): CUDA out of memory; unsupported (1): …`, each status with its first message."""
    failed = [result.record for result in results if result.record.status.was_launched]
    by_status = {record.status: [other for other in failed if other.status is record.status] for record in failed}
    return "; ".join(
        f"{status} ({len(records)}): {(records[0].message or 'no message').rstrip('.')}"
        for status, records in by_status.items()
    )
