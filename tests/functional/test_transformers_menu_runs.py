"""Every value of the menu that a CPU can run, for real: it is what it says, and what stands for it in the records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers_samples import HEAD_DIM, KV_HEADS, LAYERS, load, make_candidate, save_tiny_model

from kvray.candidate import AttentionBackend, DeviceType
from kvray.engines.base import DeviceFacts, UnsupportedError
from kvray.engines.transformers import TransformersAdapter, caches, loaded, xformers_attention
from kvray.engines.transformers.arguments import call_arguments
from kvray.engines.transformers.sliding_window import SinkWindowLayer, SlidingWindowCache
from kvray.workload import Cell

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = Path(__file__).parents[1] / "assets" / "tiny_llama"
CPU = DeviceFacts(device=DeviceType.CPU, device_name="a CPU")
PER_TOKEN = 2 * LAYERS * KV_HEADS * HEAD_DIM
"""Numbers that a token's keys and values are."""

NEEDS_FP8 = pytest.mark.skipif(
    any(entry.value == "quantized(backend=fp8)" and entry.obstacle for entry in TransformersAdapter().menu(CPU)),
    reason="this version of Transformers has no FP8 cache",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("menu"))


@pytest.mark.parametrize(
    ("cache", "cache_class", "layers", "kv_dtype"),
    [
        ("static(max_cache_len=512)", "StaticCache", "StaticLayer×2", "float32"),
        ("sliding_window(window=32,sinks=4)", "SlidingWindowCache", "SinkWindowLayer×2", "float32"),
        pytest.param(
            "quantized(backend=quanto,nbits=4)",
            "QuantizedCache",
            "QuantoQuantizedLayer×2",
            "4-bit quanto",
            marks=pytest.mark.slow,  # it builds native code at its first use
        ),
        ("quantized(backend=hqq,nbits=8)", "QuantizedCache", "HQQQuantizedLayer×2", "8-bit hqq"),
        ("quantized(backend=hqq,nbits=2)", "QuantizedCache", "HQQQuantizedLayer×2", "2-bit hqq"),
        pytest.param(
            "quantized(backend=fp8)", "QuantizedCache", "Fp8QuantizedLayer×2", "float8_e4m3fn", marks=NEEDS_FP8
        ),
        ("paged", "PagedAttentionCache", None, "float32"),
    ],
)
def test_a_cache_of_the_menu_runs_and_is_what_it_says(
    cache: str, cache_class: str, layers: str | None, kv_dtype: str, folder: Path
) -> None:
    model = load(folder, make_candidate(cache))
    model.prepare(Cell(64, 6, 2))
    first = model.generate(6)
    assert [len(row) for row in first.tokens] == [6, 6]
    assert list(first.token_s) == sorted(first.token_s)
    assert first.started_s < first.token_s[0]
    assert len(first.stamp_rows) == (2 if cache == "paged" else 1)
    assert model.generate(6).tokens == first.tokens, "every call starts from an empty cache"
    seen = model.observe()
    held = model.kv_cache_bytes()
    model.close()
    assert seen.substitutions == ()
    assert (seen.cache_class, seen.cache_layers, seen.kv_dtype) == (cache_class, layers, kv_dtype)
    assert (seen.kernel_prefill, seen.kernel_decode) == ("sdpa_flash", "sdpa_flash")
    assert held is not None
    assert held > 0


def held_mib(cache: str, folder: Path, cell: Cell) -> float:
    model = load(folder, make_candidate(cache))
    model.prepare(cell)
    model.generate(cell.output_tokens)
    held = model.kv_cache_bytes()
    model.close()
    assert held is not None
    return held / 2**20


@pytest.mark.slow  # Quanto compiles its kernels where it has not yet
def test_the_cache_that_is_held_follows_the_formula(folder: Path) -> None:
    cell, rows = Cell(300, 5, 2), 2
    full = PER_TOKEN * 4 * rows / 2**20
    assert held_mib("dynamic", folder, cell) == pytest.approx(full * 304)
    assert held_mib("static", folder, cell) == pytest.approx(full * 305)
    assert held_mib("static(max_cache_len=700)", folder, cell) == pytest.approx(full * 700)
    assert held_mib("sliding_window(window=64,sinks=4)", folder, cell) == pytest.approx(full * 64)
    # Bits of 32 for the quantised prompt, a scale and a shift of 32 bits for each group of 64, the answer as it was.
    for bits, backend in ((4, "quanto"), (2, "quanto"), (8, "hqq"), (4, "hqq"), (2, "hqq")):
        expected = full * (300 * (bits / 32 + 2 / 64) + 4)
        assert held_mib(f"quantized(backend={backend},nbits={bits})", folder, cell) == pytest.approx(expected, rel=0.02)


@NEEDS_FP8
def test_a_byte_holds_a_number_of_an_fp8_cache(folder: Path) -> None:
    assert held_mib("quantized(backend=fp8)", folder, Cell(300, 5, 2)) == pytest.approx(PER_TOKEN * 2 * 304 / 2**20)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_pages_answer_as_a_growing_cache_does(attention: str, folder: Path) -> None:
    answers = []
    for cache in ("dynamic", "paged"):
        model = load(folder, make_candidate(cache, attention))
        model.prepare(Cell(64, 6, 2))
        answers.append(model.generate(6).tokens)
        model.close()
    assert answers[0] == answers[1]


def test_pages_keep_no_prompt_from_one_call_to_the_next(folder: Path) -> None:
    """Else a repeated prompt would have no prefill, and a time to first token that is none."""
    model = load(folder, make_candidate("paged"))
    model.prepare(Cell(600, 2, 1))
    model.generate(2)
    fed: list[int] = []
    hook = model._model.model.embed_tokens.register_forward_hook(lambda _, args, out: fed.append(int(args[0].numel())))
    model.generate(1)
    hook.remove()
    model.close()
    assert sum(fed) >= 600


def test_a_prompt_in_pieces_is_worked_on_in_pieces_and_answers_the_same(folder: Path) -> None:
    whole, pieces = (answer_and_fed(folder, chunk) for chunk in (None, 16))
    assert whole[0] == pieces[0]
    assert (max(whole[1]), max(pieces[1])) == (50, 16)


def answer_and_fed(folder: Path, chunk: int | None) -> tuple[object, list[int]]:
    """Tokens, and how many the model was fed at each step."""
    model = load(folder, make_candidate(prefill_chunk=chunk))
    model.prepare(Cell(50, 6, 1))
    fed: list[int] = []
    model._model.model.embed_tokens.register_forward_hook(lambda _, args, out: fed.append(int(args[0].shape[1])))
    answer = model.generate(6).tokens
    model.close()
    return answer, fed


@pytest.mark.slow  # it compiles
def test_flex_attention_runs_and_is_told_from_other_attention(folder: Path) -> None:
    model = load(folder, make_candidate("dynamic", "flex_attention"))
    model.prepare(Cell(40, 4, 1))
    tokens = model.generate(4).tokens
    seen = model.observe()
    model.close()
    plain = load(folder)
    plain.prepare(Cell(40, 4, 1))
    assert tokens == plain.generate(4).tokens
    assert seen.substitutions == ()
    assert seen.kernel_decode == "compiled"


# The sliding window


def window_model(attention: str) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY), attn_implementation=attention).eval()
    # Larger weights, so that what is attended to shows in the logits.
    model.requires_grad_(False).load_state_dict({name: 3 * weight for name, weight in model.state_dict().items()})
    return model, torch.randint(0, 256, (2, 60))


def masked_logits(model: Any, ids: torch.Tensor, prompt: int, window: int, sinks: int) -> list[Any]:
    """By a full cache and a mask that shows sinks and window: what a cache that drops tokens must equal."""
    cache = DynamicCache(config=model.config)
    logits = [model(ids[:, :prompt], past_key_values=cache).logits[:, -1]]
    for position in range(prompt, ids.shape[1]):
        visible = torch.zeros(position + 1, dtype=torch.bool)
        visible[:sinks] = True
        visible[max(0, position - (window - sinks)) :] = True
        mask = torch.where(visible, 0.0, float("-inf"))[None, None, None].expand(ids.shape[0], 1, 1, -1)
        token = ids[:, position : position + 1]
        logits.append(model(token, past_key_values=cache, attention_mask=mask).logits[:, -1])
    return logits


def window_logits(model: Any, ids: torch.Tensor, prompt: int, cache: Any) -> list[Any]:
    logits = [model(ids[:, :prompt], past_key_values=cache).logits[:, -1]]
    for position in range(prompt, ids.shape[1]):
        seen = torch.ones(ids.shape[0], position + 1, dtype=torch.long)
        token = ids[:, position : position + 1]
        logits.append(model(token, past_key_values=cache, attention_mask=seen).logits[:, -1])
    return logits


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("prompt", [8, 40])
def test_a_window_sees_what_a_mask_of_sinks_and_window_shows(attention: str, prompt: int) -> None:
    model, ids = window_model(attention)
    cache = SlidingWindowCache(config=model.config, window=16, sinks=4)
    ours = window_logits(model, ids, prompt, cache)
    masked = masked_logits(model, ids, prompt, window=16, sinks=4)
    for step, (one, other) in enumerate(zip(ours, masked, strict=True)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=f"at step {step}")
    assert [tuple(layer.keys.shape[-2:]) for layer in cache.layers] == [(16, 16)] * 2, "the rest is dropped for real"
    assert cache.get_seq_length() == 60, "positions go on"


class ShiftedLayer(SinkWindowLayer):
    def get_seq_length(self) -> int:
        return max(0, super().get_seq_length() - 1)


class SinklessLayer(SinkWindowLayer):
    def _held(self, states: torch.Tensor) -> torch.Tensor:
        return states[..., -self.window :, :]


@pytest.mark.parametrize("broken", [ShiftedLayer, SinklessLayer])
def test_a_window_with_a_bug_is_seen_to_have_one(broken: type[SinkWindowLayer]) -> None:
    """The comparison above can fail."""
    model, ids = window_model("sdpa")
    cache = SlidingWindowCache(config=model.config, window=16, sinks=4)
    cache.layers = [broken(16, 4) for _ in cache.layers]
    ours = window_logits(model, ids, 40, cache)
    masked = masked_logits(model, ids, 40, window=16, sinks=4)
    assert max(float((one - other).abs().max()) for one, other in zip(ours, masked, strict=True)) > 0.1


def test_a_window_refuses_what_it_cannot_undo() -> None:
    layer = SinkWindowLayer(8, 2)
    with pytest.raises(NotImplementedError, match="cannot be rolled back"):
        layer.crop(-1)
    with pytest.raises(ValueError, match="sinks must be from 0 to less than the window"):
        SinkWindowLayer(4, 4)


# xFormers, with its operator's contract in place of its CUDA kernel


def stand_in_operator(query: Any, key: Any, value: Any, *, attn_bias: Any, scale: float | None) -> Any:
    """Attention over (batch, tokens, heads, head size) with an additive bias, as xFormers documents it."""
    if attn_bias == "lower triangle":
        attn_bias = torch.full((query.shape[1], key.shape[1]), float("-inf")).triu(1)
    states = (one.transpose(1, 2) for one in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(*states, attn_mask=attn_bias, scale=scale).transpose(1, 2)


def test_xformers_is_given_what_its_operator_takes(folder: Path) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(
        "xformers", xformers_attention.make_attention(stand_in_operator, lambda: "lower triangle")
    )
    AttentionMaskInterface.register("xformers", sdpa_mask)
    ids = torch.randint(2, 256, (2, 30), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0  # padding on the left
    answers = []
    for attention in ("sdpa", "xformers"):
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention)
        model.generation_config.eos_token_id = None
        for cache in (None, "static"):
            answers.append(
                model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, cache_implementation=cache)
            )
        answers.append(model.generate(ids, max_new_tokens=6, do_sample=False))
    for ours, theirs in zip(answers[3:], answers[:3], strict=True):
        assert ours.tolist() == theirs.tolist()


# Traps


@pytest.mark.parametrize(
    ("cache", "planted", "complaint"),
    [
        ("sliding_window(window=32,sinks=4)", "static", "asked for SlidingWindowCache, StaticCache was used"),
        ("quantized(backend=hqq,nbits=8)", "dynamic", "asked for QuantizedCache, DynamicCache was used"),
        ("static(max_cache_len=512)", "static", "layer 0 of StaticCache holds 25600 bytes where 131072 were expected"),
    ],
)
def test_a_cache_of_another_kind_or_size_is_a_substitution(
    cache: str, planted: str, complaint: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = caches.make_cache
    other = call_arguments(make_candidate(planted))
    if planted == "static":
        monkeypatch.setattr(DynamicCache, "reset", lambda self: None, raising=False)
    monkeypatch.setattr(loaded, "make_cache", lambda arguments, config, cell: honest(other, config, cell))
    model = load(folder, make_candidate(cache))
    model.prepare(Cell(96, 4, 1))
    found = model.observe().substitutions
    model.close()
    assert complaint in found


def test_an_attention_that_the_library_took_for_another_is_a_substitution(folder: Path) -> None:
    """`paged|sdpa` at load is plain `sdpa` without a word."""
    model = load(folder, make_candidate())
    model._arguments = call_arguments(make_candidate())
    model._model.config._attn_implementation = "paged|sdpa"
    model.prepare(Cell(24, 4, 1))
    assert "the model has 'paged|sdpa'" in "; ".join(model.observe().substitutions)


def test_weights_of_another_dtype_are_a_substitution(folder: Path) -> None:
    model = load(folder, make_candidate(dtype="bfloat16"))
    model._model.float()
    model.prepare(Cell(24, 4, 1))
    assert "asked for bfloat16, the weights are float32" in model.observe().substitutions


def test_what_needs_a_package_that_is_not_here_is_unsupported_in_the_librarys_words(folder: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"flash.attn|FlashAttention2|flash_attn"):
        load(folder, make_candidate("dynamic", AttentionBackend.FLASH_ATTENTION_2.value))


def test_settings_that_a_cache_does_not_take_are_refused_where_no_rule_was_asked(folder: Path) -> None:
    """A plan of another origin comes straight to the engine."""
    with pytest.raises(UnsupportedError, match="static does not take window"):
        load(folder, make_candidate("static(window=3)"))


def test_an_offloaded_cache_without_cuda_is_unsupported_in_the_librarys_words(folder: Path) -> None:
    model = load(folder, make_candidate("offloaded"))
    model.prepare(Cell(24, 4, 1))
    with pytest.raises(UnsupportedError, match="CUDA"):
        model.generate(4)
