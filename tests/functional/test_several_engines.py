"""One sweep over several engines: what each does with nothing set, one reference, records, ranking, plan and report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import second_engine
from own_ray import own_ray

from kvray.analysis.evidence import gather_evidence
from kvray.candidate import DeviceType
from kvray.cli.output import summary
from kvray.cli.preview import print_preview
from kvray.config import TuneConfig
from kvray.errors import EngineError, ModelError, ResultsError
from kvray.plan.plan import Plan
from kvray.plan.session import load_plan
from kvray.record import TrialStatus
from kvray.tuning.result import TuneResult
from kvray.tuning.search import TuningSearch
from kvray.workload import create_custom_profile

PROFILE = create_custom_profile(
    "engines",
    context_lengths=(256, 3000),
    output_lengths=(4,),
    repeats=1,
    weight_ttft=0.01,
    weight_throughput=0.01,
    weight_memory=0.98,
)
"""Memory decides, which the fake engines make up: no clock does."""


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    second_engine.install(packages)
    monkeypatch.syspath_prepend(str(packages))
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def one_ray() -> Iterator[None]:
    with own_ray(str(Path(__file__).parent)):
        yield


def config_of(tmp_path: Path, **changes: object) -> TuneConfig:
    return TuneConfig(
        **{
            "model_id": "fake:second:=topk",
            "profile": PROFILE,
            "device": DeviceType.CPU,
            "engine": "fake,second,gone",
            "output_dir": tmp_path / "results",
            "attentions": ("sdpa", "eager"),
            "dtypes": ("float32",),
            "confirm_rounds": 1,
            **changes,
        }
    )


def test_every_engine_contributes_its_candidates_and_what_it_refuses_is_one_line(tmp_path: Path) -> None:
    preview = TuningSearch(config=config_of(tmp_path)).preview()
    assert preview.engines == ("fake", "second")
    assert preview.space.baseline.engine == "fake"
    assert [one.label for one in preview.defaults] == ["second:dynamic/sdpa/float32"]
    assert [one.engine for one in preview.space.candidates] == ["fake"] * 4 + ["second"] * 4
    assert (preview.profile.context_lengths, preview.dropped_contexts) == ((256,), (3000,)), "what all engines hold"
    (why,) = (reason for axis, value, reason in preview.left_out if (axis, value) == ("engine", "gone"))
    assert why.startswith("Unknown engine 'gone'. Allowed: "), "the reason and the cure"


def test_without_the_first_engine_the_next_one_gives_the_baseline(tmp_path: Path) -> None:
    assert TuningSearch(config=config_of(tmp_path, engine="gone,second")).preview().engines == ("second",)
    with pytest.raises(EngineError, match="Unknown engine 'gone'"):
        TuningSearch(config=config_of(tmp_path, engine="gone,away")).preview()
    with pytest.raises(ModelError, match="knows no model 'other'"):
        TuningSearch(config=config_of(tmp_path, engine="fake,second", model_id="other")).preview()


def test_an_engine_may_have_a_file_of_its_own_of_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preview = TuningSearch(config=config_of(tmp_path, models_for={"second": "fake:own"})).preview()
    assert [one.model.model_id for one in (preview, *preview.others)] == ["fake:second:=topk", "fake:own"]
    print_preview(preview, config_of(tmp_path), as_json=False)
    shown = capsys.readouterr().out
    assert "models: fake fake:second:=topk (float32), second fake:own (Q4_1)" in shown
    assert "note: second: The weights are packed." in shown, "it is that engine's note alone"
    assert "second:dynamic/sdpa/float32  its engine's default" in shown

    wrong = config_of(tmp_path, models_for={"second": "other"})
    refused = {one.engine: one.reason for one in TuningSearch(config=wrong).preview().refused}
    assert refused["second"] == "The fake engine knows no model 'other'. Use fake:ok."
    with pytest.raises(ModelError, match=r"--model-for second: '\./gone\.gguf' does not exist\."):
        TuningSearch(config=config_of(tmp_path, models_for={"second": "./gone.gguf"})).preview()


OWN_FILE = {"second": "fake:own,=topk"}


def test_a_sweep_follows_each_candidates_engine_from_the_records_to_the_plan(tmp_path: Path, one_ray: None) -> None:
    # The second engine joins when the sweep is resumed, so what the first one measured must stay.
    profile = PROFILE.model_copy(update={"context_lengths": (256,)})
    alone = TuningSearch(config=config_of(tmp_path, engine="fake", profile=profile)).run()
    (reference,) = (tmp_path / "cache" / "reference").glob("*.npz")
    made_at = reference.stat().st_mtime_ns
    resumed = {"resume": alone.manifest.run_id, "models_for": OWN_FILE}
    result = TuningSearch(config=config_of(tmp_path, **resumed)).run()
    check_records(result)
    before, after = ({one.record.trial_id: one.record for one in sweep.results} for sweep in (alone, result))
    assert {key: after[key].started_at for key in before} == {key: one.started_at for key, one in before.items()}
    assert [one.stat().st_mtime_ns for one in reference.parent.glob("*.npz")] == [made_at]

    manifest = result.manifest
    assert manifest.engines == ("fake", "second")
    assert (manifest.model_revision, manifest.other_engines["second"].model_revision) == ("1", "second-1")
    report = result.paths.report_markdown.read_text(encoding="utf-8")
    assert "**Engine**: fake, second" in report
    assert "`second:static/sdpa/float32`" in report
    assert "Unknown engine 'gone'" in report
    assert "second was fed the same tokens as fake." in report
    assert manifest.model_of("second").model_id == OWN_FILE["second"]
    with pytest.raises(ResultsError, match=r"Different now: engine second: fake:own,=topk; .* → fake:other; "):
        TuningSearch(config=config_of(tmp_path, **{**resumed, "models_for": {"second": "fake:other"}})).run()

    winner = result.analysis.ranking.winner.record
    assert winner.engine == "second"
    assert set(gather_evidence(result.results, profile).engines) == {"fake", "second"}, "each has a noise of its own"
    loaded = load_plan(result.paths.best_plan)
    assert (loaded.plan.engine, loaded.plan.model_revision, loaded.plan.architecture) == (
        "second",
        "second-1",
        "Second",
    )
    assert loaded.plan.model_id == OWN_FILE["second"]
    check_what_is_told_of_each_engine(result, loaded.plan, report)
    session = loaded.load()
    assert session.generate("a b c", max_new_tokens=2) == "fake fake"
    assert session.candidate.engine == "second"


def check_what_is_told_of_each_engine(result: TuneResult, plan: Plan, report: str) -> None:
    """Which weights each ran, and its best against its own default, in report, plan and snippet."""
    unlike = "The engines ran unlike weights: fake float32, second Q4_1; their quality (KL) counts what that costs."
    snippet = result.paths.optimized_config.read_text(encoding="utf-8")
    assert unlike in plan.notes
    assert unlike.replace("_", r"\_") in report
    assert f"# Note: {unlike}" in snippet
    assert "## Best of each engine" in report
    assert result.manifest.defaults.keys() == plan.engines.keys() == {"fake", "second"}
    told = {one["engine"]: one for one in summary(result)["engines"]}
    assert {name: one["best"]["candidate_id"] for name, one in told.items()} == {
        name: one.candidate.candidate_id for name, one in plan.engines.items()
    }
    for engine, one in plan.engines.items():
        assert one.default is not None
        assert one.default.candidate.candidate_id == result.manifest.defaults[engine]
        assert one.gain is not None
        assert one.gain.memory is not None
        assert one.default.metrics.peak_mib is not None
        assert one.metrics.peak_mib is not None
        assert told[engine]["own_gain"]["peak_ratio"] == pytest.approx(1 / (1 + one.gain.memory))
        assert one.gain.memory == pytest.approx(one.default.metrics.peak_mib / one.metrics.peak_mib - 1)


def check_records(result: TuneResult) -> None:
    """Every engine's default was measured, and all were compared with the first engine's reference."""
    records = {one.record.candidate.label: one.record for one in result.results if one.record.kl_mean is not None}
    default = records["second:dynamic/sdpa/float32"]
    assert default.status is TrialStatus.OK
    assert default.kl_mean == pytest.approx(0.0, abs=1e-6)
    assert default.kl_upper is not None, "the second engine tells the most probable tokens only"
    assert records["dynamic/sdpa/float32"].kl_upper is None
    assert {record.engine for record in records.values()} == {"fake", "second"}
