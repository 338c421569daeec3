"""Quality of real models: exact paths lose nothing, planted bugs show, and a sweep records and enforces it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, JambaConfig, JambaForCausalLM
from transformers_samples import VOCABULARY, load, make_candidate, save_tiny_model

from kvray.candidate import Candidate, DeviceType
from kvray.config import SearchStrategy, TuneConfig
from kvray.engines.base import ForcedText, ForcedToken, TopLogs, UnsupportedError
from kvray.engines.transformers import loaded
from kvray.engines.transformers.forced import ONE_BY_ONE_TOKENS
from kvray.record import TrialStatus
from kvray.trial.quality import QualityLoss, Reference, compare, summarize
from kvray.tuning.search import TuningSearch
from kvray.workload import MAX_QUALITY_LOSS, Cell, create_custom_profile

CELL = Cell(96, 16, 1)
FORCED = 56
EXACT = 1e-5
EXACT_CACHES = ("dynamic", "static")
SINK_TOKENS = 4
MakeCache = Callable[..., Any]


class ShiftedCache(DynamicCache):
    """Keys lie one place beside their values."""

    def update(self, *arguments: Any, **options: Any) -> Any:
        keys, values = super().update(*arguments, **options)
        return keys.roll(1, dims=-2), values


class SinklessCache(DynamicCache):
    """The first tokens are gone once the prompt is read."""

    def update(self, keys: Any, values: Any, layer: int, *arguments: Any, **options: Any) -> Any:
        is_first = self.get_seq_length(layer) == 0
        seen = super().update(keys, values, layer, *arguments, **options)
        if is_first:
            kept = self.layers[layer]
            kept.keys, kept.values = kept.keys[..., SINK_TOKENS:, :], kept.values[..., SINK_TOKENS:, :]
        return seen


def late_positions(model: Any) -> None:
    """Have everything after the prompt rotated as if it came one position later."""
    honest = model.prepare_inputs_for_generation

    @functools.wraps(honest)
    def shifting(ids: torch.Tensor, **options: Any) -> Any:
        inputs = honest(ids, **options)
        if inputs["input_ids"].shape[1] < ids.shape[1]:
            inputs["position_ids"] = inputs["position_ids"] + 1
        return inputs

    model.prepare_inputs_for_generation = shifting


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def reference(tiny_folder: Path) -> Reference:
    return summarize(forced(tiny_folder, make_candidate()))


def forced(model_id: Path | str, candidate: Candidate, *, cell: Cell = CELL, tokens: int = FORCED) -> list[ForcedToken]:
    model = load(model_id, candidate)
    model.prepare(cell._replace(batch_size=candidate.batch_size))
    try:
        return list(model.forced_log_probabilities(model.forced_text(tokens)))
    finally:
        model.close()


def first_row(told: NDArray[np.float32] | TopLogs) -> NDArray[np.float32]:
    assert isinstance(told, np.ndarray)
    row: NDArray[np.float32] = told[0]
    return row


def plant(monkeypatch: pytest.MonkeyPatch, cache: type[DynamicCache]) -> None:
    monkeypatch.setattr(loaded, "make_cache", lambda arguments, config, cell: cache(config=config))


@pytest.mark.parametrize(
    "candidate",
    [
        make_candidate(),
        make_candidate("static"),
        make_candidate(attention="eager"),
        make_candidate("static", "sdpa_math"),
        make_candidate("static", batch_size=3),
        make_candidate(batch_size=100),
    ],
    ids=lambda candidate: candidate.label,
)
def test_exact_paths_lose_nothing(candidate: Candidate, tiny_folder: Path, reference: Reference) -> None:
    loss = compare(reference, forced(tiny_folder, candidate))
    assert loss.kl_mean < EXACT
    assert abs(loss.nll_delta) < EXACT
    assert loss.top1_agreement == 1.0


def test_what_is_recorded_is_what_a_plain_forward_pass_says(tiny_folder: Path) -> None:
    model = load(tiny_folder)
    model.prepare(CELL)
    text = model._texts.forced(CELL, FORCED)
    with torch.no_grad():
        logs = torch.log_softmax(model._model(torch.tensor([text])).logits[0].float(), dim=-1).numpy()
    told = list(model.forced_log_probabilities(model.forced_text(FORCED)))
    assert [token for _, token, _ in told] == text[-FORCED:]
    assert np.allclose(np.stack([first_row(rows) for _, _, rows in told]), logs[-FORCED - 1 : -1], atol=1e-4)


def test_ids_that_the_model_does_not_know_are_refused_before_they_reach_the_device(tiny_folder: Path) -> None:
    model = load(tiny_folder)
    model.prepare(CELL)
    foreign = ForcedText(ids=(len(VOCABULARY),) * (CELL.context_tokens + CELL.output_tokens), forced=FORCED)
    with pytest.raises(
        UnsupportedError, match=f"the token {len(VOCABULARY)}, this model knows {len(VOCABULARY)} token"
    ):
        list(model.forced_log_probabilities(foreign))


def test_what_the_checkpoint_does_to_the_choice_of_a_token_is_left_out(tmp_path: Path, reference: Reference) -> None:
    folder = save_tiny_model(tmp_path, repetition_penalty=5.0, suppress_tokens=[5, 6, 7])
    assert compare(reference, forced(folder, make_candidate())).kl_mean < EXACT


def test_measuring_quality_leaves_the_next_generation_as_it_was(tiny_folder: Path) -> None:
    for cache in ("dynamic", "static"):
        model = load(tiny_folder, make_candidate(cache))
        model.prepare(CELL)
        before = model.generate(8).tokens
        list(model.forced_log_probabilities(model.forced_text(FORCED)))
        assert model.generate(8).tokens == before


@pytest.mark.parametrize("cache", [ShiftedCache, SinklessCache])
def test_a_cache_that_is_wrong_shows_by_orders_of_magnitude(
    cache: type[DynamicCache], tiny_folder: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, cache)
    assert compare(reference, forced(tiny_folder, make_candidate())).kl_mean > 1000 * EXACT


def test_a_static_cache_that_writes_one_place_too_late_shows(
    tiny_folder: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.cache_utils import StaticLayer

    honest = StaticLayer.update

    def late(self: Any, *arguments: Any, **options: Any) -> Any:
        keys, values = honest(self, *arguments, **options)
        return keys.roll(1, dims=-2), values.roll(1, dims=-2)

    monkeypatch.setattr(StaticLayer, "update", late)
    assert compare(reference, forced(tiny_folder, make_candidate("static"))).kl_mean > 1000 * EXACT


def test_positions_one_too_far_show(tiny_folder: Path, reference: Reference) -> None:
    model = load(tiny_folder)
    late_positions(model._model)
    model.prepare(CELL)
    assert compare(reference, model.forced_log_probabilities(model.forced_text(FORCED))).kl_mean > 100 * EXACT


@pytest.fixture(scope="module")
def demo_reference(demo_model: Path) -> Reference:
    return summarize(forced(str(demo_model), make_candidate(), cell=Cell(240, 16, 1), tokens=128))


def demo_loss(reference: Reference, demo_model: Path, candidate: Candidate) -> QualityLoss:
    return compare(reference, forced(str(demo_model), candidate, cell=Cell(240, 16, 1), tokens=128))


@pytest.mark.parametrize("cache", [ShiftedCache, SinklessCache])
def test_on_real_weights_a_wrong_cache_is_over_the_default_limit(
    cache: type[DynamicCache], demo_model: Path, demo_reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, cache)
    assert demo_loss(demo_reference, demo_model, make_candidate()).kl_mean > 2 * MAX_QUALITY_LOSS


def test_on_real_weights_a_narrower_dtype_is_far_below_the_default_limit(
    demo_model: Path, demo_reference: Reference
) -> None:
    loss = demo_loss(demo_reference, demo_model, make_candidate("static", dtype="bfloat16"))
    assert EXACT < loss.kl_mean < MAX_QUALITY_LOSS / 5
    assert loss.top1_agreement > 0.9


def test_a_sweep_records_quality_and_ends_what_loses_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "cache"))
    profile = create_custom_profile(
        "quality", context_lengths=(64,), output_lengths=(4,), weight_ttft=0.4, weight_throughput=0.4, weight_memory=0.2
    )
    config = TuneConfig(
        model_id="fake:static/sdpa/f=lossy",
        profile=profile,
        device=DeviceType.CPU,
        engine="fake",
        output_dir=tmp_path / "results",
        timeout_s=240.0,
        search=SearchStrategy.GRID,
        confirm_rounds=0,
    )
    records = {one.record.candidate.label: one.record for one in TuningSearch(config=config).run().results}
    lossy = records["static/sdpa/float32"]
    assert lossy.status is TrialStatus.QUALITY
    assert str(lossy.message).startswith(f"KL {lossy.kl_mean:.2g} nats per token is over the limit of ")
    fine = records["dynamic/sdpa/float32"]
    assert (fine.status, fine.kl_mean, fine.top1_agreement) == (TrialStatus.OK, 0.0, 1.0)
    assert fine.quality_s is not None
    assert len(list((tmp_path / "cache" / "reference").glob("*.npz"))) == 1


def test_a_text_too_short_for_a_window_is_not_taken_for_no_loss(tiny_folder: Path) -> None:
    window = make_candidate("sliding_window(window=80,sinks=4)")
    with pytest.raises(UnsupportedError, match="too short to show what a window of 80 drops"):
        forced(tiny_folder, window)
    assert forced(tiny_folder, window, cell=Cell(300, 16, 1))


@pytest.fixture(scope="module")
def jamba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Attention and Mamba layers by turns. Transformers loses the Mamba state at the border of a prefill chunk."""
    folder = save_tiny_model(tmp_path_factory.mktemp("jamba"))
    config = JambaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=2,
        num_experts_per_tok=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
    )
    torch.manual_seed(7)
    JambaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_prompt_read_in_pieces_that_gives_other_tokens_shows(jamba: Path) -> None:
    reference = summarize(forced(jamba, make_candidate()))
    assert len(reference.tokens) == ONE_BY_ONE_TOKENS
    assert compare(reference, forced(jamba, make_candidate("static"))).kl_mean < EXACT
    for piece in (8, CELL.context_tokens - 2):
        assert compare(reference, forced(jamba, make_candidate(prefill_chunk=piece))).kl_mean > 1000 * EXACT
    whole = make_candidate(prefill_chunk=CELL.context_tokens)
    assert compare(reference, forced(jamba, whole)).kl_mean < EXACT, "no prompt of that length is split"


def test_the_reference_of_a_model_with_a_state_is_what_a_plain_forward_pass_says(jamba: Path) -> None:
    model = load(jamba)
    model.prepare(CELL)
    text = model._texts.forced(CELL, FORCED)
    with torch.no_grad():
        logs = torch.log_softmax(model._model(torch.tensor([text])).logits[0].float(), dim=-1).numpy()
    told = list(model.forced_log_probabilities(model.forced_text(FORCED)))
    assert [place for place, _, _ in told] == list(range(FORCED - ONE_BY_ONE_TOKENS, FORCED))
    assert np.allclose(np.stack([first_row(rows) for _, _, rows in told]), logs[-len(told) - 1 : -1], atol=1e-4)


@pytest.mark.parametrize(("piece", "tokens"), [(7, 51), (16, 48), (64, 16), (95, 16)])
def test_a_prompt_read_in_pieces_that_gives_the_same_tokens_loses_nothing(
    piece: int, tokens: int, tiny_folder: Path, reference: Reference
) -> None:
    told = forced(tiny_folder, make_candidate(prefill_chunk=piece))
    assert len(told) == tokens, "the last piece is as long as that of a prompt of 96 tokens"
    assert compare(reference, told).kl_mean < EXACT


def test_quality_of_a_model_that_starts_anew_in_a_cache_of_its_own_is_measured() -> None:
    """Beyond 256 tokens it computes everything anew: in the middle of this text."""
    longrope = f"random:{Path(__file__).parent.parent / 'assets' / 'configs' / 'phi3_longrope'}"
    told = forced(longrope, make_candidate(), cell=Cell(300, 16, 1), tokens=158)
    assert [place for place, _, _ in told] == list(range(158))
    assert (
        compare(summarize(told), forced(longrope, make_candidate("static"), cell=Cell(300, 16, 1), tokens=158)).kl_mean
        < EXACT
    )
