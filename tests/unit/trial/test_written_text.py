"""Whether two engines write the prompts with the same tokens, and what becomes of quality where they do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from trial_samples import candidate_of, spec_of

from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import ForcedText, LoadedModel, ModelRequest, UnsupportedError
from kvray.testing.fake import FakeAdapter, FakeModel
from kvray.trial.events import TrialFacts
from kvray.trial.protocol import TrialProtocol
from kvray.trial.quality import IncomparableError, forced_tokens, summarize
from kvray.trial.reference import quality_cell, reference_path, save_reference
from kvray.trial.spec import ReferenceSpec
from kvray.trial.written_text import writing_difference
from kvray.workload import WorkloadProfile

TEXT = tuple(range(1000, 1064))


def test_the_same_tokens_are_no_difference() -> None:
    assert writing_difference(TEXT, TEXT, maker="transformers") is None


@pytest.mark.parametrize(
    ("own", "place"),
    [((1, *TEXT[:-1]), 1), ((*TEXT[:9], 7, 8, *TEXT[11:]), 10), (TEXT[:-1], 65)],
    ids=["another beginning", "another split", "shorter"],
)
def test_another_split_by_the_same_vocabulary_is_said_and_compared(own: tuple[int, ...], place: int) -> None:
    told = writing_difference(own, TEXT, maker="transformers")
    assert told is not None
    assert told.startswith(
        f"its tokenizer writes the prompts otherwise than that of transformers, from token {place} on"
    )


def test_another_vocabulary_cannot_be_compared() -> None:
    own = tuple(token + 30 for token in TEXT)
    with pytest.raises(
        IncomparableError, match=r"another vocabulary than that of transformers: of 64 tokens they share 34"
    ):
        writing_difference(own, TEXT, maker="transformers")


class Other(FakeAdapter):
    """Another engine than the reference's, whose model writes the text as `writes` does."""

    name: ClassVar[str] = "other"

    def __init__(self, writes: type[FakeModel]) -> None:
        self._writes = writes

    def load(
        self, request: ModelRequest, candidate: Candidate, device: DeviceType, profile: WorkloadProfile
    ) -> LoadedModel:
        return self._writes(request, candidate)


class AddsBos(FakeModel):
    def forced_text(self, forced: int) -> ForcedText:
        text = super().forced_text(forced)
        return replace(text, ids=(31, *text.ids[:-1]))


class OtherVocabulary(FakeModel):
    def forced_text(self, forced: int) -> ForcedText:
        text = super().forced_text(forced)
        return replace(text, ids=tuple(token + 1000 for token in text.ids))


class Silent(FakeModel):
    def forced_text(self, forced: int) -> ForcedText:
        raise UnsupportedError("no texts")


@pytest.mark.parametrize(
    ("writes", "is_compared", "note"),
    [
        (FakeModel, True, None),
        (AddsBos, True, "its tokenizer writes the prompts otherwise than that of fake, from token 1 on"),
        (OtherVocabulary, False, "its tokenizer has another vocabulary than that of fake"),
        (Silent, True, "the engine does not tell how its tokenizer writes the prompts"),
    ],
)
def test_the_trial_of_another_engine_finds_out_how_its_tokenizer_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: type[FakeModel], is_compared: bool, note: str | None
) -> None:
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path))
    facts = facts_of(writes)
    assert (facts.quality is not None) is is_compared
    assert (facts.quality_note or "").startswith(note or "")
    assert (facts.quality_note is None) is (note is None)


def facts_of(writes: type[FakeModel]) -> TrialFacts:
    """What a trial of another engine learns, whose reference the fake engine has made."""
    reference = ReferenceSpec(candidate=candidate_of(), model_revision="1", request=ModelRequest(model_id="fake:ok"))
    spec = replace(spec_of("fake:ok"), reference=reference, candidate=replace(candidate_of(), engine="other"))
    made_by = FakeModel(reference.requested(spec), candidate_of())
    made_by.prepare(cell := quality_cell(spec))
    text = made_by.forced_text(forced_tokens(cell))
    save_reference(summarize(made_by.forced_log_probabilities(text), text), reference_path(spec, reference))
    protocol = TrialProtocol(
        spec, Other(writes), emit=lambda _: None, may_continue=lambda: False, device_memory_mib=lambda _: None
    )
    protocol.run()
    return protocol.facts
