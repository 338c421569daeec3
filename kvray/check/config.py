"""`CheckConfig`: what a user asks of a check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvray.analysis.comparison import ComparedMetric
from kvray.check.against import Against
from kvray.files.remote import within

BUDGET_S = 600.0
CHECK_FILE = "check.json"


@dataclass(frozen=True, kw_only=True)
class Consent:
    """What the user allows, whatever the baseline says that it was allowed."""

    trust_remote_code: bool = False
    allow_pickle: bool = False
    offline: bool = False


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """What a user asks of a check.

    Attributes:
        baseline: see `read_baseline`.
        against: the other side's Python and variables; `None` compares with the record.
        candidates: file of candidates to check in place of the winner, as `kvray tune --candidates` takes it.
        all_ranked: whether every ranked candidate of the baseline is checked.
        margins: by metric, in place of those of the profile; 0.05 is 5 %, `None` shows the metric without judging it.
        budget_s: for all rounds together; no round begins that would end later.
        output_dir: folder or URI of records and `check.json`.
        json_file: where `check.json` goes instead.
        wait_quiet_s: for how long the check waits for a quiet machine at most.
        timeout_s: seconds that one phase of a trial may take.
    """

    baseline: str
    against: Against | None = None
    candidates: str | None = None
    all_ranked: bool = False
    margins: Mapping[ComparedMetric, float | None] = field(default_factory=dict)
    budget_s: float = BUDGET_S
    output_dir: str = "./kvray_check"
    json_file: str | None = None
    wait_quiet_s: float = 0.0
    timeout_s: float = 600.0
    consent: Consent = field(default_factory=Consent)

    @property
    def check_file(self) -> str:
        """Where the result goes."""
        return self.json_file or within(self.output_dir, CHECK_FILE)
