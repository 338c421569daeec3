"""What has ended is on the disk before anybody is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from manifests import RUN_ID, plain_manifest
from typing_extensions import override

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.engines.base import ModelRequest
from kvray.measuring.recording import blank_record
from kvray.record import Role, TrialResult, TrialStatus
from kvray.store.keeper import RecordKeeper
from kvray.store.manifest import SweepManifest
from kvray.store.parquet import ResultsStore
from kvray.sweep.outlook import Outlook
from kvray.trial.position import PositionBoard
from kvray.trial.spec import TrialSpec
from kvray.tuning.observer import SearchObserver
from kvray.tuning.preview import Preview
from kvray.tuning.recorder import Recorder

MANIFEST = plain_manifest()


class Hearing(SearchObserver):
    """Notes what it hears, with the trials that lie on the disk at that moment."""

    def __init__(self, store: ResultsStore) -> None:
        self.store = store
        self.heard: list[tuple[str, set[str]]] = []

    @override
    def measuring_device(self) -> None: ...

    @override
    def checking_code(self) -> None: ...

    @override
    def search_started(
        self,
        preview: Preview,
        manifest: SweepManifest,
        recorded: Sequence[TrialResult],
        positions: PositionBoard | None = None,
    ) -> None: ...

    @override
    def rung_finished(self, result: TrialResult) -> None: ...

    @override
    def trial_lost(self, spec: TrialSpec) -> None: ...

    @override
    def outlook_changed(self, outlook: Outlook) -> None: ...

    @override
    def trial_started(self, spec: TrialSpec) -> None:
        self._note(f"start {spec.trial_id}")

    @override
    def trial_finished(self, result: TrialResult) -> None:
        self._note(f"{result.record.status} {result.record.trial_id}")

    def _note(self, what: str) -> None:
        self.heard.append((what, {one.record.trial_id for one in self.store.read(RUN_ID)}))


def spec_of(name: str) -> TrialSpec:
    return TrialSpec(
        run_id=RUN_ID,
        trial_id=name,
        role=Role.SEARCH,
        request=ModelRequest(model_id="fake:ok"),
        candidate=Candidate(
            engine="fake", cache=CacheStrategy.DYNAMIC, attention=AttentionBackend.SDPA, dtype=DType.FLOAT32
        ),
        profile=MANIFEST.profile,
        device=DeviceType.CPU,
        timeout_s=1.0,
    )


def ended(name: str, status: TrialStatus = TrialStatus.OK) -> TrialResult:
    return TrialResult(record=blank_record(spec_of(name), status))


def test_a_trial_is_told_of_once_it_is_written_and_all_is_told_in_order(tmp_path: Path) -> None:
    store = ResultsStore(tmp_path)
    store.write_manifest(MANIFEST)
    hearing = Hearing(store)
    recorder = Recorder(RecordKeeper(store, MANIFEST), cast(Preview, None), MANIFEST, [hearing])
    recorder.trial_started(spec_of("a"))
    assert hearing.heard == [("start a", set())], "nothing is being written"
    recorder.trial_finished(ended("a"))
    recorder.trial_started(spec_of("b"))
    recorder.trial_finished(ended("b"))
    recorder.attend(True)
    recorder.trial_finished(ended("c"))
    recorder.trial_finished(ended("d", TrialStatus.INTERRUPTED))
    assert [what for what, _ in hearing.heard] == ["start a", "ok a", "start b", "ok b", "ok c"]
    there = dict(hearing.heard)
    assert {"a"} <= there["ok a"]
    assert {"a"} <= there["start b"]
    assert {"a", "b"} <= there["ok b"]
    assert there["ok c"] == {"a", "b", "c", "d"}
