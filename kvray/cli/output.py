"""The end of a sweep for people (tables, paths) and for programs (one JSON object)."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from kvray.analysis.aggregate import Metrics
from kvray.analysis.engine_best import EngineBest, unlike_weights
from kvray.analysis.misses import NearMiss, nearest_misses
from kvray.analysis.ranking import RankedCandidate
from kvray.report.ranking_file import ratios_of
from kvray.report.terminal import render_terminal
from kvray.tuning.result import TuneResult, info_of, on_each_hardware


def print_report(result: TuneResult) -> None:
    """Print headline and ranking, then where plan and reports are."""
    console = Console()
    print_rankings(result, console)
    print_paths(result, console)


def print_rankings(result: TuneResult, console: Console) -> None:
    """Print headline and ranking, of each hardware that a cluster measured on."""
    for one in on_each_hardware(result):
        console.print(render_terminal(info_of(one)))


def print_paths(result: TuneResult, console: Console) -> None:
    """Print where the files of a sweep are."""
    paths = result.paths
    files = {"report": paths.report_html, "as Markdown": paths.report_markdown, "as Parquet": paths.ranking}
    if result.analysis.ranking.entries:
        files = {"plan": paths.best_plan, "snippet": paths.optimized_config, **files}
    for one in result.other_hardware:
        name, path = (
            ("plan", one.paths.best_plan) if one.analysis.ranking.entries else ("report", one.paths.report_html)
        )
        files[f"{name} for {one.device_name} ({one.hardware})"] = path
    for name, path in files.items():
        console.print(Text(f"{name + ':':<12} {paths.shown(path)}"), soft_wrap=True)


def summary(result: TuneResult, *, wall_s: float | None = None) -> dict[str, Any]:
    """What `--json` prints: ids, winner or nearest misses, baseline, confidence, trials by status, files. Units are in
    the names; a `gain` has those of the ranking's columns (docs/columns.md)."""
    analysis, paths, profile = result.analysis, result.paths, result.manifest.profile
    ranking = analysis.ranking
    baseline = next((e for e in ranking.entries if e.record.candidate_id == result.manifest.baseline_id), None)
    statuses = [one.record.status.value for one in result.results]
    confidence = analysis.confidence
    gain = ranking.entries[0].gain if ranking.entries else None
    near = () if ranking.entries else nearest_misses(ranking, profile.limits)
    return {
        "run_id": result.manifest.run_id,
        "model_id": result.manifest.model_id,
        "profile": profile.name,
        "weights": profile.weights._asdict(),
        "limits": profile.limits.model_dump(),
        "device": result.device_name,
        "notes": [*result.manifest.model_notes, *filter(None, [unlike_weights(result.manifest, ranking)])],
        "wall_s": None if wall_s is None else round(wall_s, 3),
        "busy_s": round(sum(one.record.busy_s or 0.0 for one in result.results), 3),
        "trials": {status: statuses.count(status) for status in sorted(set(statuses))},
        "winner": _entry(ranking.entries[0]) if ranking.entries else None,
        "nearest_misses": [_near_miss(one) for one in near],
        "baseline": None if baseline is None else _entry(baseline),
        "confidence": None
        if confidence is None
        else {
            "winner_share": confidence.winner_share,
            "is_disturbed": confidence.is_disturbed,
            "reason": confidence.choice.reason.value,
            "confirm_rounds": gain.pairs if gain else 0,
            "processes": confidence.processes,
            "runs": confidence.runs,
            "ties": list(confidence.ties),
        },
        **({"engines": [_engine(one) for one in analysis.engines]} if analysis.engines else {}),
        "code_check": _code_check(result),
        "is_complete": result.manifest.is_complete,
        "trials_set_aside": sum(one.record.status.was_launched for one in result.set_aside),
        "records_sha256": result.records_sha256,
        "files": {
            "plan": paths.shown(paths.best_plan) if ranking.entries else None,
            "snippet": paths.shown(paths.optimized_config) if ranking.entries else None,
            "report_markdown": paths.shown(paths.report_markdown),
            "report_html": paths.shown(paths.report_html),
            "ranking": paths.shown(paths.ranking),
        },
        **_other_hardware(result),
    }


def _other_hardware(result: TuneResult) -> dict[str, Any]:
    """A sweep on unlike nodes of a cluster tells of each; any other has no such keys."""
    if not result.other_hardware:
        return {}
    others = [{**summary(one), "hardware": one.hardware} for one in result.other_hardware]
    return {"hardware": result.hardware, "other_hardware": others}


def _code_check(result: TuneResult) -> dict[str, str] | None:
    entries = result.analysis.ranking.entries
    check = result.manifest.code_check_of(entries[0].record.candidate_id) if entries else None
    return None if check is None else {"outcome": check.outcome.value, "text": check.text}


def _entry(entry: RankedCandidate) -> dict[str, Any]:
    metrics: Metrics = entry.metrics
    return {
        "candidate_id": entry.record.candidate_id,
        "label": entry.record.candidate.label,
        "score": entry.score,
        **vars(metrics),
        "gain": None if entry.gain is None else ratios_of(entry.gain),
        "break_even_tokens": entry.break_even_tokens,
    }


def _engine(one: EngineBest) -> dict[str, Any]:
    """The best candidate of an engine; its `own_gain` is over the engine's own default."""
    return {
        "engine": one.engine,
        "best": _entry(one.best),
        "own_default": None if one.default is None else one.default.record.candidate_id,
        "own_gain": None if one.gain is None else ratios_of(one.gain),
    }


def _near_miss(near: NearMiss) -> dict[str, Any]:
    return {
        "candidate_id": near.record.candidate_id,
        "label": near.record.candidate.label,
        "misses": [
            {
                "limit_name": miss.limit_name,
                "metric": miss.metric,
                "unit": miss.unit,
                "measured": miss.measured,
                "limit": miss.limit,
                "cell": None if miss.cell is None else miss.cell.label,
            }
            for miss in near.misses
        ],
        "text": near.text,
    }
