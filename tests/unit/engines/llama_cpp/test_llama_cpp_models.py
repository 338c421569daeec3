"""What llama.cpp's engine knows of a GGUF file from its header, and what it refuses before any trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
from llama_cpp_samples import CPU, GPU, HIDDEN, INNER, KV_HEADS, WORDS, candidate, write_model

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.engines.base import ModelInfo, ModelRequest
from kvray.engines.llama_cpp import adapter, build, spaces
from kvray.engines.llama_cpp.adapter import LlamaCppAdapter
from kvray.engines.llama_cpp.rules import rules
from kvray.errors import ModelError
from kvray.space.axis import canonical_form
from kvray.space.constraints import SpaceFacts, first_objection
from kvray.space.menu import available_here
from kvray.space.search_space import build_space
from kvray.workload import get_profile

ADAPTER = LlamaCppAdapter()
FACTS = SpaceFacts(device=DeviceType.CPU, dtypes=frozenset(DType))


def request(path: Path) -> ModelRequest:
    return ModelRequest(model_id=str(path))


def described(path: Path) -> ModelInfo:
    ADAPTER.check_model(request(path))
    return ADAPTER.describe_model(request(path))


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as error:
        ADAPTER.check_model(request(path))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_header_tells_architecture_context_sizes_and_how_weights_are_kept(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", kind=gguf.GGMLQuantizationType.Q8_0)
    info = described(path)
    assert (info.architecture, info.max_context, info.packing) == ("llama", 512, "Q8_0")
    assert info.native_dtype is DType.FLOAT32
    assert info.model_id == str(path.resolve())
    assert info.layer_kinds == ("full_attention", "full_attention")
    elements = 2 * WORDS * HIDDEN + 2 * INNER * HIDDEN
    assert info.weight_bytes == elements * 34 // 32
    assert info.shape is not None
    assert (info.shape.total_parameters, info.shape.lookup_parameters) == (elements, WORDS * HIDDEN)
    assert {(layer.kv_heads, layer.key_dim, layer.value_dim) for layer in info.shape.layers} == {(KV_HEADS, 32, 32)}


def test_the_file_s_own_name_for_its_type_comes_first(tmp_path: Path) -> None:
    info = described(write_model(tmp_path / "m.gguf", lambda writer: writer.add_file_type(15)))
    assert info.packing == "Q4_K_M"


def test_the_revision_is_the_hash_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVRAY_CACHE", str(tmp_path / "cache"))
    path = write_model(tmp_path / "m.gguf")
    info = ADAPTER.identify_model(request(path), described(path))
    assert info.revision.startswith("sha256:")
    same = ModelRequest(model_id=info.model_id, revision=info.revision)
    ADAPTER.fetch_weights(same)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="has changed since the sweep began"):
        ADAPTER.fetch_weights(same)


@pytest.mark.parametrize(
    ("architecture", "pattern", "layers", "sliding"),
    [
        ("gemma3", None, 7, [0, 1, 2, 3, 4, 6]),
        ("gemma2", None, 4, [0, 2]),
        ("smallthinker", None, 5, [1, 2, 3]),
        ("gemma3", [True, False, True], 3, [0, 2]),
        ("olmo2", 2, 4, [0, 2]),
        ("llama", None, 3, []),  # llama.cpp does not read the key of this architecture
    ],
)
def test_layers_with_a_window_are_those_that_llama_cpp_gives_one(
    architecture: str, pattern: Any, layers: int, sliding: list[int], tmp_path: Path
) -> None:
    def windowed(writer: gguf.GGUFWriter) -> None:
        writer.add_sliding_window(128)
        if isinstance(pattern, int):
            writer.add_uint32(f"{architecture}.attention.sliding_window_pattern", pattern)
        elif pattern is not None:
            writer.add_array(f"{architecture}.attention.sliding_window_pattern", pattern)

    info = described(write_model(tmp_path / "m.gguf", windowed, architecture=architecture, layers=layers))
    assert [number for number, kind in enumerate(info.layer_kinds) if kind == "sliding_attention"] == sliding
    assert info.shape is not None
    assert [number for number, layer in enumerate(info.shape.layers) if layer.window == 128] == sliding


def test_latents_have_one_type(tmp_path: Path) -> None:
    def latent(writer: gguf.GGUFWriter) -> None:
        writer.add_kv_lora_rank(16)
        writer.add_key_length_mla(32)

    info = described(write_model(tmp_path / "m.gguf", latent, architecture="deepseek2"))
    assert set(info.layer_kinds) == {"latent_attention"}
    unlike = candidate(cache=CacheStrategy.QUANTIZED, type_k="q8_0")
    assert first_objection(unlike, FACTS, rules(info)) == (
        "the model keeps one latent for keys and values: type_k and type_v must be the same (one-latent)"
    )
    alike = candidate(cache=CacheStrategy.QUANTIZED, type_k="q8_0", type_v="q8_0")
    assert first_objection(alike, FACTS, rules(info)) is None


def test_of_layers_that_keep_something_else_nothing_is_forecast(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", lambda writer: writer.add_kv_lora_rank(16), architecture="deepseek2")
    info = described(path)
    assert (info.shape, info.layer_kinds) == (None, ())
    assert info.shape_unknown is not None
    assert ADAPTER.cost_model(info) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention.head_count", "four"),
        ("attention.head_count_kv", -1),
        ("attention.head_count_kv", 2**63),
        ("attention.head_count", [4.5, 1.5]),
        ("attention.head_count", [0, 0]),
        ("attention.key_length", -64),
        ("attention.sliding_window", -3),
        ("context_length", 2**64 - 1),
        ("context_length", 1.5),
        ("expert_count", True),
    ],
)
def test_whatever_a_header_says_is_described_or_left_unknown(key: str, value: Any, tmp_path: Path) -> None:
    def add(writer: gguf.GGUFWriter) -> None:
        name = f"gemma3.{key}"
        writer.kv_data[0].pop(name, None)
        match value:
            case list():
                writer.add_array(name, value)
            case bool():
                writer.add_bool(name, value)
            case int():
                (writer.add_int64 if value < 0 else writer.add_uint64)(name, value)
            case float():
                writer.add_float32(name, value)
            case _:
                writer.add_string(name, value)

    info = described(write_model(tmp_path / "m.gguf", add, architecture="gemma3"))
    assert info.max_context is None or 0 < info.max_context < 2**53
    assert info.shape is None or all(layer.key_dim > 0 for layer in info.shape.layers)
    ADAPTER.cost_model(info)


def test_a_folder_with_one_gguf_file_is_that_file(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    (tmp_path / "config.json").write_text("{}")
    assert described(tmp_path).model_id == str(path.resolve())
    write_model(tmp_path / "other.gguf")
    assert "holds 2 GGUF files: m.gguf, other.gguf. Give one of them, for example" in refused(tmp_path)


def test_a_folder_of_safetensors_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    told = refused(tmp_path)
    assert told.startswith(f"llama.cpp runs GGUF files only, and there is none in folder '{tmp_path}'.")
    assert "--model-for llama_cpp=FILE.gguf" in told
    with pytest.raises(ModelError, match="and 'org/name' is not one"):
        ADAPTER.check_model(ModelRequest(model_id="org/name"))


def part(writer: gguf.GGUFWriter) -> None:
    writer.add_uint16("split.no", 0)
    writer.add_uint16("split.count", 3)


@pytest.mark.parametrize(
    ("change", "architecture", "told"),
    [
        (part, "llama", "it is part 1 of 3. Merge them first: llama-gguf-split --merge"),
        (lambda writer: None, "clip", "it holds no language model (mmproj). Give the file with the model's own"),
        (lambda writer: writer.add_type("adapter"), "llama", "it holds no language model ('adapter'). Give the file"),
    ],
)
def test_a_file_that_is_no_whole_model_is_refused_with_its_cure(
    change: Any, architecture: str, told: str, tmp_path: Path
) -> None:
    path = write_model(tmp_path / "m-00001-of-00003.gguf", change, architecture=architecture)
    assert refused(path).startswith(f"GGUF file '{path}' cannot be loaded: {told}")


def test_a_truncated_file_is_told_from_its_header(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:-64])
    assert "it is cut off: its tensors end" in refused(path)


def test_an_architecture_that_the_library_does_not_name_is_refused_before_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libllama.so"
    library.write_bytes(b"\x7fELF\0llama\0gemma3\0")
    monkeypatch.setattr(build, "library_files", lambda: [library])
    described(write_model(tmp_path / "known.gguf", architecture="gemma3"))
    told = refused(write_model(tmp_path / "unknown.gguf", architecture="grokk"))
    assert "this llama.cpp does not know the architecture 'grokk'. Update llama-cpp-python" in told


def test_a_build_for_the_cpu_alone_is_not_measured_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path / "m.gguf")
    info = described(path)
    monkeypatch.setattr(adapter, "build_note", lambda: None)
    monkeypatch.setattr(adapter, "installed_build", lambda: build.Build(has_gpu=False, has_openmp=True))
    with pytest.raises(
        ModelError, match=r"built for the CPU alone\. Measure with .* or build it for CUDA: CMAKE_ARGS=-DGGML_CUDA=on /"
    ):
        ADAPTER.adapt_to_device(request(path), info, GPU)
    assert ADAPTER.adapt_to_device(request(path), info, CPU) == info
    assert ADAPTER.adapt_to_device(request(path), info, None) == info
    monkeypatch.setattr(adapter, "installed_build", lambda: build.Build(has_gpu=True, has_openmp=True))
    assert ADAPTER.adapt_to_device(request(path), info, GPU) == info


def test_what_a_build_holds_is_told_by_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = tmp_path / "libggml-cpu.so", tmp_path / "libggml-cuda.so"
    cpu.write_bytes(b"\x7fELF\0libgomp.so.1\0")
    cuda.write_bytes(b"\x7fELF")
    find = build.installed_build.__wrapped__
    monkeypatch.setattr(build, "library_files", lambda: [cpu])
    assert find() == build.Build(has_gpu=False, has_openmp=True)
    cpu.write_bytes(b"\x7fELF\0libpthread.so\0")
    monkeypatch.setattr(build, "library_files", lambda: [cpu, cuda])
    assert find() == build.Build(has_gpu=True, has_openmp=False)
    monkeypatch.setattr(build, "library_files", list)
    assert find() is None
    assert build.knows_architecture("llama") is None


def test_an_untried_version_is_noted_with_those_that_were_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "version", lambda name: "0.9.9")
    (note,) = described(write_model(tmp_path / "m.gguf")).notes
    assert note == f"kvray was not tried with llama-cpp-python 0.9.9, only with {', '.join(build.TRIED_VERSIONS)}."
    monkeypatch.setattr(build, "version", lambda name: build.TRIED_VERSIONS[-1])
    assert described(tmp_path / "m.gguf").notes == ()


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (
            candidate(cache=CacheStrategy.QUANTIZED, attention=AttentionBackend.EAGER, type_v="q8_0"),
            "llama.cpp keeps values as q8_0 with flash attention only (quantized-values)",
        ),
        (
            candidate(cache=CacheStrategy.QUANTIZED),
            "type_k f16 and type_v f16 make a static cache: --set type_k=q8_0, for example, makes a quantized one "
            "(cache-types)",
        ),
        (
            candidate(swa_full=True),
            "the model has no layer with a sliding window: swa_full changes nothing (window-of-model)",
        ),
        (candidate(offload_kqv=False), "offload_kqv needs a GPU (gpu)"),
    ],
)
def test_what_cannot_be_is_rejected_with_its_reason(one: Candidate, reason: str, tmp_path: Path) -> None:
    assert first_objection(one, FACTS, rules(described(write_model(tmp_path / "m.gguf")))) == reason


def test_keys_in_blocks_do_without_flash_attention(tmp_path: Path) -> None:
    one = candidate(cache=CacheStrategy.QUANTIZED, attention=AttentionBackend.EAGER, type_k="q8_0")
    assert first_objection(one, FACTS, rules(described(write_model(tmp_path / "m.gguf")))) is None


def test_a_block_must_divide_the_head(tmp_path: Path) -> None:
    odd = described(write_model(tmp_path / "m.gguf", heads=4, kv_heads=4))
    one = candidate(cache=CacheStrategy.QUANTIZED, type_k="q8_0")
    assert first_objection(one, FACTS, rules(odd)) == (
        "a block of q8_0 has 32 elements, which do not divide a head of 16 (block-divides-head)"
    )
    assert first_objection(candidate(type_k="bf16"), FACTS, rules(odd)) is None


def test_flash_attention_is_off_where_llama_cpp_turns_it_off(tmp_path: Path) -> None:
    info = described(write_model(tmp_path / "m.gguf", architecture="grok"))
    assert ADAPTER.baseline(info, CPU, batch_size=1).attention is AttentionBackend.EAGER
    assert first_objection(candidate(), FACTS, rules(info)) == (
        "llama.cpp turns flash attention off for grok (model-attention)"
    )


def test_other_thread_counts_are_measured_unless_the_environment_says_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, profile = described(write_model(tmp_path / "m.gguf")), get_profile("ci-micro")

    def thread_counts() -> list[Any]:
        return [one for block in ADAPTER.default_space(info, CPU, profile) for one in block.settings.get("threads", ())]

    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert thread_counts() == []
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(spaces, "default_threads", lambda: 4)
    monkeypatch.setattr(spaces, "available_cpus", lambda: 8)
    assert thread_counts() == [2, 8]


def test_the_default_space_has_cache_types_attention_and_what_is_at_work_at_once(tmp_path: Path) -> None:
    path, profile, axes = write_model(tmp_path / "m.gguf"), get_profile("ci-micro"), ADAPTER.axes(CPU)
    info = described(path)

    def space(blocks: Any) -> Any:
        return build_space(
            blocks,
            baseline=ADAPTER.baseline(info, CPU, batch_size=1),
            facts=FACTS,
            engine_rules=(available_here(axes), *ADAPTER.rules(request(path), info, profile)),
            canonical=lambda one: canonical_form(one, axes, profile),
        )

    default, full = space(ADAPTER.default_space(info, CPU, profile)), space(ADAPTER.full_space(info, CPU, profile))
    assert default.rejected == ()
    assert 5 <= len(default.candidates) <= 8  # with the thread counts of this machine
    caches = {(one.setting("type_k"), one.setting("type_v"), one.attention.value) for one in default.candidates}
    assert caches == {
        (None, None, "flash"),
        (None, None, "eager"),
        ("q8_0", "q8_0", "flash"),
        ("q4_0", "q4_0", "flash"),
    }
    assert set(default.candidates) <= set(full.candidates)
    assert 100 < len(full.candidates) < 1000
