"""A sweep of two engines made of numbers: the second one wins, and each has a default of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from report_sweeps import BASELINE, WINNER, candidate, manifest, measured

from kvray.analysis import Analysis, analyse
from kvray.record import Role, TrialResult
from kvray.store.manifest import EngineModel, SweepManifest

OWN_DEFAULT = replace(candidate("dynamic", "eager", "float32"), engine="llama_cpp")
OWN_BEST = replace(candidate("static", "sdpa", "float32"), engine="llama_cpp")
DEFAULTS = {"transformers": BASELINE.candidate_id, "llama_cpp": OWN_DEFAULT.candidate_id}
OTHER_FILE = EngineModel(
    model_id="/models/SmolLM2-Q4_1.gguf",
    model_revision="5a",
    architecture="llama",
    weights="Q4_1",
)


def two_engines(*, speed: float = 3.0, **values: Any) -> list[TrialResult]:
    """The baseline and a better candidate of Transformers, then the default of llama.cpp and what is twice as fast as
    that. Winner and baseline ran in three confirming rounds.

    Args:
        speed: of llama.cpp's best, as a multiple of the baseline's.
        values: of llama.cpp's records.
    """
    results = [
        measured(BASELINE, role=Role.BASELINE, peak_mib=900),
        measured(WINNER, speed=1.31, peak_mib=600),
        measured(OWN_DEFAULT, speed=speed / 2, peak_mib=500, **values),
        measured(OWN_BEST, speed=speed, peak_mib=250, **values),
    ]
    for number in (1, 2, 3):
        results += [
            measured(
                OWN_BEST, speed=speed, peak_mib=250, role=Role.CONFIRM, process=number, confirm_round=number, **values
            ),
            measured(BASELINE, peak_mib=900, role=Role.CONFIRM, process=number, confirm_round=number),
        ]
    return results


def manifest_of_two(**values: Any) -> SweepManifest:
    settings: dict[str, Any] = {
        "weights": "bfloat16",
        "other_engines": {"llama_cpp": OTHER_FILE},
        "defaults": DEFAULTS,
        **values,
    }
    return manifest(**settings)


def analysis_of(results: Sequence[TrialResult], about: SweepManifest) -> Analysis:
    return analyse(results, about.profile, seed=about.seed, defaults=about.defaults)
