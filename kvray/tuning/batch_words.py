"""Errors in the words of a batch file: where `kvray tune` has an option, the file has a key."""

from __future__ import annotations

import re

from kvray.errors import sentence_of
from kvray.files.redaction import redact

KEYS = {
    "--profile": "profiles",
    "--context": "context_lengths",
    "--output-len": "output_lengths",
    "--batch-sizes": "batch_sizes",
    "--repeats": "repeats",
    "--objective": "objective",
    "--max-ttft": "limits.max_ttft_ms",
    "--max-itl": "limits.max_itl_ms",
    "--min-throughput": "limits.min_decode_tok_s",
    "--max-vram": "limits.max_peak_mib",
    "--max-quality-loss": "limits.max_quality_loss",
    "--engine": "engine",
    "--engine-python": "engine_pythons",
    "--model-for": "models_for",
    "--space": "space",
    "--candidates": "candidates",
    "--cache": "caches",
    "--attention": "attentions",
    "--dtype": "dtypes",
    "--compile": "compiles",
    "--set": "settings",
    "--prefill-chunk": "settings.prefill_chunk",
    "--weights-limit": "settings.weights_limit_mib",
    "--static-len": "static_len",
    "--trust-remote-code": "trust_remote_code: true",
    "--allow-pickle": "allow_pickle: true",
    "--timeout": "timeout_s",
    "--search": "search",
    "--max-trials": "max_trials",
    "--confirm": "confirm_rounds",
    "--seed": "seed",
    "--no-check-snippet": "check_snippet: off",
    "--no-forecast": "forecast: off",
}
"""The key for each option of `kvray tune` that a batch file has a key for."""
_OPTION = re.compile(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*")


def in_file_words(text: str) -> str:
    """`text` with the file's keys in place of options; options of `kvray batch` itself stay."""
    return _OPTION.sub(lambda found: KEYS.get(found[0], found[0]), text)


def reason_of(error: BaseException) -> str:
    """Why a sweep failed, in one line that may be kept."""
    return in_file_words(redact(sentence_of(error)))
