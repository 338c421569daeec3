"""What a batch says. Its errors are in the words of the batch file: where `kvray tune` has an option, it has a key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from kvray.errors import SweepInterruptedError, sentence_of
from kvray.files.redaction import redact
from kvray.jobs.sent_model import as_typed, typed_text
from kvray.record import short_model_name
from kvray.store.batch_manifest import BatchManifest
from kvray.workload import WorkloadProfile


class AskedLike(Protocol):
    """A sweep as a batch file asks for it, or as a batch has it."""

    @property
    def model_id(self) -> str:
        """The model, as the file names it."""

    @property
    def profile(self) -> WorkloadProfile:
        """What is generated."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What is asked beside these."""


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
    return in_file_words(redact(typed_text(sentence_of(error))))


def interruption_of(manifest: BatchManifest, *, overview: str, resume: str) -> SweepInterruptedError:
    """What to say of a batch that was interrupted; `resume` is the command that goes on with it."""
    what, rest = "Interrupted; what was measured is kept", "Measure the rest"
    if manifest.has_ended_sweeps_only:
        what, rest = "Interrupted after the last trial; every sweep has ended", "Check the code of the winners"
        if any(not one.status.is_measured for one in manifest.sweeps):
            rest += ", and measure what failed,"
    return SweepInterruptedError(f"{what}, and {overview} tells of it.", hint=f"{rest} with: {resume}")


def models_of(sweep: AskedLike) -> tuple[str, ...]:
    """Its model, and the files that single engines take in place of it."""
    return (sweep.model_id, *map(str, sweep.settings.get("models_for", {}).values()))


def unlike_sweeps(known: Sequence[AskedLike], asked: Sequence[AskedLike]) -> str:
    """What a batch file asks for otherwise than the batch `known`, e.g. `new: b · rag; org/m · chat: caches`."""
    before, now = _by_name(known), _by_name(asked)
    changed = [(name, _unlike_settings(before[name], now[name])) for name in now if name in before]
    told = (
        ("not in the file any more", ", ".join(name for name in before if name not in now)),
        ("new in the file", ", ".join(name for name in now if name not in before)),
        ("changed", ", ".join(f"{name} ({names})" for name, names in changed if names)),
    )
    return "; ".join(f"{what}: {names}" for what, names in told if names) or "the order of its sweeps"


def _by_name(sweeps: Sequence[AskedLike]) -> dict[str, AskedLike]:
    """Sweeps of one model and profile are numbered."""
    found: dict[str, AskedLike] = {}
    for one in sweeps:
        name = f"{short_model_name(as_typed(one.model_id))} · {one.profile.name}"
        number = sum(key == name or key.startswith(f"{name} #") for key in found) + 1
        found[name if number == 1 else f"{name} #{number}"] = one
    return found


def _unlike_settings(before: AskedLike, now: AskedLike) -> str:
    names = sorted(before.settings.keys() | now.settings.keys())
    unlike = [name for name in names if before.settings.get(name) != now.settings.get(name)]
    return ", ".join([*unlike, *(["what its profile asks"] if before.profile != now.profile else [])])
