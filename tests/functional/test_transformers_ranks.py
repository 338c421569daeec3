"""Tensor parallelism for real, over two processes on a CPU: same tokens, all memory counted, every death noticed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers_samples import VOCABULARY, load, make_candidate, save_tiny_model

from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import CrashedError, ModelRequest, UnsupportedError
from kvray.engines.snippet_case import SnippetCase
from kvray.engines.transformers import TransformersAdapter
from kvray.engines.transformers import ranks as ranks_module
from kvray.engines.transformers.arguments import call_arguments
from kvray.engines.transformers.loading import _spread
from kvray.engines.transformers.rank import RankTask
from kvray.engines.transformers.ranks import Ranks
from kvray.engines.transformers.tensor_parallel import TensorParallelModel
from kvray.probes.own_processes import OwnProcesses
from kvray.testing.trial_contract import run_code, still_alive
from kvray.trial.quality import compare, summarize
from kvray.workload import Cell, get_profile

pytestmark = pytest.mark.usefixtures("one_thread")

CELL = Cell(48, 6, 1)
FORCED = 20


def spread(cache: str = "dynamic", **more: Any) -> Candidate:
    return make_candidate(cache, parallelism=2, settings=(("split", "tp"),), **more)


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> ModelRequest:
    return ModelRequest(model_id=str(save_tiny_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def model(request_: ModelRequest) -> Iterator[TensorParallelModel]:
    made = TransformersAdapter().load(request_, spread(), DeviceType.CPU, get_profile("ci-micro"))
    assert isinstance(made, TensorParallelModel)
    yield made
    pids = made.processes()[1:]
    made.close()
    assert still_alive(pids) == []


def test_two_ranks_write_what_one_process_writes(model: TensorParallelModel, request_: ModelRequest) -> None:
    for cell in (CELL, Cell(30, 5, 3)):
        alone = load(request_.model_id, make_candidate(batch_size=cell.batch_size))
        alone.prepare(cell)
        model.prepare(cell)
        told = model.generate(cell.output_tokens)
        assert told.tokens == alone.generate(cell.output_tokens).tokens
        assert len(told.token_s) == cell.output_tokens
        assert all(before < after for before, after in pairwise((told.started_s, *told.token_s)))


def test_each_rank_holds_its_half_of_the_cache_and_threads_are_divided(model: TensorParallelModel) -> None:
    model.prepare(CELL)
    model.generate(CELL.output_tokens)
    seen = model.observe(CELL.output_tokens)
    assert (seen.cache_class, seen.cache_layers, seen.substitutions) == ("DynamicCache", "DynamicLayer×2", ())
    assert seen.kernel_decode is not None
    assert seen.threads == 1
    own = model._own._left.layers[0].keys
    assert own.shape[1] == 1, "of two heads of keys"
    tokens = CELL.context_tokens + CELL.output_tokens - 1
    assert model.kv_cache_bytes() == 2 * 2 * 2 * tokens * 16 * 4, "both halves"


def test_memory_is_that_of_all_ranks(model: TensorParallelModel) -> None:
    named = model.processes()
    assert len(named) == 2
    assert named[0] == os.getpid()
    own = OwnProcesses()
    own.follow(model.processes)
    model.prepare(CELL)
    model.reset_peak_memory()
    own.reset_peak()
    model.generate(CELL.output_tokens)
    assert (model.peak_memory_mib() or 0) > 50
    assert own.others_peak_mib() > 50
    assert model.reserved_memory_mib() is None


def test_quality_is_that_of_one_process_also_after_a_reader_who_stops(
    model: TensorParallelModel, request_: ModelRequest
) -> None:
    alone = load(request_.model_id)
    alone.prepare(CELL)
    model.prepare(CELL)
    text = alone.forced_text(FORCED)
    reference = summarize(alone.forced_log_probabilities(text), text)
    stopped = model.forced_log_probabilities(text)
    next(stopped)
    stopped.close()  # type: ignore[attr-defined]
    loss = compare(reference, model.forced_log_probabilities(text))
    assert loss.kl_mean == pytest.approx(0.0, abs=1e-5)
    assert loss.top1_agreement == 1.0


def test_a_session_is_answered_as_by_one_process(model: TensorParallelModel, request_: ModelRequest) -> None:
    assert model.complete("The capital of", 6) == load(request_.model_id).complete("The capital of", 6)
    assert model.count_tokens("abc") == load(request_.model_id).count_tokens("abc")


def test_what_every_rank_refuses_leaves_them_in_step(model: TensorParallelModel) -> None:
    model.prepare(CELL)
    before = model.generate(4).tokens
    text = model.forced_text(FORCED)
    with pytest.raises(UnsupportedError, match=rf"this model knows {len(VOCABULARY)} tokens"):
        list(model.forced_log_probabilities(replace(text, ids=(*text.ids[:-1], 9999))))
    assert model.generate(4).tokens == before


def test_what_cannot_be_divided_is_refused(request_: ModelRequest) -> None:
    config = AutoConfig.from_pretrained(request_.model_id)
    with pytest.raises(UnsupportedError, match="4 heads and 2 of keys cannot be divided among 4 GPUs"):
        _spread(replace(call_arguments(spread()), gpus=4), config, torch.device("cpu"))


def test_a_process_is_in_one_group_only(model: TensorParallelModel, request_: ModelRequest) -> None:
    assert model.processes()
    with pytest.raises(UnsupportedError, match="already in a group of"):
        TensorParallelModel(request_, spread(), DeviceType.CPU)


def test_a_rank_that_dies_ends_the_call_at_once_with_how_it_died(
    model: TensorParallelModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test of this model. No time limit of ours ends the call: this test would run out of its own before."""
    monkeypatch.setattr(ranks_module, "IN_STEP_S", 3600.0)
    model.prepare(CELL)
    model.generate(4)
    other = model.processes()[1]
    os.kill(other, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(CrashedError, match=r"^rank 1 was killed by SIGKILL"):
            model.generate(4)
    assert still_alive([other]) == []
    model.close()
    assert not torch.distributed.is_initialized()


@pytest.mark.slow  # two interpreters
def test_rank_0_gives_up_where_it_hangs_after_another_has_failed(
    request_: ModelRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it would in NCCL: what fails here is a call before the model is loaded."""
    monkeypatch.setattr(ranks_module, "IN_STEP_S", 0.5)
    task = RankTask(
        rank=1,
        ranks=2,
        store=tmp_path / "store",
        request=request_,
        candidate=spread(),
        device=DeviceType.CPU,
        cells=(),
        threads=1,
    )
    given_up: list[str] = []
    ranks = Ranks([task], leave=given_up.append)
    pids = ranks.pids

    def hang() -> None:
        deadline = time.monotonic() + 240
        while not given_up and time.monotonic() < deadline:
            time.sleep(0.05)

    try:
        with pytest.raises(CrashedError, match="rank 1: RuntimeError: load was not called"):
            ranks.together("prepare", CELL, mine=hang)
        assert still_alive(pids) == []
    finally:
        ranks.close()
    assert given_up == ["rank 1: RuntimeError: load was not called"]


@pytest.mark.slow  # two interpreters; the unit tests show the source, and a sweep runs it as well
def test_the_code_writes_the_same_tokens_in_as_many_processes(request_: ModelRequest, tmp_path: Path) -> None:
    alone = load(request_.model_id)
    alone.prepare(CELL)
    adapter = TransformersAdapter()
    source = adapter.render_snippet(
        request_, loader=None, candidate=spread("static"), device=DeviceType.CPU, cells=(CELL,)
    )
    case = SnippetCase(
        snippet=tmp_path / "code.py", answer=tmp_path / "answer.json", request=request_, cell=CELL, limit_s=120
    )
    answer = run_code(adapter, case, source)
    assert answer.tokens == alone.generate(CELL.output_tokens).tokens
    assert answer.cache_class == "StaticCache"
