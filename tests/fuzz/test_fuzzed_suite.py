"""Records of the micro-suite: compared with, or refused with one line."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from hostile_values import edited
from promises import Place, fuzzes

from kvray.check.suite.cases import suite_cases
from kvray.check.suite.outputs import OutputRules, compare_outputs
from kvray.check.suite.record import read_record
from kvray.errors import ResultsError

_WHOLE = json.loads((Path(__file__).parents[1] / "assets" / "suite_quick.json").read_text())
SAMPLE = {**_WHOLE, "cases": _WHOLE["cases"][:2]}
CASES = {case.name: case for case in suite_cases()}


@fuzzes("suite records", content=edited(SAMPLE))
def test_a_record_is_compared_with_or_refused(content: bytes, place: Place) -> bool:
    path = place.input / "suite.json"
    path.write_bytes(content)
    with contextlib.suppress(ResultsError), place.watched(ResultsError):
        record = read_record(path)
        for one in record.cases:
            if one.name in CASES:
                rules = OutputRules(same_surroundings=True)
                compare_outputs(CASES[one.name], one, record.cases[0], rules)
        return True
    return False
