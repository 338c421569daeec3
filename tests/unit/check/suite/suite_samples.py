"""A recorded case of the suite."""

from __future__ import annotations

from typing import Any

from kvray.check.result import MeasuredSide, RanFacts
from kvray.check.suite.cases import Case, suite_cases
from kvray.check.suite.record import Outputs, RecordedCase
from kvray.record import TrialStatus

CASE = next(case for case in suite_cases() if case.name == "transformers/gqa/static")
BF16 = next(case for case in suite_cases() if case.name == "transformers/gqa/bfloat16")
RAN = RanFacts(cache_class="StaticCache", kernel_prefill="sdpa_flash", kernel_decode="sdpa_flash", threads=2)
OUTPUTS = Outputs(tokens=((5, 6, 7),), text="a text", logs=((-1.0, -2.5, -0.25),), repeats=True)


def recorded(case: Case = CASE, *, ran: RanFacts = RAN, outputs: Outputs = OUTPUTS, **changes: Any) -> RecordedCase:
    return RecordedCase(
        **{
            "name": case.name,
            "model": case.model.digest,
            "candidate": case.candidate,
            "status": TrialStatus.OK,
            "versions": {"torch": "2.13.0"},
            "kv_cache_mib": 2.0,
            "outputs": outputs,
            "measured": MeasuredSide(ran=ran),
            **changes,
        }
    )
