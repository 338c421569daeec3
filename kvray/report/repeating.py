"""How to measure again what a sweep could not measure well: the command to repeat, worded by what the user typed."""

from __future__ import annotations

import os

from kvray.jobs.doorman import JOB

BATCH = "KVRAY_BATCH"
"""Environment variable, set while `kvray batch` runs: to the batch's id as soon as it has one."""
_BATCH_ID = "batch-"


def repeat_with(options: str) -> str:
    """The clause that tells it, e.g. `repeat the kvray tune command with --resume run-1`."""
    command = "kvray submit tune" if os.environ.get(JOB) else "kvray tune"
    if os.environ.get(BATCH):  # it has no options for one sweep
        return f"run {command} with the model and settings of this sweep, the same --output, and {options}"
    return f"repeat the {command} command with {options}"


def going_on_with(run_id: str, retry: str = "", *, more: str = "") -> str:
    """The clause that tells how to go on with the sweep `run_id`: of a batch, by the batch.

    Args:
        retry: what is measured again, as `--retry` takes it.
        more: options that only `kvray tune` has.
    """
    again = f" --retry {retry}" if retry else ""
    batch_id = os.environ.get(BATCH, "")
    if batch_id.startswith(_BATCH_ID):
        command = "kvray submit batch" if os.environ.get(JOB) else "kvray batch"
        return f"run {command} --resume {batch_id}{again} with the same --output"
    return repeat_with(f"--resume {run_id}{again}{more}")


def repeat_sentence_with(options: str) -> str:
    """`repeat_with` as the beginning of a sentence."""
    clause = repeat_with(options)
    return clause[0].upper() + clause[1:]
