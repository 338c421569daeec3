"""What a watch says: one sentence or two for each thing that it makes known."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from kvray.analysis.comparison import ComparedMetric
from kvray.check.watch.events import WatchState
from kvray.check.watch.levels import Change, Watched
from kvray.check.watch.observed import differences
from kvray.check.watch.states import Judged
from kvray.ratios import amount_interval_text, memory_text, speed_interval_text, speed_text, tok_s_text
from kvray.store.history import Observation, ObservationRole

_MOST_NAMED = 6


def observation_text(row: Observation) -> str:
    """What was measured."""
    if not row.processes and row.anchor is None:
        return f"Nothing was measured. {row.message or ''}".rstrip()
    figures = [
        f"{row.ttft_ms:.4g} ms to the first token" if row.ttft_ms else None,
        f"{row.decode_tok_s:.4g} tok/s" if row.decode_tok_s else None,
        f"{row.peak_mib:,.0f} MiB" if row.peak_mib else None,
    ]
    told = ", ".join(filter(None, figures)) or "nothing was measured to its end"
    counted = "1 process" if row.processes == 1 else f"{row.processes} processes"
    anchor = (
        f"; anchor: {row.copy_gb_s:.3g} GB/s copied, {row.matmul_gflop_s:.3g} GFLOP/s"
        if row.copy_gb_s and row.matmul_gflop_s
        else "; the anchor could not be measured"
    )
    disturbed = " Other programs disturbed it." if row.disturbed else ""
    why = f" {row.message}" if row.message else ""
    again = "measured again to confirm: " if row.role is ObservationRole.CONFIRM else ""
    return f"{again}{told} in {counted}{anchor}.{disturbed}{why}"


def failure_text(row: Observation, plan: str) -> str:
    """Nothing could be measured."""
    return f"{plan} can no longer be measured: {row.message or 'nobody knows why.'}"


def suspicion_text(judged: Judged, plan: str) -> str:
    """Something may have become worse."""
    return f"{_changed(judged.watched, judged.change, plan, 'seems')} It is looked into at once, with more processes."


def confirmed_text(judged: Judged, plan: str, rows: Sequence[Observation]) -> str:
    """Something has become worse; with what else changed then."""
    return f"{_changed(judged.watched, judged.change, plan, 'is')}{_what_changed(rows, judged.change)}"


def recovered_text(judged: Judged, plan: str, rows: Sequence[Observation]) -> str:
    """It is back."""
    whose = "The machine" if judged.watched is None else f"{judged.watched.title.capitalize()} of {plan}"
    return (
        f"{whose} has recovered: {_change_text(judged.watched, judged.change)} since {_moment(judged.change)}, "
        f"and back at its level.{_what_changed(rows, judged.change)}"
    )


def unsure_recovery_text(judged: Judged, plan: str) -> str:
    """It looks better, and nobody can be sure yet."""
    return f"{_changed(judged.watched, judged.change, plan, 'seems')} It may be back: the next observation tells."


def by_machine_text(judged: Judged, plan: str) -> str:
    """A change that is not the configuration's."""
    return f"{_changed(judged.watched, judged.change, plan, 'is')} The anchor shows that this is the machine's doing."


def better_text(judged: Judged, plan: str, rows: Sequence[Observation]) -> str:
    """Something has become better than it ever was, or is partly back."""
    rest = " It is still worse than before." if judged.standing.state is WatchState.CONFIRMED else ""
    return f"{_changed(judged.watched, judged.change, plan, 'is')}{rest}{_what_changed(rows, judged.change)}"


def refuted_text(judged: Judged, plan: str) -> str:
    """A suspicion that came to nothing."""
    whose = "the machine" if judged.watched is None else f"{judged.watched.title} of {plan}"
    return f"The suspicion about {whose} was not confirmed: more processes show no change."


def _changed(watched: Watched, change: Change | None, plan: str, verb: str) -> str:
    if change is None:
        return f"{plan} has changed."
    text, since = _change_text(watched, change), f"since {_moment(change)}"
    interval = f" ({_interval_text(watched, change)})"
    if watched is None:
        verb = _verb(verb, "take") if text.endswith("as long") else verb
        return f"The machine {verb} {text}{interval} {since}, by a computation that no library changes."
    levels = f": {change.before:,.4g} → {change.now:,.4g} {watched.unit}"
    if watched is ComparedMetric.TTFT:
        return f"{watched.title.capitalize()} of {plan} {verb} {text}{interval} {since}{levels}."
    verb = _verb(verb, "take" if watched is ComparedMetric.MEMORY else "reach")
    return f"{plan} {verb} {text}{interval} {since}{levels}."


def _verb(verb: str, action: str) -> str:
    """`takes` in place of `is`, `seems to take` in place of `seems`."""
    third = f"{action}{'es' if action.endswith('ch') else 's'}"
    return f"seems to {action}" if verb == "seems" else third


def _change_text(watched: Watched, change: Change | None) -> str:
    if change is None:
        return "changed"
    factor = 1 + change.change.value
    if watched is ComparedMetric.MEMORY:
        return memory_text(factor)
    if watched is ComparedMetric.DECODE:
        return tok_s_text(factor)
    return speed_text(1 / factor if watched is ComparedMetric.TTFT else factor)


def _interval_text(watched: Watched, change: Change) -> str:
    factor, low, high = 1 + change.change.value, 1 + change.change.low, 1 + change.change.high
    if watched is ComparedMetric.TTFT:
        return speed_interval_text(1 / factor, 1 / high, 1 / low)
    return (speed_interval_text if watched is None else amount_interval_text)(factor, low, high)


def _moment(change: Change | None) -> str:
    return "then" if change is None else f"{dt.datetime.fromtimestamp(change.at_s, dt.UTC):%Y-%m-%d %H:%M} UTC"


def _what_changed(rows: Sequence[Observation], change: Change | None) -> str:
    """What else is different since the change: a version, a driver, a kernel."""
    ids = [one.observation_id for one in rows]
    if change is None or change.observation_id not in ids:
        return ""
    place = ids.index(change.observation_id)
    before = next((one for one in rows[:place][::-1] if one.processes), None)
    if before is None:
        return ""
    found = differences(before, rows[place])
    more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    return f" Changed at that time: {', '.join(found[:_MOST_NAMED])}{more}." if found else ""
