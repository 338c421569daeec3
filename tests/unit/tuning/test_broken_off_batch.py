"""How the sweeps of a batch end that is broken off. In place of Ray, the test runs the trials."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sweep_without_ray import NoRay, one_trial
from typing_extensions import override

from kvray.candidate import DeviceType
from kvray.cli.progress import LineProgress
from kvray.errors import SweepError, SweepInterruptedError
from kvray.record import TrialResult
from kvray.store.batch_manifest import BatchManifest, BatchSweep
from kvray.store.batch_store import BatchStore
from kvray.store.manifest import SweepManifest
from kvray.store.parquet import ResultsStore
from kvray.sweep.batch import QueuedSweep
from kvray.trial.position import PositionBoard
from kvray.tuning import batch_pool
from kvray.tuning.batch import BatchSearch
from kvray.tuning.batch_file import AskedSweep
from kvray.tuning.batch_options import BatchOptions
from kvray.tuning.begun_sweep import SweepView
from kvray.tuning.observer import SearchObserver
from kvray.tuning.preview import Preview
from kvray.workload import get_profile

NO_CONSOLE = Console(quiet=True)


class Pressed(LineProgress):
    """Ctrl-C comes when the sweep begins."""

    @override
    def search_started(
        self,
        preview: Preview,
        manifest: SweepManifest,
        recorded: Sequence[TrialResult],
        positions: PositionBoard | None = None,
    ) -> None:
        raise KeyboardInterrupt


class Faulty(Pressed):
    """Is at fault when the sweep begins."""

    @override
    def search_started(self, *_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a fault")


@pytest.fixture
def batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., BatchSearch]:
    """A batch whose trials are what `trials` makes of the queue of each sweep."""

    def make(
        trials: Callable[[QueuedSweep], None] = one_trial,
        view: SweepView | None = None,
        models: Sequence[str] = ("fake:ok",),
    ) -> BatchSearch:
        def run_sweep(*, newcomers: Callable[[str | None], Any], **_: object) -> None:
            sweep = newcomers(None).next_sweep()
            if sweep is not None:
                trials(sweep)

        monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(batch_pool, "run_sweep", run_sweep)
        monkeypatch.setattr(batch_pool, "RaySession", NoRay)
        settings = {"engine": "fake", "check_snippet": False}
        asked = [AskedSweep(model_id=one, profile=get_profile("ci-micro"), settings=settings) for one in models]
        options = BatchOptions(output_dir=str(tmp_path / "out"), device=DeviceType.CPU)
        return BatchSearch(asked, options, view=view)

    return make


def manifest_in(folder: Path) -> BatchManifest:
    store = BatchStore(folder / "out")
    (batch_id,) = store.batch_ids()
    return store.read_manifest(batch_id)


def viewed_by(observer: SearchObserver) -> SweepView:
    @contextmanager
    def view(_: BatchSweep) -> Iterator[SearchObserver]:
        yield observer

    return view


def test_ctrl_c_while_a_sweep_begins_leaves_it_interrupted_and_not_measuring(
    batch: Callable[..., BatchSearch], tmp_path: Path
) -> None:
    with pytest.raises(SweepInterruptedError):
        batch(view=viewed_by(Pressed(NO_CONSOLE))).run()
    assert [one.status.value for one in manifest_in(tmp_path).sweeps] == ["interrupted"]


def test_a_sweep_of_a_batch_knows_its_batch(batch: Callable[..., BatchSearch], tmp_path: Path) -> None:
    """A later `kvray rank` says by it how to go on."""
    manifest = batch().run()
    sweep = ResultsStore(tmp_path / "out").read_manifest(manifest.sweeps[0].run_id)
    assert (sweep.command, sweep.batch_id) == ("kvray batch", manifest.batch_id)


def test_a_process_that_leaves_at_once_leaves_no_sweep_that_seems_to_measure(
    batch: Callable[..., BatchSearch], tmp_path: Path
) -> None:
    def trials(sweep: QueuedSweep) -> None:
        one_trial(sweep)
        assert [one.status.value for one in manifest_in(tmp_path).sweeps] == ["measuring", "waiting"]
        left.append(search.left_at_once())
        (overview,) = (tmp_path / "out" / "batches").glob("*/overview.md")
        shown.append(overview.read_text(encoding="utf-8"))
        statuses.extend(one.status.value for one in manifest_in(tmp_path).sweeps)
        raise KeyboardInterrupt

    left: list[SweepInterruptedError] = []
    shown: list[str] = []
    statuses: list[str] = []
    search = batch(trials, models=("fake:ok", "fake:other"))
    with pytest.raises(SweepInterruptedError):
        search.run()
    assert statuses == ["interrupted", "waiting"]
    assert "1 interrupted" in shown[0]
    assert "measuring" not in shown[0]
    assert "Measure the rest with: kvray batch --resume" in str(left[0])


def test_a_fault_while_a_sweep_begins_is_its_row(batch: Callable[..., BatchSearch]) -> None:
    (sweep,) = batch(view=viewed_by(Faulty(NO_CONSOLE))).run().sweeps
    assert (sweep.status.value, sweep.reason) == ("error", "ZeroDivisionError: a fault")


def test_a_sweep_whose_ray_broke_down_says_where_its_records_are_and_names_no_command_of_a_single_sweep(
    batch: Callable[..., BatchSearch], tmp_path: Path
) -> None:
    def trials(sweep: QueuedSweep) -> None:
        one_trial(sweep)
        raise SweepError("Ray broke down.")

    (sweep,) = batch(trials).run().sweeps
    assert sweep.status.value == "failed"
    assert sweep.reason == (
        f"Ray broke down. The trials that had finished are kept in {tmp_path / 'out'}. "
        "The rest is measured when the batch is resumed."
    )
    assert any(one.record.status.was_launched for one in ResultsStore(tmp_path / "out").read(sweep.run_id))


def test_the_logs_of_all_rays_of_a_batch_are_kept(
    batch: Callable[..., BatchSearch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter(("the first one's last words", "another one's"))

    @contextmanager
    def talking(log: Path) -> Iterator[None]:
        log.write_text(f"{next(said)}\n", encoding="utf-8")
        yield

    def trials(_: QueuedSweep) -> None:
        raise SweepError("Ray broke down.")

    monkeypatch.setattr(batch_pool, "quiet_ray", talking)
    search = batch(trials, models=("fake:ok", "fake:other"))
    manifest = search.run()
    assert [one.status.value for one in manifest.sweeps] == ["failed", "failed"]
    log = BatchStore(tmp_path / "out").paths(manifest.batch_id).log
    assert log.read_text(encoding="utf-8") == "the first one's last words\nanother one's\n"
