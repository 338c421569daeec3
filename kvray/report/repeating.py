"""How to measure again what a sweep could not measure well: the command to repeat, as it was typed."""

from __future__ import annotations

from kvray.report import formats
from kvray.store.manifest import SweepManifest

_LOCAL_BATCH = "kvray batch"


def repeat_with(manifest: SweepManifest, options: str) -> str:
    """The clause that tells it, e.g. `repeat the kvray tune command with --resume run-1`."""
    if manifest.batch_id is None:
        return f"repeat the {manifest.command} command with {options}"
    of_one = f"{manifest.command.removesuffix('batch')}tune"  # a batch has no options for one of its sweeps
    return f"run {of_one} with the model and settings of this sweep, the same --output, and {options}"


def going_on_with(manifest: SweepManifest, retry: str = "", *, more: str = "") -> str:
    """The clause that tells how to go on with the sweep: of a batch, by the batch.

    Args:
        retry: what is measured again, as `--retry` takes it.
        more: options that only `kvray tune` has.
    """
    again = f" --retry {retry}" if retry else ""
    if manifest.batch_id is None:
        return repeat_with(manifest, f"--resume {formats.clean_line(manifest.run_id)}{again}{more}")
    options = f"--resume {formats.clean_line(manifest.batch_id)}{again}"
    if manifest.command == _LOCAL_BATCH:
        return f"run {manifest.command} {options} with the same --output"
    return f"repeat the {manifest.command} command with {options}"  # the files that it names are sent again


def sentence(clause: str) -> str:
    """`clause` as the beginning of a sentence."""
    return clause[0].upper() + clause[1:]
