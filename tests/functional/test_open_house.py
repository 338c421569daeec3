"""Everything that an engine may bring, in one sweep: two engines, one of them in another Python with a server of its
own, a number axis, the most probable tokens alone, and a candidate on two GPUs. From the records to the report.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import duckdb
import pytest
import second_engine
from own_ray import own_ray
from second_environment import OTHER_TRANSFORMERS, make_environment

from kvray.candidate import DeviceType
from kvray.config import SearchStrategy, TuneConfig
from kvray.plan.session import FingerprintWarning, load_plan
from kvray.probes.environment import library_versions
from kvray.record import TrialRecord, TrialStatus
from kvray.tuning.result import TuneResult
from kvray.tuning.search import TuningSearch
from kvray.workload import create_custom_profile

pytestmark = pytest.mark.slow  # test_several_engines and test_own_axes_sweep show the most of it
PROFILE = create_custom_profile(
    "house",
    context_lengths=(200,),
    output_lengths=(4,),
    repeats=1,
    weight_ttft=0.01,
    weight_throughput=0.01,
    weight_memory=0.98,
)
"""Memory decides, which the fake engines make up: no clock does."""
SPACE = """
- {cache: [static], attention: [sdpa], dtype: [float32], parallelism: [1], tile: [16, 64]}
- {cache: [static], attention: [sdpa], dtype: [float32], parallelism: [2], tile: [64]}
"""
TILED = {f"static/sdpa/float32+{setting}" for setting in ("tile:16", "tile:64", "tile:64+gpus:2")}
LABELS = {"dynamic/sdpa/float32", *TILED}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TuneResult, Path, str]]:
    """The sweep, its results folder, and the Python of the second engine."""
    folder = tmp_path_factory.mktemp("house")
    packages, space = folder / "packages", folder / "space.yaml"
    packages.mkdir()
    second_engine.install(packages)
    space.write_text(SPACE)
    tests = str(Path(__file__).parent)
    elsewhere = make_environment(folder / "python", *sys.path, str(packages), tests)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.syspath_prepend(str(packages))
        patch.setenv("KVRAY_CACHE", str(folder / "cache"))
        patch.setenv("KVRAY_SECOND_PYTHON", elsewhere)
        context = stack.enter_context(own_ray(tests, num_gpus=2))
        config = TuneConfig(
            model_id="fake:second:=topk,second:=server",
            profile=PROFILE,
            device=DeviceType.CUDA,
            address=context.address_info["address"],
            engine="fake,second",
            output_dir=str(folder / "results"),
            space=str(space),
            search=SearchStrategy.GRID,
            confirm_rounds=0,
        )
        yield TuningSearch(config=config).run(), folder / "results", elsewhere


@pytest.fixture(scope="module")
def records(house: tuple[TuneResult, Path, str]) -> dict[str, TrialRecord]:
    return {one.record.candidate.label: one.record for one in house[0].results}


def test_every_record_names_its_engine_axis_gpus_and_environment(
    house: tuple[TuneResult, Path, str], records: dict[str, TrialRecord]
) -> None:
    assert set(records) == LABELS | {f"second:{label}" for label in LABELS}
    assert {record.status for record in records.values()} == {TrialStatus.OK}
    asked = "SELECT engine, settings->>'tile', parallelism, engine_versions->>'transformers', kl_upper IS NULL"
    rows = duckdb.sql(f"{asked} FROM '{house[1]}/trials/*/*.parquet'").fetchall()
    here = library_versions(["transformers"])["transformers"]
    assert set(rows) == {
        (engine, tile, gpus, version, engine == "fake")
        for engine, version in (("fake", here), ("second", OTHER_TRANSFORMERS))
        for tile, gpus in ((None, 1), ("16", 1), ("64", 1), ("64", 2))
    }, "the second engine tells the most probable tokens only"
    assert all(_visible_gpus(record) == record.parallelism for record in records.values())


def test_one_ranking_has_the_candidates_of_both(house: tuple[TuneResult, Path, str]) -> None:
    result, folder, _ = house
    table = f"'{folder}/reports/{result.manifest.run_id}/ranking.parquet'"
    rows = duckdb.sql(f"SELECT engine, parallelism, settings->>'tile' FROM {table} ORDER BY rank").fetchall()
    assert [engine for engine, _, _ in rows] == ["second"] * 4 + ["fake"] * 4, "half the memory"
    assert {(gpus, tile) for _, gpus, tile in rows} == {(1, None), (1, "16"), (1, "64"), (2, "64")}
    bounded = duckdb.sql(f"SELECT DISTINCT engine FROM {table} WHERE kl_upper > kl_mean").fetchall()
    assert bounded == [("second",)]


def test_the_plan_is_the_second_engines_and_generates_with_it(house: tuple[TuneResult, Path, str]) -> None:
    result, _, _ = house
    loaded = load_plan(result.paths.best_plan)
    winner = result.analysis.ranking.winner.record
    assert (loaded.plan.engine, loaded.plan.model_revision, loaded.plan.architecture) == (
        "second",
        "second-1",
        "Second",
    )
    assert loaded.plan.winner.candidate == winner.candidate
    assert loaded.plan.fingerprint.versions["transformers"] == OTHER_TRANSFORMERS
    assert loaded.plan.rules[-1].use == winner.candidate_id
    assert any(one.candidate.parallelism == 2 for one in loaded.plan.candidates.values())
    with pytest.warns(FingerprintWarning, match=OTHER_TRANSFORMERS):
        session = loaded.load()
    assert session.generate("a b c", max_new_tokens=2) == "fake fake"
    assert session.candidate.engine == "second"


def test_the_reports_name_engines_axes_gpus_environment_and_bounds(house: tuple[TuneResult, Path, str]) -> None:
    result, _, python = house
    for report in (result.paths.report_markdown, result.paths.report_html):
        text = report.read_text(encoding="utf-8").replace("<wbr>", "")
        for told in (
            "fake, second",
            "second:static/sdpa/float32+tile:64+gpus:2",
            "static/sdpa/float32+tile:16",
            python,
        ):
            assert told in text, (report.name, told)
        assert f"{python} (second)" in text
        assert "its engine tells the most probable tokens only, so the loss is between" in text


def _visible_gpus(record: TrialRecord) -> int:
    """How many the trial's process saw in CUDA_VISIBLE_DEVICES."""
    return len(set((record.cache_layers or "").removeprefix("FakeLayer×1 on GPU ").split(",")))
