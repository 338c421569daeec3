"""The overview of a batch, one row a sweep: computed here, and rendered as Markdown and as one HTML page."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from kvray.jobs.sent_model import is_a_job
from kvray.ratios import MISSING, amount_interval_text, amount_sign, speed_sign, speed_sign_interval_text
from kvray.record import short_model_name
from kvray.report import formats
from kvray.report.html import render_page
from kvray.report.markdown import render_template
from kvray.report.verdict import Tone
from kvray.store.batch_manifest import BatchManifest, BatchStatus, BatchSweep
from kvray.store.batch_table import BatchRow


@dataclass(frozen=True, kw_only=True)
class OverviewRow:
    """One sweep as the page shows it.

    Attributes:
        model: its short name, where no other model of the batch has the same.
        apart: what tells it from other sweeps of the same model and profile; empty where there are none.
        device: what measured it, where the batch's sweeps were measured on several; else empty.
        report: the link to its own report, `None` where there is none.
    """

    row: BatchRow
    model: str
    apart: str
    device: str
    reason: str
    report: str | None
    ttft_gain: str
    decode_gain: str
    memory: str

    @property
    def tone(self) -> str:
        """Class of the status's badge; what was disturbed has one of its own beside it."""
        if self.row.status.is_failure:
            return "failure"
        return "winner" if self.row.status is BatchStatus.OK and not self.row.is_disturbed else ""


@dataclass(frozen=True, kw_only=True)
class OverviewInfo:
    """What the overview shows.

    Attributes:
        advice: how to measure again what was disturbed; empty where nothing was.
    """

    title: str
    subtitle: str
    sentence: str
    advice: str
    tone: Tone
    rows: tuple[OverviewRow, ...]


def overview_info(manifest: BatchManifest, rows: Sequence[BatchRow], *, written_at: dt.datetime) -> OverviewInfo:
    """The overview of a batch whose sweeps came to `rows` by `written_at`."""
    sweeps = {one.run_id: one for one in manifest.sweeps}
    devices = list(dict.fromkeys(formats.clean_line(row.device_name) for row in rows if row.device_name))
    return OverviewInfo(
        title=manifest.batch_id,
        subtitle=_subtitle(manifest, len(rows), devices, written_at),
        sentence=_sentence(rows),
        advice=_advice(manifest.batch_id, rows),
        tone=_tone(rows),
        rows=tuple(
            _shown(
                row,
                model=_name(row.model_id, rows),
                apart=_apart(sweeps[row.run_id], manifest.sweeps),
                device=formats.clean_line(row.device_name or "") if len(devices) > 1 else "",
            )
            for row in rows
        ),
    )


def render_overview_html(info: OverviewInfo) -> str:
    """The whole page; nothing is fetched."""
    return render_page("overview.html.j2", info=info)


def render_overview_markdown(info: OverviewInfo) -> str:
    """The whole overview as Markdown."""
    return render_template("overview.md.j2", info=info)


def _subtitle(manifest: BatchManifest, sweeps: int, devices: Sequence[str], written_at: dt.datetime) -> str:
    """E.g. `3 sweeps on AMD EPYC, 2 cores; begun 2026-11-24 21:30 UTC, this page written 2026-11-25 06:12 UTC`."""
    where = f" on {formats.listed(devices)}" if devices else ""
    begun, written = formats.timestamp(manifest.created_at), formats.timestamp(written_at)
    return f"{formats.plural(sweeps, 'sweep')}{where}; begun {begun}, this page written {written}"


def _sentence(rows: Sequence[BatchRow]) -> str:
    """E.g. `3 sweeps: 1 with a winner, 1 interrupted and 1 waiting.`"""
    told = {
        BatchStatus.OK: "with a winner",
        BatchStatus.NO_WINNER: "without a winner",
        BatchStatus.FAILED: "failed",
        BatchStatus.ERROR: "ended by an unexpected error",
        BatchStatus.INTERRUPTED: "interrupted",
        BatchStatus.MEASURING: "measuring when this page was written",
        BatchStatus.WAITING: "waiting",
    }
    counts = [(sum(row.status is status for row in rows), status) for status in told]
    parts = [f"{number} {told[status]}" for number, status in counts if number]
    disturbed = sum(bool(row.is_disturbed) for row in rows)
    told_parts = f"{formats.plural(len(rows), 'sweep')}: {formats.listed(parts)}."
    if not disturbed:
        return told_parts
    return f"{told_parts} {disturbed} {'was' if disturbed == 1 else 'were'} disturbed too much to be trusted."


def _advice(batch_id: str, rows: Sequence[BatchRow]) -> str:
    if not any(row.is_disturbed for row in rows):
        return ""
    options = f"--resume {batch_id} --retry disturbed"
    if is_a_job():
        return f"When the machines are quiet, repeat the kvray submit batch command with {options}."
    return (
        f"When the machine is quiet, kvray batch {options}, with the same --output and other options, measures them "
        "again."
    )


def _tone(rows: Sequence[BatchRow]) -> Tone:
    if any(row.status.is_failure or row.is_disturbed for row in rows):
        return Tone.DOUBTFUL
    return Tone.GOOD if all(row.status is BatchStatus.OK for row in rows) else Tone.NEUTRAL


def _name(model_id: str, rows: Sequence[BatchRow]) -> str:
    short = short_model_name(model_id)
    alike = {row.model_id for row in rows if short_model_name(row.model_id) == short}
    return short if len(alike) == 1 else model_id


def _apart(sweep: BatchSweep, sweeps: Sequence[BatchSweep]) -> str:
    """E.g. `caches: dynamic, quantized`: the settings in which sweeps of one model and profile differ."""
    alike = [one for one in sweeps if (one.model_id, one.profile.name) == (sweep.model_id, sweep.profile.name)]
    names = sorted({name for one in alike for name in one.settings})
    differing = [name for name in names if any(one.settings.get(name) != sweep.settings.get(name) for one in alike)]
    return "; ".join(f"{name}: {_setting(sweep.settings.get(name))}" for name in differing)


def _setting(value: object) -> str:
    if value is None:
        return "default"
    return formats.clean_line(", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))


def _shown(row: BatchRow, *, model: str, apart: str, device: str) -> OverviewRow:
    has_report = row.status.is_measured
    return OverviewRow(
        row=row,
        model=formats.clean_line(model),
        apart=apart,
        device=device,
        reason=formats.clean_line(row.reason or ""),
        report=f"../../reports/{row.run_id}/report" if has_report else None,
        ttft_gain=_gain(row, row.ttft_speedup, row.ttft_speedup_low, row.ttft_speedup_high),
        decode_gain=_gain(row, row.decode_speedup, row.decode_speedup_low, row.decode_speedup_high),
        memory=_gain(row, row.peak_ratio, of_an_amount=True),
    )


def _gain(
    row: BatchRow,
    factor: float | None,
    low: float | None = None,
    high: float | None = None,
    *,
    of_an_amount: bool = False,
) -> str:
    """E.g. `+12 % (+9 % to +15 %)`; the baseline gains nothing over itself."""
    if row.is_baseline:
        return "none: the baseline wins"
    if factor is None:
        return MISSING
    sign = amount_sign(factor) if of_an_amount else speed_sign(factor)
    if low is None or high is None:
        return sign
    return f"{sign} ({(amount_interval_text if of_an_amount else speed_sign_interval_text)(factor, low, high)})"
