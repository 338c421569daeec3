"""A whole sweep of an engine that lives in another environment, and computes in a server there."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
from second_environment import OTHER_TRANSFORMERS
from test_sweep import config_of

from kvray.candidate import DeviceType
from kvray.config import SearchStrategy
from kvray.engines.interpreter import EnginePython
from kvray.engines.llama_cpp import LlamaCppAdapter
from kvray.errors import AllTrialsFailedError, EngineError, ResultsError
from kvray.forecast.hardware import load_hardware
from kvray.plan.plan import load_plan_file
from kvray.probes.environment import library_versions
from kvray.record import TrialStatus
from kvray.report.facts import environment_facts
from kvray.store.parquet import ResultsStore
from kvray.testing.fake import FakeAdapter
from kvray.testing.fake_server import HELD_MIB
from kvray.tuning.local_device import detect_device, measured_hardware, rates_key
from kvray.tuning.result import TuneResult
from kvray.tuning.search import TuningSearch

TWO = {"attentions": ("sdpa",), "dtypes": ("float32",), "search": SearchStrategy.GRID, "confirm_rounds": 0}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory, second_python: str) -> tuple[TuneResult, Path]:
    folder = tmp_path_factory.mktemp("elsewhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVRAY_CACHE", str(folder / "cache"))
        patch.setenv("KVRAY_FAKE_PYTHON", second_python)
        return TuningSearch(config=config_of("fake:=server", folder, **TWO)).run(), folder


def there() -> dict[str, str]:
    return {**library_versions(FakeAdapter.libraries), "transformers": OTHER_TRANSFORMERS}


def test_every_record_has_the_versions_of_that_environment(elsewhere: tuple[TuneResult, Path]) -> None:
    result, folder = elsewhere
    records = [one.record for one in result.results]
    assert {record.status for record in records} == {TrialStatus.OK}
    assert len(records) == 2
    assert [record.versions for record in records] == [there()] * 2
    assert {record.transformers_version for record in records} == {OTHER_TRANSFORMERS}
    assert all(record.kl_mean is not None for record in records), "the reference is made there, too"
    asked = duckdb.sql(f"SELECT DISTINCT engine_versions FROM '{folder}/trials/*/*.parquet'").fetchall()
    assert [json.loads(text) for (text,) in asked] == [there()]


def test_the_server_s_memory_is_in_the_peak(elsewhere: tuple[TuneResult, Path]) -> None:
    assert all((run.peak_mib or 0) > 100 + HELD_MIB for one in elsewhere[0].results for run in one.runs)


def test_manifest_fingerprint_plan_and_report_name_that_environment(
    elsewhere: tuple[TuneResult, Path], second_python: str
) -> None:
    result, folder = elsewhere
    manifest = ResultsStore(folder).read_manifest(result.manifest.run_id)
    assert manifest.engine_pythons == {"fake": second_python}
    assert manifest.attempts[-1].fingerprint.versions == there()
    plan = load_plan_file(folder / "reports" / manifest.run_id / "best_plan.json")
    assert plan.fingerprint.versions == there()
    facts = {fact.name: fact.text for fact in environment_facts(manifest, result.results)}
    assert (facts["Engine's Python"], facts["transformers"]) == (second_python, OTHER_TRANSFORMERS)


def test_a_resumed_sweep_goes_on_in_the_python_that_it_had(elsewhere: tuple[TuneResult, Path]) -> None:
    result, folder = elsewhere
    run_id = result.manifest.run_id
    again = TuningSearch(config=config_of("fake:=server", folder, resume=run_id, **TWO)).run()
    assert len(again.results) == 2
    assert len(again.manifest.attempts) == 2
    assert again.manifest.engine_pythons == result.manifest.engine_pythons
    assert again.manifest.attempts[0].fingerprint == again.manifest.attempts[1].fingerprint


@pytest.mark.slow
def test_another_python_than_it_had_is_another_sweep(elsewhere: tuple[TuneResult, Path]) -> None:
    result, folder = elsewhere
    config = config_of(
        "fake:=server", folder, resume=result.manifest.run_id, engine_pythons={"fake": sys.executable}, **TWO
    )
    here = library_versions(["transformers"])["transformers"]
    with pytest.raises(ResultsError, match=rf"Different now: transformers: {OTHER_TRANSFORMERS} → {here}\."):
        TuningSearch(config=config).run()


@pytest.mark.slow
def test_a_node_without_that_python_has_a_record_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's machine has it."""
    gone = EnginePython(path="/none/python", python_version="3.12.1")
    monkeypatch.setattr("kvray.tuning.engine_pythons.inspect_python", lambda path, adapter: gone)
    config = config_of("fake:ok", tmp_path, engine_pythons={"fake": "/none/python"}, **TWO)
    with pytest.raises(AllTrialsFailedError, match="'/none/python' cannot be started on"):
        TuningSearch(config=config).run()
    (run_id,) = ResultsStore(tmp_path).run_ids()
    assert {one.record.status for one in ResultsStore(tmp_path).read(run_id)} == {TrialStatus.ERROR}


def test_a_python_that_cannot_run_the_engine_ends_the_sweep_before_it_begins(tmp_path: Path) -> None:
    config = config_of("fake:ok", tmp_path / "out", engine_pythons={"fake": str(tmp_path / "python")})
    for ask in (TuningSearch(config=config).preview, TuningSearch(config=config).run):
        with pytest.raises(EngineError, match="cannot be started: No such file or directory"):
            ask()
    assert not (tmp_path / "out").exists()
    unknown = config_of("fake:ok", tmp_path / "out", engine_pythons={"fkae": "/usr/bin/python3"})
    with pytest.raises(EngineError, match="Unknown engine 'fkae'"):
        TuningSearch(config=unknown).preview()


def test_a_device_s_rates_are_measured_there_and_kept_by_the_versions_there(
    second_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llama_cpp")
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "cache"))
    engine, device = LlamaCppAdapter(), detect_device(DeviceType.CPU)
    there = EnginePython(path=second_python, python_version="3", engine_versions={"llama-cpp-python": "0"})
    key = rates_key(config_of("fake:", tmp_path), engine, device, there)
    assert key is not None
    assert key.engine_versions == (("llama-cpp-python", "0"),)
    nowhere = replace(there, path=str(tmp_path / "python"))
    assert measured_hardware(key, engine, None, python=nowhere) is None
    rates = measured_hardware(key, engine, None, python=there)
    assert rates is not None
    assert load_hardware(key) == rates
