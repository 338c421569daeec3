"""What `kvray batch --dry-run` says of each sweep: what is measured, what is forecast, what stands in the way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kvray.cli.preview import expected_time
from kvray.config import TuneConfig
from kvray.report.formats import clean_line, duration_range, plural, quantity
from kvray.tuning.preview import Preview

_MOST_REASONS = 3


def sweep_lines(preview: Preview, config: TuneConfig) -> Iterator[str]:
    """The lines of one sweep, the first of which follows its name."""
    yield f"{_to_measure(preview, config.max_trials)} on {preview.device.device_name}"
    if told := "; ".join(_forecast(preview, config)):
        yield f"forecast: {told}"
    for one in preview.refused:
        yield f"engine {one.engine} is left out: {clean_line(one.reason)}"
    yield from map(clean_line, preview.unreachable_limits)
    yield from _rejected(preview)
    for note in preview.model.notes:
        yield f"note: {clean_line(note)}"


@contextmanager
def each_said_once() -> Iterator[None]:
    """What kvray's modules log meanwhile is shown the first time only, wherever it is shown."""
    filters = [(handler, _only_new()) for handler in logging.getLogger("kvray").handlers]
    for handler, is_new in filters:
        handler.addFilter(is_new)
    try:
        yield
    finally:
        for handler, is_new in filters:
            handler.removeFilter(is_new)


def _only_new() -> Callable[[logging.LogRecord], bool]:
    """A filter of one handler: what it has shown before does not pass again."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message in said:
            return False
        said.add(message)
        return True

    return is_new


def _to_measure(preview: Preview, max_trials: int | None = None) -> str:
    of, rest = plural(len(preview.space.candidates), "candidate"), preview.rest
    if rest is None:
        bound = max_trials is not None and max_trials < len(preview.space.candidates)
        return f"at most {max_trials} of {of}" if bound else of
    again = f", {len(rest.again)} again" if rest.again else ""
    return "nothing new" if rest.is_answered else f"{len(rest.left)} of {of} left{again},"


def _forecast(preview: Preview, config: TuneConfig) -> Iterator[str]:
    if (expected := expected_time(preview, config)) is not None:
        yield duration_range(*expected)
    peaks = sorted(
        preview.forecasts[one.candidate_id].highest_peak_mib
        for one in preview.space.candidates
        if one.candidate_id in preview.forecasts
    )
    if peaks:
        least, most = quantity(peaks[0]), quantity(peaks[-1])
        yield f"peak {least} MiB" if least == most else f"peak {least} to {most} MiB"
    if peaks and preview.hardware is None:
        yield "without the library's own memory and without times, because the device was not measured yet"


def _rejected(preview: Preview) -> Iterator[str]:
    """The most frequent reasons; `kvray tune --dry-run` has each candidate."""
    rejected = [one.reason for one in preview.space.rejected]
    reasons = sorted(dict.fromkeys(rejected), key=lambda one: -rejected.count(one))
    for reason in reasons[:_MOST_REASONS]:
        yield f"{plural(rejected.count(reason), 'candidate')} rejected: {clean_line(reason)}"
    if left := reasons[_MOST_REASONS:]:
        yield f"{plural(sum(map(rejected.count, left)), 'candidate')} rejected for {plural(len(left), 'other reason')}"
