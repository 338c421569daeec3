"""What every results store must do, whatever file system lies under it: subclass `StoreContract`, give it a `root`."""

from __future__ import annotations

import datetime as dt
from dataclasses import fields, replace
from typing import Any

import pyarrow.parquet as pq
import pytest

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DType
from kvray.errors import InvalidValueError, ResultsError
from kvray.record import Phase, Role, Run, TrialRecord, TrialResult, TrialStatus
from kvray.store.files import ResultsFiles
from kvray.store.manifest import SweepManifest
from kvray.store.parquet import ResultsStore, records_sha256
from kvray.store.ranking_table import RankingRow
from kvray.workload import get_profile

RUN_ID = "20260101-120000-abcd"
NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
CANDIDATE = Candidate(
    engine="fake",
    cache=CacheStrategy.STATIC,
    attention=AttentionBackend.SDPA_MATH,
    dtype=DType.BFLOAT16,
    cache_params=(("window", 256), ("sinks", True)),
    settings=(("tile", 64), ("fused", True), ("layout", "rows")),
)
OTHER = replace(CANDIDATE, batch_size=2)


def record_of(
    trial_id: str, status: TrialStatus = TrialStatus.OK, *, candidate: Candidate = CANDIDATE, **values: Any
) -> TrialRecord:
    return TrialRecord.of(
        candidate,
        run_id=RUN_ID,
        trial_id=trial_id,
        role=Role.SEARCH,
        model_id="org/model",
        profile="ci-micro",
        status=status,
        **values,
    )


def result_of(trial_id: str, *, minute: int = 0, repeats: int = 2, **values: Any) -> TrialResult:
    started = NOON + dt.timedelta(minutes=minute)
    runs = tuple(
        Run(
            run_id=RUN_ID,
            trial_id=trial_id,
            candidate_id=CANDIDATE.candidate_id,
            context_tokens=512,
            output_tokens=4,
            batch_size=1,
            rung=2,
            repeat=repeat,
            ttft_ms=100.5 + repeat,
            itl_ms=(10.0, 11.25, 12.0),
            decode_tok_s=90.0,
            peak_mib=1024.0 if repeat else None,
            disturbed=repeat == 1,
            started_at=started + dt.timedelta(seconds=repeat, microseconds=7),
        )
        for repeat in range(repeats)
    )
    return TrialResult(record=record_of(trial_id, started_at=started, ttft_ms=101.0, **values), runs=runs)


def manifest_of(run_id: str, *, minute: int = 0) -> SweepManifest:
    return SweepManifest(
        kvray_version="0.1.0",
        run_id=run_id,
        created_at=NOON + dt.timedelta(minutes=minute),
        model_id="org/model",
        model_revision="abc",
        architecture="LlamaForCausalLM",
        engine="fake",
        device="cpu",
        device_name="a CPU",
        profile=get_profile("ci-micro"),
        baseline_id=CANDIDATE.candidate_id,
        memory_note="resident set",
    )


def ranking_row(rank: int | None, **values: Any) -> RankingRow:
    known: dict[str, Any] = dict.fromkeys(field.name for field in fields(RankingRow))
    names = {field.name for field in fields(Candidate)}
    known |= {name: getattr(CANDIDATE, name) for name in names} | {"label": CANDIDATE.label, "run_id": RUN_ID}
    known |= {"rank": rank, "status": TrialStatus.OK, "limits_missed": () if rank else ("max_ttft_ms",)}
    return RankingRow(**{**known, **values})


class StoreContract:
    @pytest.fixture
    def root(self) -> str:
        """A results folder that does not exist yet."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, root: str) -> ResultsStore:
        return ResultsStore(root)

    def test_a_store_that_can_be_written_passes_the_check_and_holds_no_sweep_yet(self, store: ResultsStore) -> None:
        store.check_writable()
        assert store.run_ids() == []
        with pytest.raises(ResultsError, match="holds no sweep"):
            store.latest_run_id()

    def test_appended_trials_are_read_back_equal_with_their_runs_ordered_by_start(self, store: ResultsStore) -> None:
        late, early, bare = result_of("t-a", minute=5), result_of("t-b", minute=1), result_of("t-c", repeats=0)
        for result in (late, early, bare):
            store.append(result)
        assert store.read(RUN_ID) == [bare, early, late]

    @pytest.mark.parametrize("status", TrialStatus)
    def test_every_way_a_trial_can_end_is_kept(self, store: ResultsStore, status: TrialStatus) -> None:
        record = record_of("t-1", status, phase=Phase.LOAD, message="why ✗", log_tail="line\nline", pid=1)
        if status.was_launched:
            store.append(TrialResult(record=record))
        else:
            store.append_many([record])
        assert store.read(RUN_ID) == [TrialResult(record=record)]

    def test_trials_never_launched_are_added_to_those_recorded_before_and_come_last(self, store: ResultsStore) -> None:
        rejected = record_of("t-1", TrialStatus.REJECTED, candidate=OTHER)
        skipped = record_of("t-2", TrialStatus.SKIPPED, candidate=OTHER)
        store.append_many([rejected])
        store.append_many([skipped])
        store.append_many([])
        launched = result_of("t-9")
        store.append(launched)
        assert store.read(RUN_ID) == [launched, TrialResult(record=rejected), TrialResult(record=skipped)]

    @pytest.mark.parametrize("status", [TrialStatus.REJECTED, TrialStatus.SKIPPED])
    def test_who_was_launched_after_all_is_no_longer_among_those_that_never_were(
        self, store: ResultsStore, status: TrialStatus
    ) -> None:
        store.append_many([record_of("t-1", status)])
        store.compact(RUN_ID)
        launched = result_of("t-2")
        store.append(launched)
        assert store.read(RUN_ID) == [launched]

    def test_a_trial_appended_again_replaces_its_record_and_its_runs(self, store: ResultsStore) -> None:
        store.append(result_of("t-1", repeats=3))
        again = result_of("t-1", repeats=0, message="again")
        store.append(again)
        assert store.read(RUN_ID) == [again]

    def test_compaction_changes_neither_content_nor_hash_and_leaves_one_file_per_table(
        self, store: ResultsStore, root: str
    ) -> None:
        for number in range(3):
            store.append(result_of(f"t-{number}", minute=number))
        store.append_many([record_of("t-8", TrialStatus.SKIPPED, candidate=OTHER)])
        before, digest = store.read(RUN_ID), records_sha256(store.read(RUN_ID))
        store.compact(RUN_ID)
        assert store.read(RUN_ID) == before
        assert records_sha256(store.read(RUN_ID)) == digest
        paths = store.paths(RUN_ID)
        for folder in (paths.trials, paths.runs):
            assert ResultsFiles(root).list(folder, "") == [folder / "part-0.parquet"]

    def test_trials_appended_after_a_compaction_are_read_and_compacted_too(self, store: ResultsStore) -> None:
        store.append(result_of("t-1", minute=1))
        store.compact(RUN_ID)
        store.append(result_of("t-2", minute=2))
        expected = [result_of("t-1", minute=1), result_of("t-2", minute=2)]
        assert store.read(RUN_ID) == expected
        store.compact(RUN_ID)
        store.compact(RUN_ID)
        assert store.read(RUN_ID) == expected

    def test_of_a_trial_in_a_single_file_and_in_the_compacted_one_the_single_file_counts(
        self, store: ResultsStore
    ) -> None:
        store.append(result_of("t-1"))
        store.compact(RUN_ID)
        newer = result_of("t-1", repeats=1, message="newer")
        store.append(newer)
        assert store.read(RUN_ID) == [newer]
        store.compact(RUN_ID)
        assert store.read(RUN_ID) == [newer]

    def test_the_hash_tells_other_records_apart(self, store: ResultsStore) -> None:
        digests = set()
        for repeats, message in ((1, None), (2, None), (2, "other")):
            store.append(result_of("t-1", repeats=repeats, message=message))
            digests.add(records_sha256(store.read(RUN_ID)))
        assert len(digests) == 3

    def test_an_unknown_run_has_no_trials(self, store: ResultsStore) -> None:
        assert store.read("never-ran") == []

    def test_manifests_are_read_back_equal_and_runs_are_listed_oldest_first(self, store: ResultsStore) -> None:
        newest, oldest = manifest_of("a-run", minute=9), manifest_of("z-run", minute=1)
        store.write_manifest(newest)
        store.write_manifest(oldest)
        assert store.read_manifest("a-run") == newest
        assert store.run_ids() == ["z-run", "a-run"]
        assert store.latest_run_id() == "a-run"

    def test_an_unknown_run_s_manifest_is_refused_naming_those_there_are(self, store: ResultsStore) -> None:
        store.write_manifest(manifest_of("a-run"))
        with pytest.raises(ResultsError, match=r"holds no sweep 'b-run'\. It holds: a-run\."):
            store.read_manifest("b-run")

    def test_a_run_id_that_would_leave_the_folder_is_refused(self, store: ResultsStore) -> None:
        with pytest.raises(InvalidValueError, match=r"Invalid run id '\.\./evil'"):
            store.read_manifest("../evil")

    def test_artefacts_are_written_and_read_as_text(self, store: ResultsStore) -> None:
        path = store.paths(RUN_ID).report_markdown
        store.write_text(path, "TTFT → 5 ms\n")
        store.write_text(path, "TTFT → 4 ms\n")
        assert store.read_text(path) == "TTFT → 4 ms\n"

    def test_a_ranking_is_a_table_beside_the_reports_that_replaces_an_earlier_one(
        self, store: ResultsStore, root: str
    ) -> None:
        store.append(result_of("t-a"))
        store.write_ranking(RUN_ID, [ranking_row(1), ranking_row(2), ranking_row(None)])
        store.write_ranking(RUN_ID, [ranking_row(1, ttft_ms=9.5), ranking_row(None)])
        table = pq.read_table(ResultsFiles(root).open(store.paths(RUN_ID).ranking))
        assert table.select(["run_id", "rank", "ttft_ms", "cache", "status", "limits_missed"]).to_pylist() == [
            {"run_id": RUN_ID, "rank": 1, "ttft_ms": 9.5, "cache": "static", "status": "ok", "limits_missed": []},
            {
                "run_id": RUN_ID,
                "rank": None,
                "ttft_ms": None,
                "cache": "static",
                "status": "ok",
                "limits_missed": ["max_ttft_ms"],
            },
        ]
        assert [one.record.trial_id for one in store.read(RUN_ID)] == ["t-a"]

    def test_what_is_deleted_is_gone_and_may_have_been_before(self, store: ResultsStore) -> None:
        path = store.paths(RUN_ID).best_plan
        store.write_text(path, "{}")
        for _ in range(2):
            store.delete(path)
            with pytest.raises(FileNotFoundError):
                store.read_text(path)
