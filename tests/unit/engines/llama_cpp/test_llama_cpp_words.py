"""What llama.cpp says is read rightly, and the text for quality is fed in the right order. No library is loaded."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp_samples import candidate

from kvray.candidate import AttentionBackend, CacheStrategy, CompileMode, DType
from kvray.engines.base import DECODED_TOKENS, ForcedText, OutOfMemoryError, UnsupportedError
from kvray.engines.llama_cpp import amx_build, binding
from kvray.engines.llama_cpp.amx_build import loses_tiles
from kvray.engines.llama_cpp.asked import check_candidate
from kvray.engines.llama_cpp.binding import Build, EngineLog, left_out_instructions
from kvray.engines.llama_cpp.failed import context_error, decode_error, load_error
from kvray.engines.llama_cpp.forced import check_text, feed_plan, log_probabilities
from kvray.errors import EngineError, ModelError
from kvray.extras import Extra

NATIVE = (
    "CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | F16C = 1 | FMA = 1 | AVX512 = 1 | AMX_INT8 = 1 | OPENMP = 1 | REPACK = 1 | "
)
PORTABLE = "CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | F16C = 1 | FMA = 1 | AVX512 = 0 | OPENMP = 1 | "
FLAGS = frozenset(["avx", "avx2", "f16c", "fma", "avx512f", "amx_int8", "amx_tile", "sse4_2"])


def test_lines_are_joined_and_errors_told_without_the_names_of_functions(capsys: pytest.CaptureFixture[str]) -> None:
    log = EngineLog()
    log.add(2, "load: one\n")
    mark = log.mark
    log.add(1, "load: for developers\n")
    log.add(2, "load: tw")
    log.add(5, "o\n.")
    log.add(5, ".\n")
    log.add(4, "llama_model_load: error loading model: torn\nllama_model_load: error loading model: torn\n")
    assert log.since(mark)[:2] == ("load: two", "..")
    assert log.errors_since(mark) == ("error loading model: torn",)
    assert log.errors_since(log.mark) == ()
    assert capsys.readouterr().err.splitlines() == ["llama_model_load: error loading model: torn"] * 2


LOADS, ROWS, COLUMNS = (bytes.fromhex(text) for text in ("c4e27849", "0808101010101010", "4000400020002000"))


@pytest.mark.parametrize(
    ("content", "is_lost"),
    [
        (LOADS + b"GCC: (Debian 12.2.0-14+deb12u1) 12.2.0", True),
        (LOADS + b"GCC: (GNU) 11.4.1", True),
        (LOADS + b"GCC: (GNU) 10.2.0", True),
        (LOADS + b"GCC: (Ubuntu 13.3.0-6ubuntu2) 13.3.0", False),
        (LOADS + b"GCC: (GNU) 14.0.1", False),
        (LOADS + b"clang version 17.0.6", False),
        (LOADS + ROWS + b"GCC: (GNU) 12.2.0", False),
        (LOADS + COLUMNS + b"GCC: (GNU) 12.2.0", False),
        (b"GCC: (GNU) 12.2.0", False),
    ],
)
def test_a_build_that_loses_the_tiles_of_amx_is_known_by_its_bytes(content: bytes, is_lost: bool) -> None:
    assert loses_tiles(content) is is_lost


@pytest.mark.parametrize(("flags", "is_refused"), [({"avx2", "amx_int8"}, True), ({"avx2"}, False)])
def test_such_a_build_is_refused_where_the_cpu_has_amx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: set[str], is_refused: bool
) -> None:
    library = tmp_path / "libggml-cpu.so"
    library.write_bytes(LOADS + b"GCC: (GNU) 12.2.0")
    monkeypatch.setattr(amx_build, "library_files", lambda: [library])
    monkeypatch.setattr(amx_build, "cpu_flags", lambda: frozenset(flags))
    with pytest.raises(EngineError, match="GCC bug 114098") if is_refused else nullcontext() as raised:
        amx_build.check_tiles()
    if raised is not None:
        assert "amx_tiles.h" in str(raised.value.hint)
        assert Path(amx_build.__file__).with_name("amx_tiles.h").is_file()


def test_a_long_log_keeps_its_last_lines() -> None:
    log = EngineLog(most_lines=3)
    log.add(2, "a\nb\nc\n")
    mark = log.mark
    log.add(2, "d\n")
    assert (log.since(mark), log.since(0), log.since(log.mark)) == (("d",), ("b", "c", "d"), ())


def test_an_absent_binding_is_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "_MODULE", "no_such_binding")
    with pytest.raises(EngineError, match="needs llama-cpp-python, which cannot be loaded") as raised:
        binding.library.__wrapped__()
    assert raised.value.hint == f"Install it: {Extra.LLAMA_CPP.install_command}"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"settings": (("no_axis", 1),)}, "has no axis no_axis"),
        ({"settings": (("type_k", "q2_k"),), "cache": CacheStrategy.QUANTIZED}, "keeps type_k as .*, not as q2_k"),
        ({"settings": (("type_k", "q8_0"),)}, "make a quantized cache, not static"),
        ({"cache": CacheStrategy.DYNAMIC}, "make a static cache, not dynamic"),
        ({"attention": AttentionBackend.SDPA}, "with attention flash or eager"),
        ({"dtype": DType.BFLOAT16}, "computes in float32"),
        ({"compile": CompileMode.DEFAULT}, "not llama_cpp:static/flash/float32.compile:default"),
        ({"prefill_chunk": 64}, "chunk:64"),
    ],
)
def test_what_the_engine_does_not_have_is_refused_before_weights_are_read(change: dict[str, Any], reason: str) -> None:
    check_candidate(candidate())
    check_candidate(candidate(type_v="q8_0", cache=CacheStrategy.QUANTIZED))
    with pytest.raises(UnsupportedError, match=reason):
        check_candidate(replace(candidate(), **change))


def test_a_portable_build_is_told_by_what_it_leaves_out() -> None:
    assert left_out_instructions(NATIVE, FLAGS) == ()
    assert left_out_instructions(PORTABLE, FLAGS) == ("AVX512", "AMX_INT8")
    assert left_out_instructions("CPU : NEON = 1 | ", frozenset({"asimddp", "sve"})) == ("DOTPROD", "SVE")
    note = Build(version="b1", system_info=PORTABLE, left_out=("AVX512", "AMX_INT8")).note
    assert note is not None
    assert note.startswith("llama.cpp is a portable build: it does not use AVX512, AMX_INT8, which this CPU has.")
    assert Build(version="b1", system_info=NATIVE, left_out=()).note is None


@pytest.mark.parametrize(
    ("words", "kind", "told"),
    [
        (("unable to allocate CUDA0 buffer", "failed to load model"), OutOfMemoryError, "unable to allocate CUDA0"),
        (("error loading model: unknown model architecture: 'x'",), UnsupportedError, "architecture: 'x'"),
        (("error loading model: tensor data is torn", "failed to load model"), ModelError, "tensor data is torn$"),
        ((), ModelError, "does not say why"),
    ],
)
def test_why_a_file_was_not_loaded(words: tuple[str, ...], kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        raise load_error(Path("model.gguf"), words)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("failed to initialize the context: failed to allocate buffer for kv cache", OutOfMemoryError),
        ("failed to initialize the context: failed to allocate compute pp buffers", OutOfMemoryError),
        ("failed to initialize the context: std::bad_alloc", OutOfMemoryError),
        ("ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory", OutOfMemoryError),
        ("quantized V cache requires flash_attn to be enabled", UnsupportedError),
    ],
)
def test_why_no_context_was_made(words: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=words):
        raise context_error((words,))


@pytest.mark.parametrize(
    ("code", "kind", "told"),
    [
        (1, UnsupportedError, "no room in the cache"),
        (-1, UnsupportedError, "does not accept the tokens"),
        (-2, OutOfMemoryError, "while it computed"),
        (-3, UnsupportedError, r"code -3\): it could not compute"),
    ],
)
def test_why_nothing_was_decoded(code: int, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        raise decode_error(code, ("failed to decode",))


@pytest.mark.parametrize(("length", "forced"), [(544, 256), (48, 16), (30, 1), (30, 2), (30, 5), (200, 64 + 4)])
def test_a_text_is_fed_whole_but_for_its_last_token(length: int, forced: int) -> None:
    parts = feed_plan(length, forced, chunk=64)
    assert parts[0] == (0, length - forced)
    assert [begin for begin, _ in parts] == [0, *(end for _, end in parts[:-1])]
    assert parts[-1][1] == length - 1
    singles = parts[1:DECODED_TOKENS]
    assert all(end - begin == 1 for begin, end in singles)
    assert len(singles) == min(DECODED_TOKENS, forced) - 1
    assert all(0 < end - begin <= 64 for begin, end in parts[1:])


def test_log_probabilities_sum_to_one_however_large_the_logits() -> None:
    rows = log_probabilities(np.array([[1e4, 1e4 - 1.0, -1e4], [0.0, 0.0, 0.0]], dtype=np.float32))
    assert rows.dtype == np.float32
    assert np.exp(rows.astype(np.float64)).sum(axis=1) == pytest.approx([1.0, 1.0])
    assert rows[0, 1] - rows[0, 0] == pytest.approx(-1.0)


@pytest.mark.parametrize("stranger", [-1, 100])
def test_a_text_of_another_vocabulary_is_refused(stranger: int) -> None:
    check_text(ForcedText(ids=(0, 99), forced=1), 100)
    with pytest.raises(UnsupportedError, match="this model knows 100 tokens"):
        check_text(ForcedText(ids=(0, stranger), forced=1), 100)
