"""A sweep read back from its records: what it measured, what that means, and the files made from it."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass

from kvray.analysis import Analysis, analyse
from kvray.errors import InvalidValueError, ResultsError, did_you_mean
from kvray.judgement import Judging
from kvray.plan.builder import PlanBuilder
from kvray.plan.snippet import render_snippet
from kvray.record import TrialResult
from kvray.report.attempts import lost_runs_text
from kvray.report.html import render_html
from kvray.report.info import ReportInfo, report_info
from kvray.report.markdown import render_markdown
from kvray.report.ranking_file import ranking_file_rows
from kvray.store.manifest import SweepManifest
from kvray.store.parquet import ResultsStore
from kvray.store.paths import ResultsPaths
from kvray.store.resuming import current_results

_MOST_NAMED = 10
_logger = logging.getLogger("kvray.tuning.result")


@dataclass(frozen=True, kw_only=True)
class TuneResult:
    """A sweep as its records tell it, what they mean, and where its files are.

    Attributes:
        manifest: as it was written, but for the weights and limits of the profile: `analysis` judges by these.
        results: trials of the last attempt's fingerprint; `analysis` rests on them.
        set_aside: trials of other fingerprints, which cannot be compared with those.
    """

    manifest: SweepManifest
    results: tuple[TrialResult, ...]
    set_aside: tuple[TrialResult, ...] = ()
    analysis: Analysis
    records_sha256: str
    paths: ResultsPaths


def read_result(store: ResultsStore, run_id: str, judging: Judging | None = None) -> TuneResult:
    """The sweep `run_id` as it lies in `store`, analysed anew, by the weights and limits of `judging` where they are
    given.

    Raises:
        ResultsError: there is no such sweep.
        ProfileError: weights or limits are not allowed.
    """
    manifest = store.read_manifest(run_id).judged_by(judging)
    results, set_aside = current_results(manifest, store.read(run_id))
    return TuneResult(
        manifest=manifest,
        results=results,
        set_aside=set_aside,
        analysis=analyse(results, manifest.profile, seed=manifest.seed),
        records_sha256=store.records_sha256(run_id),
        paths=store.paths(run_id),
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
        raise ResultsError(
            f"Sweep {run_id!r} in {store.display_name!r} has no record of a trial that was launched: it was "
            "interrupted before the first had finished, or its files are damaged or gone.",
            hint=f"Repeat its command with --resume {run_id} to measure it.",
        )
    if lost := lost_runs_text(result.manifest, result.results, store.display_name):
        _logger.warning("%s", lost)
    return result


def info_of(result: TuneResult) -> ReportInfo:
    """What reports show of the sweep."""
    return report_info(result.manifest, result.results, result.analysis, result.set_aside)


def write_artefacts(store: ResultsStore, result: TuneResult) -> None:
    """Write reports and the ranking's table, and plan and snippet where there is a winner, beside the records.

    Where there is none, a plan and a snippet that were written before are removed: they follow other limits.

    Raises:
        OutputError: a file cannot be written.
    """
    info = info_of(result)
    store.write_text(result.paths.report_markdown, render_markdown(info))
    store.write_text(result.paths.report_html, render_html(info))
    rows = ranking_file_rows(result.manifest, result.results, result.analysis)
    store.write_ranking(result.manifest.run_id, rows)
    if not result.analysis.ranking.entries:
        store.delete(result.paths.best_plan)
        store.delete(result.paths.optimized_config)
    else:
        plan = PlanBuilder(result).build()
        store.write_text(result.paths.best_plan, plan.to_json())
        store.write_text(result.paths.optimized_config, render_snippet(plan))
