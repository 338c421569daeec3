"""What an earlier kvray left is read as it was meant: records, manifests, plans, and the ids of candidates."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kvray.candidate import Candidate
from kvray.plan.plan import Plan
from kvray.record import TrialStatus
from kvray.report.facts import version_facts
from kvray.store.parquet import ResultsStore
from kvray.tuning.result import TuneResult, read_result

ASSETS = Path(__file__).parents[2] / "assets"
RESULTS = ASSETS / "results_v3"
RANDOM, FAKE = "20261127-023230-e83e", "20261127-023553-8bef"
KNOWN_IDS = json.loads((ASSETS / "candidate_ids.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("known", KNOWN_IDS, ids=lambda known: known["label"])
def test_a_candidate_keeps_its_id_and_its_name(known: dict[str, Any]) -> None:
    candidate = Candidate.from_dict(known["candidate"])
    assert (candidate.candidate_id, candidate.label) == (known["id"], known["label"])


def left(run_id: str) -> TuneResult:
    return read_result(ResultsStore(RESULTS), run_id)


def plan_of(run_id: str) -> Plan:
    return Plan.model_validate_json((RESULTS / "reports" / run_id / "best_plan.json").read_bytes())


@pytest.mark.parametrize(
    ("run_id", "statuses"),
    [
        (RANDOM, {TrialStatus.OK: 14, TrialStatus.STOPPED: 5, TrialStatus.SKIPPED: 15}),
        (
            FAKE,
            {
                TrialStatus.OK: 9,
                TrialStatus.STOPPED: 5,
                TrialStatus.CRASHED: 1,
                TrialStatus.ERROR: 1,
                TrialStatus.OOM: 1,
                TrialStatus.SUBSTITUTED: 1,
            },
        ),
    ],
)
def test_every_record_of_an_old_sweep_is_read(run_id: str, statuses: dict[TrialStatus, int]) -> None:
    assert Counter(one.record.status for one in left(run_id).results) == statuses


@pytest.mark.parametrize("run_id", [RANDOM, FAKE])
def test_the_versions_of_an_old_sweep_are_known_by_name(run_id: str) -> None:
    result, plan = left(run_id), plan_of(run_id)
    record = result.analysis.ranking.winner.record
    versions = {"torch": record.torch_version, "transformers": record.transformers_version}
    assert (record.engine_versions, record.versions, plan.fingerprint.versions) == ((), versions, versions)
    assert {fact.name: fact.text for fact in version_facts(result.manifest, result.results)}.items() >= versions.items()


@pytest.mark.parametrize("run_id", [RANDOM, FAKE])
def test_an_old_sweep_has_the_winner_that_its_plan_names(run_id: str) -> None:
    result, plan = left(run_id), plan_of(run_id)
    winner = result.analysis.ranking.winner
    assert winner.record.candidate_id == plan.winner.candidate.candidate_id
    assert winner.metrics.ttft_ms == pytest.approx(plan.winner.metrics.ttft_ms)
    assert result.manifest.baseline_id == result.analysis.ranking.baseline_id
