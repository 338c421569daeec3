"""best_plan.json: shown, printed as a snippet, asked what to use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hostile_values import edited, texts
from hypothesis import strategies as st
from promises import BrokenPromiseError, Place, fuzzes, names_canary

from kvray.plan.plan import load_plan_file

PLANS = [
    json.loads(path.read_bytes())
    for path in sorted((Path(__file__).parents[1] / "assets" / "results_v3").glob("reports/*/best_plan.json"))
]


@st.composite
def plans(draw: st.DrawFn) -> bytes:
    """Half of them have hostile strings where nothing forbids it, so that the snippet has to bear them."""
    plan: dict[str, Any] = draw(st.sampled_from(PLANS))
    if draw(st.booleans()):
        name = draw(st.sampled_from(("model_id", "architecture", "run_id", "kvray_version")))
        fingerprint = {**plan["fingerprint"], "device_name": draw(texts)}
        plan = {**plan, name: draw(texts), "fingerprint": fingerprint}
        if draw(st.booleans()):
            return json.dumps(plan).encode()
    return draw(edited(plan))


@fuzzes(
    "plans",
    content=plans(),
    printed=st.booleans(),
    context=st.sampled_from((0, 1, 64, 10**9)),
    free_mib=st.sampled_from((None, 0.0, 1e300)),
)
def test_a_plan_is_shown_or_refused(
    content: bytes, printed: bool, context: int, free_mib: float | None, place: Place
) -> bool:
    path = place.input / "best_plan.json"
    path.write_bytes(content)
    code, out = place.cli("apply", path, *(["--print-snippet"] if printed else []))
    if code != 0:
        return False
    if out.startswith("#") and names_canary(out):
        raise BrokenPromiseError("a string of the plan is code in the snippet")
    with place.watched():
        plan = load_plan_file(path)
        plan.choose(context, 1, free_mib)
        plan.fallback_after(plan.winner.candidate.candidate_id)
    return True
