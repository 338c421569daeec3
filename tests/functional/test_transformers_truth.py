"""What is measured is what a plain `generate` does, and a configuration that did not run is never taken for one."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import whole_trials
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache
from transformers_samples import BOS, EOS, HEAD_DIM, KV_HEADS, LAYERS, load, make_candidate, save_tiny_model

from kvray.candidate import Candidate
from kvray.engines.hugging_face.gguf import converted_gguf
from kvray.engines.prompts import prompt_text
from kvray.engines.transformers import loaded
from kvray.engines.transformers.loaded import TransformersModel
from kvray.record import TrialStatus
from kvray.trial.events import TrialEnded
from kvray.workload import Cell

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def demo_folder(demo_model: Path, cache_folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("KVRAY_CACHE", str(cache_folder))
        return converted_gguf(demo_model)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny(tiny_folder: Path) -> Iterator[TransformersModel]:
    model = load(tiny_folder)
    yield model
    model.close()


# Equality with a plain generate


@pytest.mark.parametrize(
    ("cache", "attention", "dtype"),
    [
        ("dynamic", "sdpa", "float32"),
        ("static", "sdpa", "float32"),
        pytest.param("static", "sdpa_math", "bfloat16", marks=pytest.mark.slow),
        pytest.param("dynamic", "eager", "bfloat16", marks=pytest.mark.slow),
        pytest.param("dynamic", "sdpa_flash", "float32", marks=pytest.mark.slow),
    ],
)
def test_the_tokens_are_those_of_a_plain_generate(cache: str, attention: str, dtype: str, demo_folder: Path) -> None:
    tokens = 12
    model = load(demo_folder, make_candidate(cache, attention, dtype))
    model.prepare(Cell(80, tokens, 2))
    prompt = model._prompt_tensor.clone()
    measured = model.generate(tokens).tokens
    seen = model.observe()
    model.close()

    plain = AutoModelForCausalLM.from_pretrained(
        demo_folder, dtype=getattr(torch, dtype), attn_implementation=attention.split("_")[0]
    )
    plain.generation_config.eos_token_id = None
    kernels = {"sdpa_math": SDPBackend.MATH, "sdpa_flash": SDPBackend.FLASH_ATTENTION}
    forced = sdpa_kernel([kernels[attention]]) if attention in kernels else contextlib.nullcontext()
    with forced:
        expected = plain.generate(
            prompt, max_new_tokens=tokens, do_sample=False, cache_implementation="static" if cache == "static" else None
        )

    assert [list(row) for row in measured] == expected[:, prompt.shape[1] :].tolist()
    assert len({tuple(row) for row in measured}) == 2
    assert seen.substitutions == ()
    assert seen.cache_class == {"dynamic": "DynamicCache", "static": "StaticCache"}[cache]
    assert seen.kv_dtype == dtype
    ran = "sdpa_flash" if attention == "sdpa" else attention
    assert (seen.kernel_prefill, seen.kernel_decode) == (ran, ran)


# Planted lies


def ended(model_id: Path | str, candidate: Candidate) -> TrialEnded:
    return whole_trials.ended(whole_trials.spec_of(model_id, candidate, whole_trials.profile_of(24)))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_kernel_that_was_not_forced_is_a_substitution(
    cache: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded, "forced_kernel", lambda kernel: contextlib.nullcontext())
    event = ended(tiny_folder, make_candidate(cache, "sdpa_math"))
    assert event.status is TrialStatus.SUBSTITUTED
    assert event.message == ("asked for sdpa_math, prefill ran sdpa_flash; asked for sdpa_math, decode ran sdpa_flash")
    assert event.facts is not None
    assert event.facts.observed.kernel_decode == "sdpa_flash"


@pytest.mark.parametrize(("asked", "ran"), [("eager", "sdpa"), ("sdpa", "eager")])
def test_another_attention_than_the_one_loaded_is_a_substitution(asked: str, ran: str, tiny_folder: Path) -> None:
    model = load(tiny_folder, make_candidate(attention=asked))
    model._model.config._attn_implementation = ran
    model.prepare(Cell(24, 4, 1))
    found = "; ".join(model.observe().substitutions)
    kernel = {"eager": "eager attention", "sdpa": "sdpa_flash"}[ran]
    for phase in ("prefill", "decode"):
        assert f"{phase} ran {kernel}" in found
    assert f"asked for attn_implementation={asked!r}, the model has {ran!r}" in found


def test_an_attention_that_the_library_swapped_while_loading_ends_the_trial(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = AutoModelForCausalLM.from_pretrained

    def swapping(*arguments: Any, **options: Any) -> Any:
        return honest(*arguments, **{**options, "attn_implementation": "sdpa"})

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", swapping)
    event = ended(tiny_folder, make_candidate(attention="eager"))
    assert event.status is TrialStatus.SUBSTITUTED
    assert "asked for eager, prefill ran sdpa_flash" in str(event.message)


def test_another_cache_class_is_a_substitution(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded, "make_cache", lambda arguments, config, cell: DynamicCache(config=config))
    monkeypatch.setattr(DynamicCache, "reset", lambda self: None)
    model = load(tiny_folder, make_candidate("static"))
    model.prepare(Cell(24, 4, 1))
    assert "asked for StaticCache, DynamicCache was used" in model.observe().substitutions

    monkeypatch.setattr(
        loaded, "make_cache", lambda arguments, config, cell: StaticCache(config=config, max_cache_len=64)
    )
    event = ended(tiny_folder, make_candidate("dynamic"))
    assert (event.status, event.message) == (
        TrialStatus.SUBSTITUTED,
        "asked for DynamicCache, StaticCache was used",
    )


def test_a_cache_that_generation_ignored_is_a_substitution(tiny: TransformersModel) -> None:
    tiny._model.generation_config.use_cache = False
    tiny.prepare(Cell(24, 2, 1))
    # The library fed the prompt again for the second token, into a cache that it never read.
    expected = "asked for DynamicCache, it took 49 tokens where 25 were fed: it was not used as a cache"
    assert expected in tiny.observe().substitutions


def test_a_compilation_that_did_not_happen_is_a_substitution(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if an earlier model of this process had been compiled: its graphs are not this one's.
    counters["stats"]["unique_graphs"] = 3
    honest = TransformersModel._generation_config

    def disabling(self: TransformersModel, output_tokens: int) -> Any:
        config = honest(self, output_tokens)
        config.disable_compile = True
        return config

    monkeypatch.setattr(TransformersModel, "_generation_config", disabling)
    event = ended(tiny_folder, make_candidate("static", compile="default"))
    assert (event.status, event.message) == (
        TrialStatus.SUBSTITUTED,
        "asked for torch.compile, nothing was compiled",
    )


FAIL_WHILE_OBSERVED = """
import sys
from transformers_samples import load
from kvray.workload import Cell
model = load(sys.argv[1])
model.prepare(Cell(24, 2, 1))
model._model.lm_head.register_forward_hook(lambda *_: sys.exit("failed as planned"))
model.observe()
"""


@pytest.mark.slow  # an interpreter of its own
def test_a_failure_while_the_profiler_runs_does_not_crash_the_process(tiny_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAIL_WHILE_OBSERVED, str(tiny_folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert done.returncode == 1, "a negative one is a signal"
    assert "failed as planned" in done.stderr


def test_what_the_library_refuses_is_unsupported_in_its_own_words(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded, "forced_kernel", lambda kernel: sdpa_kernel([SDPBackend.CUDNN_ATTENTION]))
    event = ended(tiny_folder, make_candidate(attention="sdpa_cudnn"))
    assert event.status is TrialStatus.UNSUPPORTED
    assert "No viable backend for scaled_dot_product_attention" in str(event.message)


# Prompts and lengths


@pytest.mark.parametrize("length", [1, 2, 24, 700])
def test_prompts_have_exactly_the_asked_for_tokens(length: int, tiny: TransformersModel) -> None:
    tiny.prepare(Cell(length, 2, 3))
    assert tuple(tiny._prompt_tensor.shape) == (3, length)
    assert length == 1 or len({tuple(row) for row in tiny._prompt_tensor.tolist()}) == 3


def test_a_prompt_may_be_longer_than_the_text(demo_folder: Path) -> None:
    model = load(demo_folder)
    words = model.count_tokens(prompt_text())
    model.prepare(Cell(words + 100, 2, 1))
    (row,) = model._prompt_tensor.tolist()
    assert len(row) == words + 100
    assert row[words:] == row[:100]
    assert model._text_tokenizer.decode(row[:words]) == prompt_text()
    assert BOS not in row[:1], "SmolLM2's tokenizer adds no BOS"


def test_bos_comes_first_where_the_tokenizer_adds_it_and_only_there(tmp_path: Path, tiny: TransformersModel) -> None:
    with_bos = load(save_tiny_model(tmp_path / "bos", adds_bos=True))
    for model, expected in ((with_bos, BOS), (tiny, None)):
        model.prepare(Cell(24, 2, 2))
        for row in model._prompt_tensor.tolist():
            assert (row[0] == BOS) is (expected == BOS)
            assert BOS not in row[1:]
    with_bos.prepare(Cell(1, 2, 1))
    assert with_bos._prompt_tensor.tolist() == [[BOS]]
    assert with_bos.count_tokens("abc") == tiny.count_tokens("abc") + 1


def test_eos_ends_no_measurement_early(tmp_path: Path, tiny: TransformersModel) -> None:
    tiny.prepare(Cell(24, 12, 1))
    (expected,) = tiny.generate(12).tokens
    model = load(save_tiny_model(tmp_path / "eos", eos_token_id=[EOS, expected[3]]))
    model.prepare(Cell(24, 12, 1))
    generation = model.generate(12)
    assert generation.tokens == (expected,)
    assert len(generation.token_s) == 12


# Memory


def kv_bytes(tokens: int, *, rows: int, size: int, layers: int, heads: int, head_dim: int) -> int:
    return 2 * layers * heads * head_dim * size * tokens * rows


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
@pytest.mark.parametrize(("context", "output", "rows"), [(24, 6, 1), (100, 3, 2)])
def test_the_cache_holds_what_the_formula_says(
    context: int, output: int, rows: int, dtype: str, size: int, tiny_folder: Path
) -> None:
    # The last token is never fed back, so a growing cache ends one short; a static one was allocated for all.
    for cache, held in (("dynamic", context + output - 1), ("static", context + output)):
        model = load(tiny_folder, make_candidate(cache, dtype=dtype))
        model.prepare(Cell(context, output, rows))
        model.generate(output)
        expected = kv_bytes(held, rows=rows, size=size, layers=LAYERS, heads=KV_HEADS, head_dim=HEAD_DIM)
        assert model.kv_cache_bytes() == expected
        model.observe()
        model.generate(output)
        assert model.kv_cache_bytes() == expected


def test_the_demo_models_cache_holds_what_its_config_says(demo_folder: Path) -> None:
    model = load(demo_folder, make_candidate("dynamic", dtype="bfloat16"))
    config = model._text_config
    model.prepare(Cell(64, 3, 1))
    model.generate(3)
    assert model.kv_cache_bytes() == kv_bytes(
        66,
        rows=1,
        size=2,
        layers=config.num_hidden_layers,
        heads=config.num_key_value_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
    )


def test_a_peak_counts_in_its_own_window_only(tiny: TransformersModel) -> None:
    tiny.prepare(Cell(24, 2, 1))
    tiny.reset_peak_memory()
    # From the system itself: a tensor might be made of memory that the process has kept from an earlier one.
    with mmap.mmap(-1, 256 * 2**20) as held:
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        high = tiny.peak_memory_mib()
    tiny.reset_peak_memory()
    tiny.generate(2)
    low = tiny.peak_memory_mib()
    assert high is not None
    assert low is not None
    assert 200 < high - low < 400


# The checkpoint's generation config


def plain_tokens(folder: Path, prompt: torch.Tensor, tokens: int, **options: Any) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.eos_token_id = None
    found: list[list[int]] = model.generate(prompt, max_new_tokens=tokens, do_sample=False, **options).tolist()
    return [row[prompt.shape[1] :] for row in found]


def test_what_shapes_the_choice_of_a_token_is_honoured(tmp_path: Path, tiny: TransformersModel) -> None:
    tiny.prepare(Cell(300, 12, 1))
    free = tiny.generate(12).tokens
    first, second = free[0][:2]
    for settings in (
        {"repetition_penalty": 3.0},
        {"encoder_repetition_penalty": 0.2},
        {"no_repeat_ngram_size": 1},
        {"encoder_no_repeat_ngram_size": 1},
        {"suppress_tokens": [first]},
        {"begin_suppress_tokens": [first]},
        {"bad_words_ids": [[first, second]]},
        {"sequence_bias": [[[first, second], -9.0]], "renormalize_logits": True},
    ):
        folder = save_tiny_model(tmp_path / next(iter(settings)), **settings)
        model = load(folder)
        model.prepare(Cell(300, 12, 1))
        tokens = model.generate(12).tokens
        assert tokens != free
        assert [list(row) for row in tokens] == plain_tokens(folder, model._prompt_tensor, 12)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 9.0, "top_p": 0.5, "top_k": 3, "min_p": 0.1},
        {"num_beams": 3, "num_beam_groups": 3, "diversity_penalty": 0.5},
        {"do_sample": True, "num_return_sequences": 3},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"dola_layers": "low"},
        {"prompt_lookup_num_tokens": 4},
        {"assistant_early_exit": 1, "num_assistant_tokens": 3},
        {"force_words_ids": [[3, 4]], "num_beams": 2},
        {"guidance_scale": 1.5},
        {"watermarking_config": {"bias": 9.0}},
        {"token_healing": True, "use_mtp": True},
        {"exponential_decay_length_penalty": [1, 1.5]},
        {"forced_bos_token_id": 7},
        {"output_scores": True, "output_logits": True, "output_attentions": True},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"cache_implementation": "quantized"},
        {"stop_strings": ["a"]},
        {"return_dict_in_generate": True, "output_hidden_states": True},
        {"max_length": 3, "min_length": 99},
        {"max_new_tokens": 1},
        {"min_new_tokens": 99},
        {"max_time": 0.0001},
        {"forced_eos_token_id": EOS},
        {"pad_token_id": None, "eos_token_id": [EOS, 3]},
        {"eos_token_id": None, "pad_token_id": None},
    ],
    ids=str,
)
def test_what_would_change_the_measurement_is_set_aside(
    settings: dict[str, Any], tmp_path: Path, tiny: TransformersModel
) -> None:
    tiny.prepare(Cell(24, 6, 2))
    expected = tiny.generate(6).tokens
    for cache in ("dynamic", "static"):
        model = load(save_tiny_model(tmp_path / cache, **settings), make_candidate(cache))
        model.prepare(Cell(24, 6, 2))
        assert model.generate(6).tokens == expected
        held = {"dynamic": 24 + 6 - 1, "static": 24 + 6}[cache]
        assert model.kv_cache_bytes() == kv_bytes(
            held, rows=2, size=4, layers=LAYERS, heads=KV_HEADS, head_dim=HEAD_DIM
        )
