"""The kit that every engine must pass: subclass it, name the adapter and a small model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import (
    EngineAdapter,
    ForcedText,
    ForcedToken,
    LoadedModel,
    ModelRequest,
    TopLogs,
    UnsupportedError,
)
from kvray.space.search_space import SearchSpace
from kvray.testing.driver_contract import DriverContract
from kvray.testing.trial_contract import TrialContract, is_alive, still_alive
from kvray.workload import Cell, WorkloadProfile


def told_of(model: LoadedModel, forced: int) -> tuple[ForcedText, list[ForcedToken]]:
    """The text of a prepared `model`, and what it thinks of its last tokens; an engine that tells none is not asked."""
    try:
        text = model.forced_text(forced)
        return text, list(model.forced_log_probabilities(text))
    except UnsupportedError as error:
        model.close()
        pytest.skip(f"no quality: {error}")


def check_distributions(rows: NDArray[np.float32] | TopLogs, token: int) -> None:
    """Each row's probabilities sum to 1; where only the most probable tokens are told, to no more."""
    if isinstance(rows, np.ndarray):
        assert np.exp(rows.astype(np.float64)).sum(axis=1) == pytest.approx(np.ones(len(rows)), abs=1e-3)
        return
    assert (np.exp(rows.logs.astype(np.float64)).sum(axis=1) <= 1.0 + 1e-3).all()
    assert (np.diff(rows.logs, axis=1) <= 0).all(), "the most probable come first"
    assert all(len(set(ids)) == len(ids) for ids in rows.ids.tolist())
    if rows.token_logs is not None:
        fed = rows.ids == token
        assert np.where(fed.any(axis=1), (rows.logs * fed).sum(axis=1), rows.token_logs) == pytest.approx(
            rows.token_logs
        )


class EngineContract(DriverContract, TrialContract):
    """What trial, space and plan rely on, engine by engine, in this process and in processes of its own.

    Attributes:
        cache_step: tokens by which its cache grows at once.
    """

    cache_step: int = 16

    @pytest.fixture
    def loaded(
        self, adapter: EngineAdapter, request_: ModelRequest, space: SearchSpace, profile: WorkloadProfile
    ) -> Iterator[LoadedModel]:
        """The baseline, loaded in this process."""
        adapter.fetch_weights(request_)
        model = adapter.load(request_, space.baseline, DeviceType.CPU, profile)
        yield model
        model.close()

    def test_a_generation_has_exactly_the_asked_for_tokens_each_with_a_stamp(self, loaded: LoadedModel) -> None:
        loaded.prepare(Cell(24, 6, 2))
        for tokens in (6, 3, 1):
            generation = loaded.generate(tokens)
            assert [len(row) for row in generation.tokens] == [tokens, tokens]
            assert len(generation.token_s) == tokens
            assert list(generation.token_s) == sorted(generation.token_s)
            assert generation.started_s < generation.token_s[0]
            assert len(generation.stamp_rows) in (1, 2)
            for row in generation.stamp_rows:
                assert len(row) == tokens
                assert list(row) == sorted(row)
                assert generation.started_s < row[0]
                assert all(own <= every for own, every in zip(row, generation.token_s, strict=True))

    def test_every_generation_starts_from_an_empty_cache(self, loaded: LoadedModel) -> None:
        loaded.prepare(Cell(24, 6, 1))
        first = loaded.generate(6)
        assert loaded.generate(6).tokens == first.tokens
        loaded.prepare(Cell(40, 4, 1))
        loaded.generate(4)
        loaded.prepare(Cell(24, 6, 1))
        assert loaded.generate(6).tokens == first.tokens

    def test_every_candidate_of_the_default_space_produces_the_asked_for_tokens(
        self,
        adapter: EngineAdapter,
        request_: ModelRequest,
        space: SearchSpace,
        profile: WorkloadProfile,
    ) -> None:
        for candidate in space.candidates:
            model = adapter.load(request_, candidate, DeviceType.CPU, profile)
            model.prepare(Cell(24, 6, 1))
            assert [len(row) for row in model.generate(6).tokens] == [6], candidate.label
            observed = model.observe()
            assert not observed.substitutions, candidate.label
            self.check_observed(candidate, observed)
            model.close()

    def check_observed(self, candidate: Candidate, observed: object) -> None:
        """What this engine can tell about what ran."""

    def test_every_candidate_tells_the_same_text_and_proper_probabilities(
        self,
        adapter: EngineAdapter,
        request_: ModelRequest,
        space: SearchSpace,
        profile: WorkloadProfile,
    ) -> None:
        texts = set()
        for candidate in space.candidates:
            model = adapter.load(request_, candidate, DeviceType.CPU, profile)
            model.prepare(Cell(40, 6, candidate.batch_size))
            text, told = told_of(model, 20)
            assert [place for place, _, _ in told] == list(range(20))
            assert [token for _, token, _ in told] == list(text.ids[-20:])
            texts.add(text)
            for _, token, rows in told:
                check_distributions(rows, token)
            model.close()
        assert len(texts) == 1

    def test_of_a_batch_the_first_and_the_last_sequence_are_told(self, loaded: LoadedModel) -> None:
        loaded.prepare(Cell(24, 6, 3))
        _, told = told_of(loaded, 12)
        assert {(rows.logs if isinstance(rows, TopLogs) else rows).shape[0] for _, _, rows in told} == {2}

    def test_proof_and_quality_leave_the_prepared_cell_as_it_was(self, loaded: LoadedModel) -> None:
        loaded.prepare(Cell(24, 6, 1))
        first, held = loaded.generate(6), loaded.kv_cache_bytes()
        loaded.observe()
        with suppress(UnsupportedError):
            list(loaded.forced_log_probabilities(loaded.forced_text(12)))
        assert loaded.generate(6).tokens == first.tokens
        assert loaded.kv_cache_bytes() == held
        used = loaded.last_used()
        assert used is None or used.substitutions == ()

    @pytest.mark.parametrize("stranger", [-1, 2**30])
    def test_a_text_with_ids_that_the_model_does_not_know_is_refused(self, loaded: LoadedModel, stranger: int) -> None:
        loaded.prepare(Cell(24, 6, 1))
        text, _ = told_of(loaded, 12)
        with pytest.raises(UnsupportedError):
            list(loaded.forced_log_probabilities(replace(text, ids=(*text.ids[:-5], stranger, *text.ids[-4:]))))

    def test_the_processes_of_a_model_live_until_it_is_closed(
        self, adapter: EngineAdapter, request_: ModelRequest, space: SearchSpace, profile: WorkloadProfile
    ) -> None:
        model = adapter.load(request_, space.baseline, DeviceType.CPU, profile)
        model.prepare(Cell(24, 4, 1))
        model.generate(4)
        named = tuple(model.processes())
        assert all(map(is_alive, named))
        model.close()
        assert still_alive(pid for pid in named if pid != os.getpid()) == []

    def test_the_cache_holds_more_for_a_longer_cell(self, loaded: LoadedModel) -> None:
        held = []
        for cell in (Cell(24, 4, 1), Cell(24 + self.cache_step, 4, 1)):
            loaded.prepare(cell)
            loaded.generate(4)
            held.append(loaded.kv_cache_bytes())
        assert held[0] is None or held[1] is None or 0 < held[0] < held[1]

    def test_peak_memory_is_a_positive_amount_or_unknown(self, loaded: LoadedModel) -> None:
        loaded.prepare(Cell(24, 4, 1))
        loaded.reset_peak_memory()
        loaded.generate(4)
        peak = loaded.peak_memory_mib()
        assert peak is None or peak > 0
        reserved = loaded.reserved_memory_mib()
        assert reserved is None or peak is None or reserved >= peak
