"""A sweep read back from its records: what it measured, what that means, and the files made from it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from kvray.analysis import Analysis, analyse
from kvray.analysis.hardware import best_first, by_hardware, device_name_of, gpu_type_of
from kvray.errors import InvalidValueError, ResultsError, did_you_mean
from kvray.judgement import Judging
from kvray.record import TrialResult
from kvray.report.attempts import lost_runs_text
from kvray.report.info import ReportInfo, report_info
from kvray.report.other_hardware import hardware_note, with_notes
from kvray.report.repeating import going_on_with, sentence
from kvray.store.manifest import SweepManifest
from kvray.store.parquet import ResultsStore, records_sha256
from kvray.store.paths import ResultsPaths
from kvray.store.resuming import current_results

_MOST_NAMED = 10
_UNRECORDED = "unknown"
"""Names the folder of trials that say nothing of the hardware, beside others that do."""
_logger = logging.getLogger("kvray.tuning.result")


@dataclass(frozen=True, kw_only=True)
class TuneResult:
    """A sweep as its records tell it, what they mean, and where its files are.

    Attributes:
        manifest: as it was written, but for the weights and limits of the profile: `analysis` judges by these.
        results: trials of the last attempt's fingerprint, and of one hardware; `analysis` rests on them.
        set_aside: trials of other fingerprints, which cannot be compared with those.
        records: all trials that lie there.
        hardware: digest of what measured them (see `TrialRecord`).
        other_hardware: the same sweep on each further hardware of a cluster. Ranked first is the one that measured the
            baseline and ranks most candidates.
    """

    manifest: SweepManifest
    results: tuple[TrialResult, ...]
    set_aside: tuple[TrialResult, ...] = ()
    analysis: Analysis
    records: Sequence[TrialResult]
    paths: ResultsPaths
    hardware: str | None = None
    other_hardware: tuple[TuneResult, ...] = ()

    @cached_property
    def records_sha256(self) -> str:
        """Hash of the content of all `records`."""
        return records_sha256(self.records)

    @property
    def device_name(self) -> str:
        """The device that measured `results`."""
        seen = device_name_of(self.results) if self.hardware is not None else None
        return seen or self.manifest.device_name


def read_result(store: ResultsStore, run_id: str, judging: Judging | None = None) -> TuneResult:
    """The sweep `run_id` as it lies in `store`, analysed anew, by the weights and limits of `judging` where they are
    given.

    Raises:
        ResultsError: there is no such sweep.
        ProfileError: weights or limits are not allowed.
    """
    manifest = store.read_manifest(run_id).judged_by(judging)
    records = store.read(run_id)
    results, set_aside = current_results(manifest, records)
    groups = by_hardware(results)
    analyses = {key: _analysed(manifest, group) for key, group in groups.items()}
    names = {key: device_name_of(group) for key, group in groups.items()}
    first, *others = best_first(analyses, names, manifest.device_name)
    result = TuneResult(
        manifest=manifest.on_type(gpu_type_of(groups[first])),
        results=groups[first],
        set_aside=set_aside,
        analysis=analyses[first],
        records=records,
        paths=store.paths(run_id),
        hardware=first,
    )
    return replace(result, other_hardware=tuple(_on(key, result, groups[key], analyses[key]) for key in others))


def _analysed(manifest: SweepManifest, results: Sequence[TrialResult]) -> Analysis:
    about = manifest.on_type(gpu_type_of(results))
    defaults = {about.engine: about.baseline_id, **about.defaults}  # older sweeps have the baseline alone
    return analyse(results, manifest.profile, seed=manifest.seed, defaults=defaults)


def _on(hardware: str | None, result: TuneResult, results: tuple[TrialResult, ...], analysis: Analysis) -> TuneResult:
    """The sweep of `result` on further hardware. The winner's code was not run there."""
    return replace(
        result,
        manifest=result.manifest.on_type(gpu_type_of(results)).model_copy(update={"code_check": None}),
        results=results,
        analysis=analysis,
        paths=replace(result.paths, hardware=hardware or _UNRECORDED),
        hardware=hardware,
    )


def chosen_run(store: ResultsStore, run_id: str | None) -> str:
    """`run_id` if `store` holds such a sweep, readable or not; the newest for `None`.

    Raises:
        ResultsError: it holds none of this id; the message names those that it holds.
    """
    if run_id is None:
        return store.latest_run_id()
    with contextlib.suppress(InvalidValueError):
        if store.has_manifest(run_id):
            return run_id
    known = store.run_ids()
    held = f"It holds: {', '.join(known[-_MOST_NAMED:])}." if known else "It holds none."
    raise ResultsError(
        f"Results folder {store.display_name!r} holds no sweep {run_id!r}.", hint=f"{did_you_mean(run_id, known)}{held}"
    )


def read_measured(store: ResultsStore, run_id: str, judging: Judging | None = None) -> TuneResult:
    """Like `read_result`, for a sweep of which something was measured; warns where raw runs of it are gone.

    Raises:
        ResultsError: there is no such sweep, or not one record of a launched trial that can be read.
    """
    result = read_result(store, run_id, judging)
    if not any(one.record.status.was_launched for one in (*result.results, *result.set_aside)):
        raise _nothing_measured(store, result.manifest)
    if lost := lost_runs_text(result.manifest, result.results, store.display_name):
        _logger.warning("%s", lost)
    return result


def _nothing_measured(store: ResultsStore, manifest: SweepManifest) -> ResultsError:
    what = f"Sweep {manifest.run_id!r} in {store.display_name!r} has no record of a trial that was launched"
    go_on = going_on_with(manifest)
    if manifest.is_complete:
        return ResultsError(f"{what}: its files are damaged or gone.", hint=f"{sentence(go_on)} to measure it.")
    if manifest.was_submitted:
        why = "no trial had finished when its results were fetched, or files are damaged or gone"
        hint = f"While its job runs, repeat kvray jobs fetch later. If it was interrupted, {go_on} to measure the rest."
    else:
        why = "it still runs or was interrupted before the first trial had finished, or files are damaged or gone"
        hint = f"If it does not run any more, {go_on} to measure it."
    return ResultsError(f"{what}: {why}.", hint=hint)


def info_of(result: TuneResult) -> ReportInfo:
    """What reports show of the sweep on the hardware of `result`."""
    info = report_info(_shown(result), result.results, result.analysis, result.set_aside)
    return with_notes(
        info,
        [
            hardware_note(one.device_name, one.hardware, one.analysis.ranking, one.paths.reports.name)
            for one in result.other_hardware
        ],
    )


def on_each_hardware(result: TuneResult) -> Iterator[TuneResult]:
    """`result`, then those of further hardware."""
    yield result
    yield from result.other_hardware


def _shown(result: TuneResult) -> SweepManifest:
    """The manifest with the device that measured `result`: that of a cluster names one of its nodes."""
    return result.manifest.model_copy(update={"device_name": result.device_name})


def write_artefacts(store: ResultsStore, result: TuneResult) -> None:
    """Write reports and the ranking's table, and plan and snippet where there is a winner, beside the records.

    Where there is none, a plan and a snippet that were written before are removed: they follow other limits.

    Raises:
        OutputError: a file cannot be written.
    """
    # What writes takes a tenth of a second to load, which `kvray rank` does without.
    from kvray.report.ranking_file import ranking_file_rows

    rows = [
        row
        for one in on_each_hardware(result)
        for row in ranking_file_rows(_shown(one), one.results, one.analysis, hardware=one.hardware)
    ]
    store.write_ranking(result.manifest.run_id, rows)
    for one in on_each_hardware(result):
        _write_reports(store, one)


def _write_reports(store: ResultsStore, result: TuneResult) -> None:
    from kvray.plan.builder import PlanBuilder
    from kvray.plan.snippet import render_snippet
    from kvray.report.html import render_html
    from kvray.report.markdown import render_markdown

    info = info_of(result)
    store.write_text(result.paths.report_markdown, render_markdown(info))
    store.write_text(result.paths.report_html, render_html(info))
    if not result.analysis.ranking.entries:
        store.delete(result.paths.best_plan)
        store.delete(result.paths.optimized_config)
    else:
        plan = PlanBuilder(result).build()
        store.write_text(result.paths.best_plan, plan.to_json())
        store.write_text(result.paths.optimized_config, render_snippet(plan))
