"""A batch of sweeps, each of which ends as the test says."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.main import get_command

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.cli import tune
from kvray.config import TuneConfig
from kvray.errors import (
    KvrayError,
    ModelError,
    OutputError,
    ProfileError,
    ResultsError,
    SweepError,
    SweepInterruptedError,
)
from kvray.jobs.doorman import JOB, SENT_MODELS
from kvray.judgement import Limits
from kvray.record import Role, TrialRecord, TrialResult, TrialStatus
from kvray.store.batch_manifest import BatchManifest, BatchStatus
from kvray.store.batch_store import BatchStore
from kvray.store.claim import claimed_sweep
from kvray.store.manifest import SweepManifest
from kvray.store.parquet import ResultsStore
from kvray.tuning import batch_pool, batch_queue
from kvray.tuning.batch import BatchSearch
from kvray.tuning.batch_file import AskedSweep, SweepSettings
from kvray.tuning.batch_options import BatchOptions
from kvray.tuning.batch_retry import BatchRetry
from kvray.tuning.batch_words import KEYS
from kvray.workload import get_profile

ENDS: dict[str, BaseException] = {
    "gated": ModelError("The model is gated."),
    "odd": ZeroDivisionError("a fault"),
    "stopped": KeyboardInterrupt(),
}


LOOKED_AT: list[str] = []


def ending(config: TuneConfig, *_: object, **__: object) -> None:
    """In place of the look at a model: raises what `ENDS` has for it."""
    LOOKED_AT.append(config.model_id)
    raise ENDS[config.model_id]


@pytest.fixture(autouse=True)
def _ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_queue, "look_at", ending)
    LOOKED_AT.clear()


def asked(*models: str) -> list[AskedSweep]:
    return [AskedSweep(model_id=one, profile=get_profile("ci-micro"), settings={}) for one in models]


def options(folder: Path, budget_s: float | None = None) -> BatchOptions:
    return BatchOptions(output_dir=str(folder), budget_s=budget_s)


def test_an_unexpected_error_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    manifest = BatchSearch(asked("odd", "gated"), options(tmp_path)).run()
    assert [(one.status.value, one.reason) for one in manifest.sweeps] == [
        ("error", "ZeroDivisionError: a fault"),
        ("failed", "The model is gated."),
    ]
    assert manifest.is_complete


def test_an_interrupted_batch_says_how_to_go_on_and_then_tries_the_rest(tmp_path: Path) -> None:
    first = BatchSearch(asked("gated", "stopped", "odd"), options(tmp_path))
    with pytest.raises(
        SweepInterruptedError, match=r"overview.html.*with: kvray batch --resume batch-\S+ --output \S+$"
    ):
        first.run()
    (path,) = (tmp_path / "batches").glob("*.json")
    overview = (tmp_path / "batches" / path.stem / "overview.md").read_text(encoding="utf-8")
    assert "1 waiting" in overview or "1 failed" in overview
    LOOKED_AT.clear()
    with pytest.raises(SweepInterruptedError):
        BatchSearch((), options(tmp_path), resume=path.stem).run()
    assert LOOKED_AT == ["gated", "stopped"]


def test_the_command_that_goes_on_has_no_credentials() -> None:
    told = BatchOptions(output_dir="s3://KEY:SECRET@bucket/r?scheme=http", slots=2).command("batch-1")
    assert told == "kvray batch --resume batch-1 --output s3://bucket/r --slots 2"


def test_a_batch_whose_end_cannot_be_written_says_so(tmp_path: Path) -> None:
    def fill(manifest: BatchManifest, _: object) -> None:
        if manifest.sweeps[-1].status is BatchStatus.FAILED:
            shutil.rmtree(tmp_path / "batches", ignore_errors=True)
            (tmp_path / "batches").touch()

    search = BatchSearch(asked("gated"), options(tmp_path), kept=fill)
    told = (
        r"batches.*\. The batch was measured to its end, and its overview .*: kvray batch --resume batch-\S+ --output"
    )
    with pytest.raises(OutputError, match=told) as raised:
        search.run()
    assert raised.value.exit_code == 7


def test_when_the_budget_has_ended_the_rest_waits(tmp_path: Path) -> None:
    times = iter((0.0, 1.0, 100.0, 100.0))
    search = BatchSearch(asked("gated", "odd"), options(tmp_path, budget_s=50), clock=lambda: next(times))
    manifest = search.run()
    assert [one.status.value for one in manifest.sweeps] == ["failed", "waiting"]
    assert manifest.sweeps[1].reason == "the budget ended before its turn"


def test_a_batch_that_is_measured_elsewhere_or_asks_for_others_is_refused(tmp_path: Path) -> None:
    batch_id = BatchSearch(asked("gated"), options(tmp_path)).run().batch_id
    with (
        claimed_sweep(ResultsStore(tmp_path), batch_id),
        pytest.raises(ResultsError, match=r"^Batch 'batch-.*is being measured already.*start a new batch without"),
    ):
        BatchSearch((), options(tmp_path), resume=batch_id).run()
    with pytest.raises(ResultsError, match="asks for other sweeps"):
        BatchSearch(asked("odd"), options(tmp_path), resume=batch_id).run()
    narrowed = asked("gated")[0].model_copy(update={"settings": {"caches": ["static"]}})
    for other, told in (
        (asked("odd"), "not in the file any more: gated · ci-micro; new in the file: odd · ci-micro."),
        (asked("gated", "gated"), "new in the file: gated · ci-micro #2."),
        ([narrowed], r"changed: gated · ci-micro \(caches\)."),
    ):
        with pytest.raises(ResultsError, match=rf"'{batch_id}': {told}"):
            BatchSearch(other, options(tmp_path), resume=batch_id).run()
    with pytest.raises(KvrayError, match=f"It holds: {batch_id}"):
        BatchSearch((), options(tmp_path), resume="none").run()


def test_when_ray_cannot_start_what_is_ready_fails_and_the_batch_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ready(config: TuneConfig, *_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(config=config, preview=SimpleNamespace(baseline_mib=0.0))

    def no_ray(**_: object) -> None:
        raise SweepError("Ray cannot start.")

    monkeypatch.setattr(batch_queue, "look_at", ready)
    monkeypatch.setattr(batch_pool, "RaySession", no_ray)
    manifest = BatchSearch(asked("one", "other"), options(tmp_path)).run()
    assert [(one.status.value, one.reason) for one in manifest.sweeps] == [("failed", "Ray cannot start.")] * 2


def test_a_cluster_that_cannot_be_joined_is_no_models_fault_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    wrong = BatchOptions(output_dir=str(folder), address="127.0.0.1:1")
    with pytest.raises(SweepError, match=r"cluster at '127\.0\.0\.1:1' cannot be reached") as raised:
        BatchSearch(asked("gated", "odd"), wrong).run()
    assert raised.value.exit_code == 11
    assert (LOOKED_AT, folder.exists()) == ([], False)


def ended_batch(folder: Path) -> str:
    """Leave a batch of one sweep with a winner, one without, and one that failed; returns its id."""
    batch = BatchSearch(asked("gated", "odd", "stopped"), options(folder))
    with pytest.raises(SweepInterruptedError):
        batch.run()
    store, (batch_id,) = BatchStore(folder), BatchStore(folder).batch_ids()
    manifest = store.read_manifest(batch_id)
    for sweep, status in zip(manifest.sweeps, ("ok", "no winner", "failed"), strict=True):
        manifest = manifest.having(sweep.model_copy(update={"status": BatchStatus(status)}))
    store.write_manifest(manifest)
    trials = ResultsStore(folder)
    for sweep, status in zip(manifest.sweeps[:2], (TrialStatus.OOM, TrialStatus.CRASHED), strict=True):
        trials.write_manifest(
            SweepManifest(
                kvray_version="0.1.0",
                run_id=sweep.run_id,
                created_at=manifest.created_at,
                model_id=sweep.model_id,
                model_revision="abc",
                architecture="Fake",
                engine="fake",
                device="cpu",
                device_name="a CPU",
                profile=sweep.profile,
                baseline_id="abc",
                memory_note="resident set",
            )
        )
        candidate = Candidate(
            engine="fake", cache=CacheStrategy.DYNAMIC, attention=AttentionBackend.SDPA, dtype=DType.FLOAT32
        )
        record = TrialRecord.of(
            candidate,
            run_id=sweep.run_id,
            trial_id="t-1",
            role=Role.BASELINE,
            model_id=sweep.model_id,
            profile="ci-micro",
            status=status,
        )
        trials.append(TrialResult(record=record))
    return batch_id


@pytest.mark.parametrize(
    ("retry", "measured"),
    [
        (BatchRetry(), {"stopped": ()}),
        (BatchRetry(failed=True), {"odd": TrialStatus.failures(), "stopped": ()}),
        (BatchRetry(statuses=(TrialStatus.OOM,)), {"gated": (TrialStatus.OOM,), "stopped": ()}),
    ],
    ids=["nothing", "failed", "oom"],
)
def test_a_resume_measures_again_what_is_to_be_retried_and_leaves_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retry: BatchRetry, measured: dict[str, tuple[TrialStatus, ...]]
) -> None:
    batch_id = ended_batch(tmp_path)
    configs: dict[str, TuneConfig] = {}

    def noting(config: TuneConfig, *_: object, **__: object) -> None:
        configs[config.model_id] = config
        raise ModelError("Enough.")

    monkeypatch.setattr(batch_queue, "look_at", noting)
    search = BatchSearch((), replace(options(tmp_path), retry=retry), resume=batch_id)
    assert {one.model_id for one, _ in search.previews()} == set(measured)
    search.run()
    assert {name: one.retry for name, one in configs.items()} == measured
    assert all((one.resume is None) == (one.model_id == "stopped") for one in configs.values())


def test_what_is_retried_is_named_in_the_command_that_goes_on() -> None:
    retry = BatchRetry(failed=True, statuses=(TrialStatus.OOM,), disturbed=True)
    assert BatchOptions(output_dir="r", retry=retry).command("b") == (
        "kvray batch --resume b --output r --retry failed,oom,disturbed"
    )


def test_to_resume_a_batch_that_is_not_there_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="holds no batch"):
        BatchSearch((), options(tmp_path / "none"), resume="batch-1").run()
    assert not (tmp_path / "none").exists()


def test_a_submitted_batch_goes_on_by_another_job_with_the_file_as_it_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job has an address and a copy of the file, which mean nothing where the user is."""
    typed = {"/job/files/1/m.yaml": "/home/me/m.yaml", "/job/sent/0/tiny": "./tiny"}
    monkeypatch.setenv(JOB, "1")
    monkeypatch.setenv(SENT_MODELS, json.dumps(typed))
    common = BatchOptions(output_dir=str(tmp_path), file="/job/files/1/m.yaml", address="head:6379", slots=2)
    rest = rf"--resume batch-\S+ --output {tmp_path} --slots 2$"
    ENDS["/job/sent/0/tiny"] = KeyboardInterrupt()
    for model, command in (("stopped", "batch"), ("/job/sent/0/tiny", "--upload-model batch")):
        search = BatchSearch(asked(model), replace(common, address=None))
        with pytest.raises(SweepInterruptedError):
            search.run()
        assert re.search(rf"with: kvray submit {command} /home/me/m.yaml {rest}", str(search.interrupted()))
    assert "--address" not in common.command("batch-1")


def test_what_measures_the_rest_has_the_options_of_the_batch() -> None:
    common = BatchOptions(output_dir="my results", device=DeviceType.CUDA, address="h:1", gpu_type="A100", slots=2)
    assert replace(common, offline=True, budget_s=9.0).command("b") == (
        "kvray batch --resume b --output 'my results' --device cuda --address h:1 --gpu-type A100 --slots 2 --offline"
    )
    alone = replace(common, exclusive=True)
    assert alone.command("b").endswith("--slots 2 --exclusive")
    assert alone.of_a_sweep["exclusive"]


def test_a_reason_names_the_keys_of_the_file_and_not_the_options_of_tune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ProfileError("Nothing fits.", hint="Pass shorter ones with --context and --output-len, or --resume it.")
    monkeypatch.setitem(ENDS, "short", error)
    (sweep,) = BatchSearch(asked("short"), options(tmp_path)).run().sweeps
    told = "Nothing fits. Pass shorter ones with context_lengths and output_lengths, or --resume it."
    assert sweep.reason == told


def test_every_option_that_is_told_as_a_key_is_one_of_tune_and_has_that_key() -> None:
    of_tune = {option for parameter in get_command(tune.app).params for option in parameter.opts}
    assert set(KEYS) <= of_tune
    assert {re.split(r"[.:]", key)[0] for key in KEYS.values()} <= set(SweepSettings.model_fields)
    limits = {key.removeprefix("limits.") for key in KEYS.values() if key.startswith("limits.")}
    assert limits <= set(Limits.model_fields)
