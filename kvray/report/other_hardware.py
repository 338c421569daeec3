"""What a report of one hardware says of the others that the same sweep measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kvray.analysis.ranking import Ranking
from kvray.report import formats
from kvray.report.info import ReportInfo


def hardware_note(device_name: str, digest: str | None, ranking: Ranking, folder: str) -> str:
    """E.g. `It also measured on H100 (hardware 1a2b3c4d), where static/sdpa is the best: see hardware-1a2b3c4d.`"""
    known = f"hardware {digest}" if digest else "hardware not recorded"
    best = f"where {formats.clean_line(ranking.winner.record.candidate.label)} is the best" if ranking.entries else ""
    what = f"{best}; its plan and report are" if best else "where nothing can be ranked; its report is"
    return f"The sweep also measured on {formats.clean_line(device_name)} ({known}), {what} in {folder}."


def with_notes(info: ReportInfo, notes: Sequence[str]) -> ReportInfo:
    """`info` with `notes` before its own."""
    return replace(info, headline=replace(info.headline, notes=(*notes, *info.headline.notes)))
