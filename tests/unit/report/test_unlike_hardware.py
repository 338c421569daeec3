"""A sweep on nodes of a cluster that differ: a ranking, a plan and a report for each hardware, never a mixed one."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from report_sweeps import BASELINE, WINNER, candidate, ended, manifest, measured
from rich.console import Console

from kvray.cli.output import print_rankings, print_report, summary
from kvray.plan.plan import load_plan_file
from kvray.record import Role, TrialResult, TrialStatus
from kvray.store.parquet import ResultsStore
from kvray.tuning.result import TuneResult, info_of, read_result, write_artefacts

A100, H100 = "aaaa0000", "bbbb1111"
LEAN = candidate("static", "sdpa", "bfloat16")
LOST, NEVER = candidate("static"), candidate("static", "eager")


def on(hardware: str | None, name: str, result: TrialResult) -> TrialResult:
    record = result.record.with_(hardware=hardware, device_name=name)
    return TrialResult(record=record, runs=result.runs)


RESULTS = (
    on(A100, "A100", measured(BASELINE, role=Role.BASELINE)),
    on(A100, "A100", measured(WINNER, speed=1.3)),
    # Twice as fast, whatever is measured there: in one ranking both would beat all that ran on the other.
    on(H100, "H100", measured(LEAN, speed=2.0)),
    on(H100, "H100", measured(WINNER, speed=2.6, process=1, role=Role.CONFIRM)),
    ended(LOST, TrialStatus.CRASHED, "the slot that ran it died, 3 times"),
    ended(NEVER, TrialStatus.REJECTED, "needs a GPU of another kind"),
)


@pytest.fixture
def store(tmp_path: Path) -> ResultsStore:
    return ResultsStore(tmp_path)


def stored(store: ResultsStore, results: tuple[TrialResult, ...]) -> TuneResult:
    about = manifest()
    store.write_manifest(about)
    for one in results:
        store.append(one)
    return read_result(store, about.run_id)


def ranked(result: TuneResult) -> list[str]:
    return [one.record.candidate_id for one in result.analysis.ranking.entries]


def test_trials_of_one_hardware_are_ranked_among_themselves(store: ResultsStore) -> None:
    result = stored(store, RESULTS)
    (other,) = result.other_hardware
    assert (result.hardware, result.device_name) == (A100, "A100"), "the one that measured the baseline"
    assert set(ranked(result)) == {BASELINE.candidate_id, WINNER.candidate_id}
    gain = result.analysis.ranking.winner.gain
    assert gain is not None
    assert gain.throughput == pytest.approx(0.3, abs=0.05), "the other hardware's process is no part of it"
    assert (other.hardware, other.device_name) == (H100, "H100")
    assert set(ranked(other)) == {LEAN.candidate_id, WINNER.candidate_id}
    assert all(one.gain is None for one in other.analysis.ranking.entries), "its baseline was not measured there"


def test_what_was_measured_nowhere_is_listed_for_each_hardware(store: ResultsStore) -> None:
    result = stored(store, RESULTS)
    for one in (result, *result.other_hardware):
        listed = {item.record.candidate_id for item in one.analysis.ranking.unranked}
        assert {LOST.candidate_id, NEVER.candidate_id} <= listed


def test_each_hardware_has_a_plan_and_reports_and_the_first_names_the_others(store: ResultsStore) -> None:
    result = stored(store, RESULTS)
    write_artefacts(store, result)
    (other,) = result.other_hardware
    folder = f"hardware-{H100}"
    assert other.paths.best_plan == result.paths.reports / folder / "best_plan.json"
    names = [load_plan_file(one.paths.best_plan).fingerprint.device_name for one in (result, other)]
    assert names == ["A100", "H100"]
    report, of_other = (one.paths.report_markdown.read_text() for one in (result, other))
    assert f"The sweep also measured on H100 (hardware {H100})" in report
    assert folder in report
    assert ("on A100," in report, "on H100," in of_other) == (True, True)
    rows = pq.read_table(result.paths.ranking).to_pylist()
    first = [(one["hardware"], one["device_name"]) for one in rows if one["rank"] == 1]
    assert first == [(A100, "A100"), (H100, "H100")]


def test_a_program_and_a_reader_are_shown_every_hardware(
    store: ResultsStore, capsys: pytest.CaptureFixture[str]
) -> None:
    result = stored(store, RESULTS)
    told = summary(result)
    assert (told["hardware"], told["device"]) == (A100, "A100")
    assert [(one["hardware"], one["device"]) for one in told["other_hardware"]] == [(H100, "H100")]
    shown = io.StringIO()
    print_rankings(result, Console(file=shown, width=120))
    assert ("on A100," in shown.getvalue(), "on H100," in shown.getvalue()) == (True, True)
    print_report(result)
    assert f"plan for H100 ({H100}):" in capsys.readouterr().out


def test_a_sweep_of_one_hardware_shows_nothing_of_it(store: ResultsStore) -> None:
    result = stored(store, tuple(on(None, "A100", one) for one in RESULTS[:2]))
    assert (result.hardware, result.other_hardware) == (None, ())
    assert result.device_name == result.manifest.device_name
    assert {"hardware", "other_hardware"}.isdisjoint(summary(result))
    assert not any("also measured" in note for note in info_of(result).headline.notes)


def test_each_type_of_gpu_lists_what_was_not_tried_there_and_the_sweeps_first_type_comes_first(
    store: ResultsStore,
) -> None:
    about = manifest(
        device_name="H100",
        gpu_types=[
            {"gpu_type": name, "device_name": name, "baseline_id": BASELINE.candidate_id, "left_out": [left]}
            for name, left in (("H100", ("dtype", "float8", "not asked for")), ("A100", ("dtype", "float8", "too old")))
        ],
    )
    results = [
        typed(on(digest, name, one), name)
        for digest, name in ((A100, "A100"), (H100, "H100"))
        for one in (measured(BASELINE, role=Role.BASELINE), measured(WINNER, speed=1.3))
    ]
    rejected = ended(NEVER, TrialStatus.REJECTED, "needs a newer GPU")
    store.write_manifest(about)
    for number, one in enumerate((*results, typed(rejected, "A100"))):
        record = one.record.with_(trial_id=f"trial-{number}")
        store.append(
            TrialResult(record=record, runs=tuple(replace(run, trial_id=f"trial-{number}") for run in one.runs))
        )
    first = read_result(store, about.run_id)
    (other,) = first.other_hardware
    assert (first.device_name, other.device_name) == ("H100", "A100")
    assert [one.manifest.left_out[0][2] for one in (first, other)] == ["not asked for", "too old"]
    unranked = [[item.record.candidate_id for item in one.analysis.ranking.unranked] for one in (first, other)]
    assert unranked == [[], [NEVER.candidate_id]]


def typed(result: TrialResult, gpu_type: str) -> TrialResult:
    return replace(result, record=result.record.with_(gpu_type=gpu_type))
