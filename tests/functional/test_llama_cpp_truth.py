"""What the engine llama_cpp tells is what llama.cpp does, on SmolLM2 with real weights."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType, ParamValue
from kvray.engines.base import (
    DeviceFacts,
    ForcedText,
    LoadedModel,
    ModelRequest,
    OutOfMemoryError,
    SubstitutedError,
    UnsupportedError,
)
from kvray.engines.llama_cpp import LlamaCppAdapter, adapter, context, loaded
from kvray.engines.llama_cpp.binding import describe_build
from kvray.engines.llama_cpp.portable import build_note
from kvray.errors import ModelError
from kvray.search_paths import child_environment, python_command
from kvray.trial.quality import compare, summarize
from kvray.workload import Cell, get_profile

llama = pytest.importorskip("llama_cpp.llama_cpp")
CELL = Cell(40, 8, 1)
LAYERS, ELEMENTS = 30, 3 * 64
"""Layers of SmolLM2, and elements of a token's keys in each."""
NEARLY = 0.3
"""Nats between two tokens that rounding may exchange: each may be off by half of it."""
ROUNDING = 0.02
"""Nats per token between two ways to compute the same: activations in 8 bits magnify small differences."""
CELLS = 256
"""A context for `CELL`, as llama.cpp rounds it up."""


def made(attention: AttentionBackend = AttentionBackend.FLASH, **settings: ParamValue) -> Candidate:
    plain = {settings.get(name, "f16") for name in ("type_k", "type_v")} <= {"f16", "f32", "bf16"}
    return Candidate(
        engine="llama_cpp",
        cache=CacheStrategy.STATIC if plain else CacheStrategy.QUANTIZED,
        attention=attention,
        dtype=DType.FLOAT32,
        settings=tuple({"threads": 1, **settings}.items()),
    )


def load(path: Path, candidate: Candidate | None = None) -> LoadedModel:
    request = ModelRequest(model_id=str(path))
    return LlamaCppAdapter().load(request, candidate or made(), DeviceType.CPU, get_profile("ci-micro"))


@pytest.fixture(scope="module")
def prepared(demo_model: Path) -> Iterator[LoadedModel]:
    with closing(load(demo_model)) as model:
        model.prepare(CELL)
        yield model


class PlainLoop:
    """llama.cpp by its C API alone: no code of the engine's."""

    def __init__(self, path: Path, **changed: int) -> None:
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
        params = llama.llama_context_default_params()
        wished = {"n_ctx": CELLS, "n_threads": 1, "n_threads_batch": 1, "flash_attn_type": 1, **changed}
        for name, value in wished.items():
            setattr(params, name, value)
        self.context = llama.llama_init_from_model(self.model, params)
        self.vocab = llama.llama_model_get_vocab(self.model)
        self.words = llama.llama_vocab_n_tokens(self.vocab)
        self.ends = [one for one in range(self.words) if llama.llama_vocab_is_eog(self.vocab, one)]

    def logits_after(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        assert llama.llama_decode(self.context, llama.llama_batch_get_one(array, len(tokens))) == 0
        found = llama.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(found, shape=(self.words,)).copy()

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
        chosen: list[int] = []
        while len(chosen) < count:
            logits = self.logits_after(chosen[-1:] or prompt)
            logits[self.ends] = -np.inf
            chosen.append(int(logits.argmax()))
        return chosen

    def close(self) -> None:
        llama.llama_free(self.context)
        llama.llama_model_free(self.model)


@pytest.fixture(scope="module")
def plain_loop(demo_model: Path) -> Iterator[PlainLoop]:
    with closing(PlainLoop(demo_model)) as loop:
        yield loop


def prompt_of(model: LoadedModel) -> tuple[int, ...]:
    """The first sequence's prompt for `CELL`: the text for quality begins with it."""
    return model.forced_text(CELL.output_tokens).ids[: CELL.context_tokens]


def test_the_record_says_what_the_engine_made_of_the_candidate(prepared: LoadedModel) -> None:
    told = prepared.observe().resolved
    assert (told["n_ctx"], told["n_batch"], told["threads"], told["splits_decode"]) == (CELLS, CELLS, 1, 1)
    assert str(told["llama_cpp"]).startswith(llama.llama_version().decode())
    assert str(told["build"]).startswith("CPU : ")
    assert str(told["kv_mib"]).startswith("CPU ")


def test_greedy_tokens_are_those_of_a_plain_loop(prepared: LoadedModel, plain_loop: PlainLoop) -> None:
    assert list(prepared.generate(8).tokens[0]) == plain_loop.greedy(prompt_of(prepared), 8)


def test_log_probabilities_are_those_of_a_plain_loop(prepared: LoadedModel, plain_loop: PlainLoop) -> None:
    text = prepared.forced_text(12)
    begin = len(text.ids) - 12
    llama.llama_memory_clear(llama.llama_get_memory(plain_loop.context), True)
    logits = [plain_loop.logits_after(text.ids[:begin])]
    logits += [plain_loop.logits_after([one]) for one in text.ids[begin:-1]]
    told = list(prepared.forced_log_probabilities(text))
    for (place, token, rows), expected in zip(told, logits, strict=True):
        exact = expected.astype(np.float64)
        exact -= exact.max() + np.log(np.exp(exact - exact.max()).sum())
        assert token == text.ids[begin + place]
        assert isinstance(rows, np.ndarray)
        # What is fed one by one is computed the same way; several at once are rounded otherwise.
        tolerance = 1e-4 if place < 4 else 0.15
        assert np.abs(rows[0] - exact).max() < tolerance


def test_forced_tokens_are_thought_of_as_when_they_were_chosen(prepared: LoadedModel) -> None:
    chosen = prepared.generate(8).tokens[0]
    told = list(prepared.forced_log_probabilities(ForcedText(ids=(*prompt_of(prepared), *chosen), forced=8)))
    assert [int(np.asarray(rows)[0].argmax()) for _, _, rows in told] == list(chosen)


@pytest.mark.parametrize("unified", [False, True])
def test_each_sequence_of_a_batch_gets_what_it_gets_alone(demo_model: Path, unified: bool) -> None:
    """Without flash attention, which rounds otherwise where sequences share a buffer. On some CPUs sums are of another
    order there too; then another token may be chosen that is nearly as probable, and what follows is another text."""
    with closing(load(demo_model, made(AttentionBackend.EAGER, kv_unified=unified))) as model:
        model.prepare(CELL)
        alone = model.generate(8).tokens[0]
        thought = list(model.forced_log_probabilities(ForcedText(ids=(*prompt_of(model), *alone), forced=8)))
        model.prepare(CELL._replace(batch_size=3))
        rows = model.generate(8).tokens
        told = [np.asarray(one) for _, _, one in model.forced_log_probabilities(model.forced_text(8))]
        used = model.last_used()
    assert used is not None
    assert used.substitutions == ()
    assert used.cache_layers == ("30 layers × 256 cells" if unified else "30 layers × 256 cells × 3")
    parting = next((place for place in range(8) if rows[0][place] != alone[place]), None)
    if parting is not None:
        logs = np.asarray(thought[parting][2])[0]
        assert logs[alone[parting]] - logs[rows[0][parting]] < NEARLY
    assert len(set(rows)) == 3
    assert np.mean([divergence(*one) for one in told]) < ROUNDING


def divergence(first: NDArray[np.float32], last: NDArray[np.float32]) -> float:
    """Kullback-Leibler divergence of two rows of log-probabilities, in nats."""
    return float((np.exp(first.astype(np.float64)) * (first.astype(np.float64) - last)).sum())


def test_flash_attention_computes_what_attention_without_it_computes(demo_model: Path, prepared: LoadedModel) -> None:
    reference = summarize(prepared.forced_log_probabilities(prepared.forced_text(16)))
    with closing(load(demo_model, made(AttentionBackend.EAGER))) as eager:
        eager.prepare(CELL)
        loss = compare(reference, eager.forced_log_probabilities(eager.forced_text(16)))
        assert eager.observe().kernel_decode == "mul_mat + soft_max (CPU)"
    assert loss.kl_mean < ROUNDING
    assert loss.top1_agreement > 0.9


@pytest.mark.parametrize(("kind", "bits"), [("f32", 32.0), ("bf16", 16.0), ("q8_0", 8.5), ("q5_1", 6.0), ("q4_0", 4.5)])
def test_a_cache_of_another_type_has_the_bytes_of_its_formula(demo_model: Path, kind: str, bits: float) -> None:
    with closing(load(demo_model, made(type_k=kind))) as model:
        model.prepare(CELL)
        model.generate(2)
        seen = model.last_used()
        assert seen is not None
        assert (seen.kv_dtype, seen.substitutions) == (f"K {kind}, V f16", ())
        assert model.kv_cache_bytes() == LAYERS * CELLS * ELEMENTS * (bits + 16) / 8


def test_weights_stay_as_the_file_has_them_where_that_is_asked_for(demo_model: Path, prepared: LoadedModel) -> None:
    with closing(load(demo_model, made(repack=False))) as model:
        model.prepare(CELL)
        seen = model.observe(8)
    assert seen.substitutions == ()
    assert str(seen.resolved["model_mib"]).startswith("CPU_Mapped ")
    assert "," not in str(seen.resolved["model_mib"])


def test_cells_that_need_the_same_context_share_it(demo_model: Path) -> None:
    with closing(load(demo_model)) as model:
        model.prepare(Cell(40, 8, 1))
        first = model._context  # type: ignore[attr-defined]
        model.prepare(Cell(40, 16, 1))
        assert model._context is first  # type: ignore[attr-defined]
        model.prepare(Cell(300, 8, 1))
        assert model._context is not first  # type: ignore[attr-defined]


def test_a_prompt_of_several_pieces_is_read_whole(demo_model: Path, prepared: LoadedModel) -> None:
    with closing(load(demo_model, made(n_batch=16, n_ubatch=8))) as model:
        model.prepare(CELL)
        assert model.generate(8).tokens == prepared.generate(8).tokens
        assert model.last_used().substitutions == ()  # type: ignore[union-attr]


def test_a_text_goes_on_until_the_model_ends_it(prepared: LoadedModel) -> None:
    question = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    answer = prepared.complete(question, 60)
    assert "Paris" in answer
    assert "<|im_end|>" not in answer
    assert prepared.count_tokens(answer) < 50
    assert prepared.count_tokens("<|im_end|>") == 1


def changed_params(monkeypatch: pytest.MonkeyPatch, **values: int) -> None:
    """From now on contexts are made with `values`, whatever was asked for."""
    asked = context.context_params

    def otherwise(*arguments: Any) -> Any:
        params = asked(*arguments)
        for name, value in values.items():
            setattr(params, name, value)
        return params

    monkeypatch.setattr(context, "context_params", otherwise)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("n_threads", 2, "asked for threads 1, llama.cpp has 2"),
        ("n_threads_batch", 2, "asked for threads_batch 1, llama.cpp has 2"),
        ("n_ubatch", 128, "asked for n_ubatch 256, llama.cpp has 128"),
        ("n_batch", 128, "asked for n_batch 256, llama.cpp has 128"),
        ("n_ctx", 512, "asked for n_ctx 256, llama.cpp has 512"),
        ("n_ctx", 512, "asked for a cache of 256 cells, it has 512"),
        ("type_k", llama.GGML_TYPE_Q8_0, "asked for keys in f16 and values in f16, the cache has K q8_0, V f16"),
    ],
)
def test_a_context_unlike_what_was_asked_for_is_told(
    demo_model: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: int, sentence: str
) -> None:
    changed_params(monkeypatch, **{name: value})
    with closing(load(demo_model)) as model:
        model.prepare(CELL)
        seen = model.last_used()
    assert seen is not None
    assert sentence in seen.substitutions


@pytest.mark.parametrize(
    ("asked", "flash", "difference"),
    [
        (AttentionBackend.FLASH, 0, "asked for flash attention, {} ran mul_mat + soft_max (CPU)"),
        (AttentionBackend.EAGER, 1, "asked for no flash attention, {} ran flash_attn_ext (CPU)"),
    ],
)
def test_attention_unlike_what_was_asked_for_is_told_by_the_graph(
    demo_model: Path, monkeypatch: pytest.MonkeyPatch, asked: AttentionBackend, flash: int, difference: str
) -> None:
    changed_params(monkeypatch, flash_attn_type=flash)
    with closing(load(demo_model, made(asked))) as model:
        model.prepare(CELL)
        seen = model.observe()
    assert seen.substitutions == tuple(difference.format(step) for step in ("prefill", "decode"))


def test_a_cache_that_was_not_emptied_is_no_measurement(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(load(demo_model)) as model:
        model.prepare(CELL)
        model.generate(4)
        monkeypatch.setattr(context.NativeContext, "clear", lambda _: None)
        with pytest.raises(SubstitutedError, match="still held 43 tokens of an earlier call"):
            model.generate(4)


def test_tokens_that_the_cache_has_lost_are_told(demo_model: Path) -> None:
    with closing(load(demo_model)) as model:
        model.prepare(CELL)
        model.generate(4)
        memory = llama.llama_get_memory(model._context.handle)  # type: ignore[attr-defined]
        llama.llama_memory_seq_rm(memory, 0, 30, -1)
        seen = model.last_used()
    assert seen is not None
    assert seen.substitutions == ("fed 43 tokens to each sequence, the cache has taken 30",)


@pytest.fixture
def little_memory(demo_model: Path) -> Iterator[LoadedModel]:
    """A loaded model whose process may take one more GiB."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with closing(load(demo_model)) as model:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), before[1]))
        yield model
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_context_that_does_not_fit_is_out_of_memory_in_the_engines_words(little_memory: LoadedModel) -> None:
    with pytest.raises(OutOfMemoryError, match="failed to allocate buffer for kv cache"):
        little_memory.prepare(Cell(1 << 18, 4, 1))
    little_memory.prepare(CELL)
    assert len(little_memory.generate(2).token_s) == 2


def test_where_memory_holds_one_context_the_measured_one_gives_way(
    demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(load(demo_model)) as model:
        model.prepare(CELL)
        before = model.generate(4).tokens
        monkeypatch.setattr(loaded, "available_memory_mib", lambda: 0.0)
        seen = model.observe()
        assert (seen.generation, seen.substitutions) == (None, ())
        assert model.generate(4).tokens == before
        assert model.last_used().substitutions == ()  # type: ignore[union-attr]


def test_a_second_context_that_does_not_fit_makes_the_measured_one_give_way(little_memory: LoadedModel) -> None:
    assert isinstance(little_memory, loaded.LlamaCppModel)
    little_memory.prepare(Cell(24_000, 4, 1))
    with little_memory._beside():
        assert little_memory._context is None
    assert little_memory._context is not None


def test_what_the_engine_refuses_is_unsupported_in_its_words(demo_model: Path) -> None:
    with (
        closing(load(demo_model, made(AttentionBackend.EAGER, type_v="q8_0"))) as model,
        pytest.raises(UnsupportedError, match="quantized V cache requires flash_attn"),
    ):
        model.prepare(CELL)


@pytest.fixture
def torn(demo_model: Path, tmp_path: Path) -> Path:
    """The head of the file."""
    path = tmp_path / "torn.gguf"
    with demo_model.open("rb") as file:
        path.write_bytes(file.read(6 << 20))
    return path


def test_a_truncated_file_is_refused_in_the_engines_words(torn: Path) -> None:
    with pytest.raises(ModelError, match="not within the file bounds"):
        load(torn)


def test_an_unknown_architecture_is_refused_in_the_engines_words(demo_model: Path, torn: Path) -> None:
    torn.write_bytes(torn.read_bytes().replace(b"llama", b"lxama"))
    os.truncate(torn, demo_model.stat().st_size)
    with pytest.raises(UnsupportedError, match="unknown model architecture: 'lxama'"):
        load(torn)


def test_what_the_build_leaves_out_is_noted_of_the_model(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, request = LlamaCppAdapter(), ModelRequest(model_id=str(demo_model))
    info, here = engine.describe_model(request), DeviceFacts(device=DeviceType.CPU, device_name="a CPU")
    note = describe_build().note
    assert build_note() == note
    assert engine.adapt_to_device(request, info, here).notes == (*info.notes, *filter(None, [note]))
    monkeypatch.setattr(adapter, "build_note", lambda: "llama.cpp is a portable build.")
    assert engine.adapt_to_device(request, info, here).notes[-1] == "llama.cpp is a portable build."
    assert engine.adapt_to_device(request, info, None) is info  # trials run on other machines


def test_the_build_that_is_here_is_not_refused() -> None:
    LlamaCppAdapter().check_installed()


def test_the_process_that_measures_imports_no_torch() -> None:
    code = "import sys, llama_cpp, kvray.engines.llama_cpp.loaded; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run(
        python_command("-c", code), env=child_environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


ABORTING = """
import sys
from pathlib import Path
from kvray.engines.llama_cpp.context import NativeContext, TokenBatch
from kvray.engines.llama_cpp.native_model import NativeModel
from kvray.engines.llama_cpp.settings import context_settings
from test_llama_cpp_truth import CELL, made
from kvray.candidate import DeviceType

settings = context_settings(made(n_batch=8), CELL, device=DeviceType.CPU)
context = NativeContext(NativeModel(Path(sys.argv[1]), settings), settings)
context._rows = 64  # more at once than the context takes
list(context.feed(TokenBatch.of_rows([[1] * 40], begin=0, wanted=[[1] * 40])))
"""


def test_an_assertion_of_the_engine_reaches_standard_error(demo_model: Path) -> None:
    environment = {
        **child_environment(),
        **LlamaCppAdapter().process_environment(),
        "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))),
    }
    command = python_command("-c", ABORTING, str(demo_model))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode < 0
    assert "GGML_ASSERT(n_tokens_all <= cparams.n_batch) failed" in done.stderr
