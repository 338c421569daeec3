from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from trial_samples import candidate_of, profile_of, spec_of

from kvray.engines.base import EngineAdapter, ModelRequest, StartMethod
from kvray.testing.fake import FakeAdapter
from kvray.trial.quality import IncomparableError, forced_tokens, summarize
from kvray.trial.reference import load_reference, quality_cell, reference_path, save_reference
from kvray.trial.reference_process import ensure_reference
from kvray.trial.spec import ReferenceSpec, TrialSpec
from kvray.workload import Cell


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path))
    return tmp_path


REFERENCE = ReferenceSpec(candidate=candidate_of(), model_revision="1")


def asking(model_id: str = "fake:ok", **changes: object) -> TrialSpec:
    return replace(spec_of(model_id), reference=REFERENCE, **changes)  # type: ignore[arg-type]


def test_quality_is_asked_at_the_longest_cell_of_the_first_rung() -> None:
    assert quality_cell(asking()) == Cell(48, 16, 1)
    assert quality_cell(spec_of(batch_size=4, profile=profile_of(context_lengths=(100, 24)))) == Cell(100, 16, 4)


def test_all_candidates_of_a_model_share_a_file_and_other_weights_do_not() -> None:
    path = reference_path(asking(), REFERENCE)
    other = replace(asking(), candidate=candidate_of(batch_size=4), trial_id="other")
    assert reference_path(other, REFERENCE) == path
    assert reference_path(asking(), replace(REFERENCE, model_revision="2")) != path
    assert reference_path(asking("fake:other"), REFERENCE) != path
    assert reference_path(replace(asking(), profile=profile_of(context_lengths=(24,))), REFERENCE) != path


def test_a_reference_is_read_back_as_it_was_written_and_leaves_no_other_file(tmp_path: Path) -> None:
    model = FakeAdapter().load(asking().request, candidate_of(), asking().device, asking().profile)
    model.prepare(Cell(24, 4, 1))
    made = summarize(model.forced_log_probabilities(text := model.forced_text(10)), text)
    save_reference(made, tmp_path / "folder" / "a.npz")
    read = load_reference(tmp_path / "folder" / "a.npz")
    assert all(np.array_equal(getattr(read, name), value) for name, value in vars(made).items())
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["a.npz"]


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 not a zip"])
def test_a_missing_or_torn_reference_is_told_apart_from_a_loss(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(IncomparableError, match="cannot be read"):
        load_reference(path)


class SpawnedAdapter(FakeAdapter):
    start_method: ClassVar[StartMethod] = "spawn"


@pytest.mark.spawns
@pytest.mark.parametrize("measured", [SpawnedAdapter(), FakeAdapter()])
def test_what_cannot_be_forked_here_makes_the_reference_in_a_fresh_interpreter(
    tmp_path: Path, measured: EngineAdapter
) -> None:
    reference, fetched = replace(REFERENCE, adapter=SpawnedAdapter()), list[bool]()
    path = tmp_path / "a.npz"
    assert ensure_reference(asking(), reference, measured, path, fetched=lambda: fetched.append(True)) is None
    assert fetched == [True]
    assert len(load_reference(path).tokens) == forced_tokens(quality_cell(asking()))


@pytest.mark.spawns
def test_an_engine_in_another_environment_makes_the_reference_there(tmp_path: Path, second_python: str) -> None:
    reference = replace(REFERENCE, adapter=FakeAdapter(), python=second_python)
    path = tmp_path / "a.npz"
    assert ensure_reference(asking(), reference, FakeAdapter(), path, fetched=lambda: None) is None
    assert len(load_reference(path).tokens) == forced_tokens(quality_cell(asking()))
    gone = replace(reference, python=str(tmp_path / "python"))
    note = ensure_reference(asking(), gone, FakeAdapter(), tmp_path / "b.npz", fetched=lambda: None)
    assert (
        note == f"the reference could not be made: {tmp_path / 'python'} cannot be started: No such file or directory"
    )


@pytest.mark.spawns
def test_a_fresh_interpreter_says_why_it_failed(tmp_path: Path) -> None:
    reference = replace(REFERENCE, adapter=SpawnedAdapter())
    note = ensure_reference(
        asking("fake:dynamic=oom@load"), reference, FakeAdapter(), tmp_path / "a.npz", fetched=lambda: None
    )
    assert note == "the reference could not be made: OutOfMemoryError: told to run out of memory"


def test_candidates_of_all_engines_share_the_reference_of_the_engine_that_is_named_for_it() -> None:
    named = replace(REFERENCE, request=ModelRequest(model_id="fake:ok"), adapter=FakeAdapter())
    of_another_engine = replace(asking("fake:as the other engine names it"), candidate=candidate_of(engine="other"))
    assert reference_path(of_another_engine, named) == reference_path(asking(), REFERENCE)


@pytest.mark.spawns
def test_a_process_of_its_own_makes_the_reference(tmp_path: Path) -> None:
    fetched: list[bool] = []
    path, spec = tmp_path / "reference" / "a.npz", asking()
    assert ensure_reference(spec, REFERENCE, FakeAdapter(), path, fetched=lambda: fetched.append(True)) is None
    assert fetched == [True]
    assert len(load_reference(path).tokens) == forced_tokens(quality_cell(spec))


@pytest.mark.spawns
@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("oom@load", "OutOfMemoryError: told to run out of memory"),
        ("kill@load", "its process died or took too long"),
        ("hang@load", "its process died or took too long"),
    ],
)
def test_a_failure_is_told_once_and_not_tried_again_in_the_sweep(tmp_path: Path, command: str, reason: str) -> None:
    spec, fetched = replace(asking(f"fake:dynamic={command}"), timeout_s=1.0), list[bool]()
    for _ in range(2):
        note = ensure_reference(
            spec, REFERENCE, FakeAdapter(), tmp_path / "a.npz", fetched=lambda: fetched.append(True)
        )
        assert note == f"the reference could not be made: {reason}"
    assert fetched == [True]
