"""How a command that comes to a verdict ends: with which exit code, and one line."""

from __future__ import annotations

from kvray.analysis.comparison import Verdict
from kvray.check.outputs.wording import headline
from kvray.check.result import CheckResult, OnInconclusive
from kvray.errors import InconclusiveError, KvrayError, RegressionError, SweepInterruptedError


def error_of_check(result: CheckResult, *, on_inconclusive: OnInconclusive | None) -> KvrayError | None:
    """What to raise after `result` was shown and written: for its verdict, or because the user ended it early."""
    if result.is_interrupted:
        return SweepInterruptedError("The check was interrupted; what it measured is kept.")
    return error_of(result.verdict, headline(result), on_inconclusive=on_inconclusive)


def error_of(verdict: Verdict, text: str, *, on_inconclusive: OnInconclusive | None = None) -> KvrayError | None:
    """What to raise for `verdict`; `None` for a PASS, and for an INCONCLUSIVE that counts as one.

    Args:
        text: what to say of a verdict that is no PASS.
        on_inconclusive: what INCONCLUSIVE counts as; `None` leaves it its own exit code.
    """
    if verdict is Verdict.FAIL:
        return RegressionError(text)
    if verdict is Verdict.PASS or on_inconclusive is OnInconclusive.PASS:
        return None
    return RegressionError(text) if on_inconclusive is OnInconclusive.FAIL else InconclusiveError(text)
