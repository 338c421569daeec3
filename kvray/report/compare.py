"""Two sweeps side by side, for before and after: shared candidates with ratios, and every way the sweeps differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import geometric_mean

from rich.console import Group, RenderableType
from rich.text import Text

from kvray.ratios import amount_sign, memory_text, speed_sign, speed_text, tok_s_text
from kvray.report import formats
from kvray.report.info import ReportInfo
from kvray.report.rows import Row
from kvray.report.terminal import new_table


@dataclass(frozen=True, kw_only=True)
class ComparedRow:
    """One candidate that both sweeps rank, and how many times as fast and as large it is in B as in A."""

    label: str
    a: Row
    b: Row
    ttft_factor: float
    throughput_factor: float
    memory_factor: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Sweep A against sweep B.

    Attributes:
        warnings: every difference because of which the ratios compare more than two runs of the same sweep.
        verdict: what became of the winner, and the mean change of the shared candidates.
        rows: shared candidates in the order of B's ranking.
        only_a, only_b: labels that the other sweep does not rank.
    """

    name_a: str
    name_b: str
    warnings: tuple[str, ...]
    verdict: tuple[str, ...]
    rows: tuple[ComparedRow, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


def compare_info(a: ReportInfo, b: ReportInfo) -> Comparison:
    """What changed from sweep `a` to sweep `b`."""
    before = {row.candidate_id: row for row in a.rows}
    after = {row.candidate_id: row for row in b.rows}
    rows = tuple(_compared(before[row.candidate_id], row) for row in b.rows if row.candidate_id in before)
    return Comparison(
        name_a=_name(a),
        name_b=_name(b),
        warnings=_warnings(a, b),
        verdict=(*_winners(a, b), *_mean_change(rows)),
        rows=rows,
        only_a=tuple(row.label for row in a.rows if row.candidate_id not in after),
        only_b=tuple(row.label for row in b.rows if row.candidate_id not in before),
    )


def render_comparison(comparison: Comparison, *, between: Sequence[RenderableType] = ()) -> RenderableType:
    """Print it with `rich.console.Console().print(...)`.

    Args:
        between: what is shown after the differences and before the candidates.
    """
    return Group(*_parts(comparison, between))


def _compared(a: Row, b: Row) -> ComparedRow:
    return ComparedRow(
        label=b.label,
        a=a,
        b=b,
        ttft_factor=a.ttft_ms / b.ttft_ms,
        throughput_factor=b.decode_tok_s / a.decode_tok_s,
        memory_factor=None if not a.peak_mib or b.peak_mib is None else b.peak_mib / a.peak_mib,
    )


def _name(info: ReportInfo) -> str:
    return f"{info.run_id} ({info.title}, {info.subtitle})"


def _warnings(a: ReportInfo, b: ReportInfo) -> tuple[str, ...]:
    before = {fact.name: fact.text for fact in a.comparable}
    after = {fact.name: fact.text for fact in b.comparable}
    return tuple(
        f"The {name} differs: {before.get(name) or 'unknown'} in A, {after.get(name) or 'unknown'} in B."
        for name in dict.fromkeys((*before, *after))
        if before.get(name, "") != after.get(name, "")
    )


def _winners(a: ReportInfo, b: ReportInfo) -> tuple[str, ...]:
    if a.winner is None or b.winner is None:
        empty = "Neither sweep" if a.winner is b.winner else "Sweep A" if a.winner is None else "Sweep B"
        return (f"{empty} ranks {'anything' if empty.startswith('Neither') else 'nothing'}.",)
    if a.winner.candidate_id == b.winner.candidate_id:
        return (f"The winner is the same: {a.winner.label}.",)
    tied = a.winner.is_tied or b.winner.is_tied
    doubt = " In at least one sweep it is tied, so this may be chance." if tied else ""
    return (f"The winner changed from {a.winner.label} to {b.winner.label}.{doubt}",)


def _mean_change(rows: Sequence[ComparedRow]) -> tuple[str, ...]:
    if not rows:
        return ("No candidate is ranked in both.",)
    changes = [
        f"first token {speed_text(geometric_mean(row.ttft_factor for row in rows))}",
        tok_s_text(geometric_mean(row.throughput_factor for row in rows)),
    ]
    memory = [row.memory_factor for row in rows if row.memory_factor is not None]
    if len(memory) == len(rows):
        changes.append(memory_text(geometric_mean(memory)))
    return (f"B against A, mean of {formats.plural(len(rows), 'shared candidate')}: {formats.listed(changes)}.",)


def _parts(comparison: Comparison, between: Sequence[RenderableType]) -> Iterator[RenderableType]:
    yield Text(f"A  {comparison.name_a}", style="bold")
    yield Text(f"B  {comparison.name_b}", style="bold")
    yield Text()
    if comparison.warnings:
        yield Text("These sweeps are not alike; read the ratios with care.", style="bold yellow")
        yield from (Text(f"- {warning}", style="yellow") for warning in comparison.warnings)
        yield Text()
    yield from between
    yield from (Text(sentence) for sentence in comparison.verdict)
    if comparison.rows:
        yield Text()
        yield _table(comparison.rows)
    for name, labels in (("A", comparison.only_a), ("B", comparison.only_b)):
        if labels:
            yield Text(f"Ranked only in {name}: {formats.listed(labels)}.", style="dim")


def _table(rows: Sequence[ComparedRow]) -> RenderableType:
    table = new_table()
    table.add_column("candidate", overflow="fold", ratio=1)
    for name in ("rank\nA→B", "TTFT ms\nA→B", "speed", "tok/s\nA→B", "speed", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.label,
            f"{row.a.rank}→{row.b.rank}",
            f"{formats.quantity(row.a.ttft_ms)}→{formats.quantity(row.b.ttft_ms)}",
            speed_sign(row.ttft_factor),
            f"{formats.quantity(row.a.decode_tok_s)}→{formats.quantity(row.b.decode_tok_s)}",
            speed_sign(row.throughput_factor),
            amount_sign(row.memory_factor),
        )
    return table
