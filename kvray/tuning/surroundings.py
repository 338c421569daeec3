"""What a sweep has around it: a temporary folder, the log of what Ray says, and others on the device."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvray.candidate import DeviceType
from kvray.config import TuneConfig
from kvray.errors import OutputError, sentence_of
from kvray.files.redaction import redact
from kvray.probes.contention import QuietWait, announced_sweep, disturbers, quota_notes
from kvray.store.parquet import ResultsStore

_logger = logging.getLogger("kvray.tuning.search")


def warn_of_quota(config: TuneConfig) -> None:
    """Say where a CPU quota leaves trials fewer CPUs than this machine shows; on a cluster others measure."""
    for sentence in quota_notes() if config.address is None else ():
        _warn(sentence)


@contextmanager
def contention_noticed(config: TuneConfig, device: DeviceType, run_id: str) -> Iterator[QuietWait]:
    """Warn of who else uses `device`, after waiting for quiet as long as `config` allows. On a cluster it is another
    machine's device.

    Yields:
        What waits before later trials.
    """
    quiet = QuietWait(device, config.wait_quiet_s, tell=_warn)
    if config.address is not None:
        yield quiet
        return
    warn_of_quota(config)
    with announced_sweep(device, run_id) as others:
        for sentence in others:
            _warn(sentence)
        quiet.wait()
        for sentence in disturbers(device):
            _warn(sentence)
        yield quiet


def _warn(sentence: str) -> None:
    _logger.warning("%s", sentence)


@contextmanager
def log_kept_in(store: ResultsStore, run_id: str) -> Iterator[Path]:
    """A file for what Ray has to say; kept beside the reports if anything was said."""
    with passing_log() as log:
        try:
            yield log
        finally:
            with suppress(OutputError, OSError):  # a full disk is told of where records are written
                text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
                if text.strip():
                    store.write_text(store.paths(run_id).sweep_log, redact(text))


@contextmanager
def passing_log() -> Iterator[Path]:
    """A file for what Ray has to say, which nobody keeps."""
    with _temporary_folder() as folder:
        yield Path(folder) / "sweep.log"


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="kvray-", ignore_cleanup_errors=True)
    except OSError as error:
        raise OutputError(
            f"No temporary folder can be made: {sentence_of(error)}.",
            hint="Set TMPDIR to a folder that can be written and has space.",
        ) from error
