"""The kit notices what an engine can get wrong unseen: each fault is planted in the fake engine once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from typing_extensions import override

from kvray.engines.base import OBSERVED_TOKENS, ForcedText, ForcedToken, Generation, ModelRequest, Observed
from kvray.testing.engine_contract import EngineContract
from kvray.testing.fake import VOCABULARY, FakeAdapter, FakeModel
from kvray.testing.trial_contract import CPU


class LeftBehind(FakeModel):
    """Its proof leaves something in the cache, which the next generation goes on from."""

    _left = 0

    @override
    def observe(self, output_tokens: int = OBSERVED_TOKENS) -> Observed:
        self._left = output_tokens
        return super().observe(output_tokens)

    @override
    def generate(self, output_tokens: int) -> Generation:
        made = super().generate(output_tokens)
        return replace(made, tokens=tuple(tuple(one + self._left for one in row) for row in made.tokens))


class Shrunken(FakeModel):
    """Measuring quality leaves it with another cache than the one that was prepared."""

    _shrunken = False

    @override
    def forced_log_probabilities(self, text: ForcedText) -> Iterator[ForcedToken]:
        yield from super().forced_log_probabilities(text)
        self._shrunken = True

    @override
    def kv_cache_bytes(self) -> int | None:
        held = super().kv_cache_bytes()
        return held if held is None or not self._shrunken else held // 2


class Credulous(FakeModel):
    """Takes any id for one of its own."""

    @override
    def forced_log_probabilities(self, text: ForcedText) -> Iterator[ForcedToken]:
        yield from super().forced_log_probabilities(replace(text, ids=tuple(one % VOCABULARY for one in text.ids)))


KIT = EngineContract()


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (LeftBehind, KIT.test_proof_and_quality_leave_the_prepared_cell_as_it_was),
        (Shrunken, KIT.test_proof_and_quality_leave_the_prepared_cell_as_it_was),
        (Credulous, lambda model: KIT.test_a_text_with_ids_that_the_model_does_not_know_is_refused(model, 2**30)),
    ],
)
def test_a_planted_fault_is_noticed(kind: type[FakeModel], check: Callable[[FakeModel], None]) -> None:
    adapter, request = FakeAdapter(), ModelRequest(model_id="fake:ok")
    candidate = adapter.baseline(adapter.describe_model(request), CPU, batch_size=1)
    check(FakeModel(request, candidate))
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(kind(request, candidate))
