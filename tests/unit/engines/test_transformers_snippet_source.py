"""The snippet as text: what enters it stays in its quotes, and it is what a person would write. Others run it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, CompileMode, DeviceType, DType
from kvray.engines.base import ModelRequest
from kvray.engines.transformers import TransformersAdapter
from kvray.engines.transformers.arguments import call_arguments
from kvray.errors import InvalidValueError
from kvray.workload import Cell

TINY = Path(__file__).parents[2] / "assets" / "tiny_llama"
PARAMS: dict[CacheStrategy, tuple[tuple[str, int | str], ...]] = {
    CacheStrategy.SLIDING_WINDOW: (("window", 64), ("sinks", 4)),
    CacheStrategy.QUANTIZED: (("backend", "hqq"), ("nbits", 4)),
}
HOSTILE = 'x"); import os; os.system("echo hacked"); print("\n{folder}\'\\'


def candidate(**changes: object) -> Candidate:
    values: dict[str, object] = {
        "cache": CacheStrategy.DYNAMIC,
        "attention": AttentionBackend.SDPA,
        "dtype": DType.FLOAT32,
    }
    return Candidate(engine="transformers", **{**values, **changes})  # type: ignore[arg-type]


def render(
    model_id: str = "org/name",
    *,
    trust: bool = False,
    pickle: bool = False,
    revision: str | None = None,
    loader: str | None = None,
    device: DeviceType = DeviceType.CUDA,
    **changes: object,
) -> str:
    return TransformersAdapter().render_snippet(
        ModelRequest(model_id=model_id, revision=revision, trust_remote_code=trust, allow_pickle=pickle),
        loader=loader,
        candidate=candidate(**changes),
        device=device,
        cells=(Cell(512, 64, 1), Cell(64, 64, 1)),
    )


def strings(source: str) -> set[str]:
    constants = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    return {value for value in constants if isinstance(value, str)}


def calls(source: str, name: str) -> list[dict[str, str]]:
    """The keyword arguments of every call of `….name(…)`, as source."""
    return [
        {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg}
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name
    ]


def test_the_commit_that_was_measured_is_the_one_that_is_loaded() -> None:
    commit = "0123456789" * 4
    source = render(revision=commit)
    assert f"REVISION = {commit!r}" in source
    assert [call["revision"] for call in calls(source, "from_pretrained")] == ["REVISION", "REVISION"]


@pytest.mark.parametrize("revision", ["sha256:" + "0" * 64, "unknown", HOSTILE, None])
def test_what_is_no_commit_is_not_asked_of_the_hub(revision: str | None) -> None:
    assert render(revision=revision) == render()


@pytest.mark.parametrize("prefix", ["", "random:", "/models/", "random:/models/"])
@pytest.mark.parametrize("suffix", ["", ".gguf", "/config.json"])
def test_a_hostile_model_id_stays_inside_its_strings(prefix: str, suffix: str) -> None:
    plain = render(f"{prefix}name{suffix}", trust=True)
    hostile = render(f"{prefix}{HOSTILE}{suffix}", trust=True)

    assert len(hostile.splitlines()) == len(plain.splitlines())
    same_but_strings = [ast.dump(_without_strings(ast.parse(source))) for source in (plain, hostile)]
    assert same_but_strings[0] == same_but_strings[1]
    assert any(HOSTILE in value for value in strings(hostile))


@given(st.text(), st.booleans(), st.sampled_from(["", "random:"]))
@example("""x\"\"\"); import os; os.system('id') #""", True, "")
@example("x\n# coding: utf-7\n+AGE-", False, "")
@example("\u2028\x00\ud800{model}\\", False, "random:")
def test_no_model_id_ever_leaves_its_strings(name: str, trust: bool, prefix: str) -> None:
    plain, hostile = render(f"{prefix}name", trust=trust), render(f"{prefix}n/{name}", trust=trust)
    assert ast.dump(_without_strings(ast.parse(plain))) == ast.dump(_without_strings(ast.parse(hostile)))
    shown = f"n/{name}".removesuffix("/config.json") if prefix else f"n/{name}"
    assert shown in strings(hostile)


@pytest.mark.parametrize("name", ["x=os.system('id'), y", "x)\nimport os", "a b", "", "ｘ", "1x"])
def test_no_cache_setting_is_a_piece_of_code(name: str) -> None:
    with pytest.raises(InvalidValueError, match="is not a name of letters, digits and underscores"):
        candidate(cache=CacheStrategy.STATIC, cache_params=((name, 1),))


def test_there_is_no_code_for_settings_that_the_cache_does_not_take() -> None:
    with pytest.raises(InvalidValueError, match="static does not take max_batch_size: it takes max_cache_len"):
        render(cache=CacheStrategy.STATIC, cache_params=(("max_batch_size", 1),))


def _without_strings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return tree


@pytest.mark.parametrize("attention", AttentionBackend)
@pytest.mark.parametrize("cache", CacheStrategy)
@pytest.mark.parametrize("mode", CompileMode)
def test_the_source_says_what_the_arguments_say(
    attention: AttentionBackend, cache: CacheStrategy, mode: CompileMode
) -> None:
    changes: dict[str, Any] = {
        "attention": attention,
        "hub_kernel": "owner/kernel" if attention is AttentionBackend.HUB_KERNEL else None,
        "cache": cache,
        "cache_params": PARAMS.get(cache, ()),
        "compile": mode,
        "dtype": DType.BFLOAT16,
        "prefill_chunk": 64,
    }
    source = render(**changes)
    arguments = call_arguments(candidate(**changes))

    (load,) = [call for call in calls(source, "from_pretrained") if "dtype" in call]
    assert load["dtype"] == "torch.bfloat16"
    assert load["attn_implementation"] == repr(arguments.attn_implementation)
    assert load["use_safetensors"] == "True"
    settings, mark = ("update", "do_sample") if arguments.paged else ("generate", "past_key_values")
    (generate,) = [call for call in calls(source, settings) if mark in call]
    assert arguments.generate_options == {name: ast.literal_eval(generate[name]) for name in arguments.generate_options}
    assert ("compile_config" in generate) == (arguments.compile_mode is not None and not arguments.paged)
    assert [call["mode"] for call in calls(source, "CompileConfig")] == (
        [repr(arguments.compile_mode)] if arguments.compile_mode else []
    )
    if arguments.paged:
        assert "def paging(" in source
    else:
        (made,) = calls(source, arguments.cache_class)
        options = {name: ast.literal_eval(made[name]) for name, _ in arguments.cache_options}
        assert options == dict(arguments.cache_options)
    forced = arguments.sdpa_kernel is not None and not arguments.paged
    assert (f"sdpa_kernel([SDPBackend.{arguments.sdpa_kernel}])" in source) == forced


def test_a_fixed_length_is_the_least_that_a_cache_holds() -> None:
    source = render(cache=CacheStrategy.STATIC, cache_params=(("max_cache_len", 4096),))
    assert "CACHE_TOKENS = (4096,)" in source
    (made,) = calls(source, "StaticCache")
    assert made["max_cache_len"] == "tokens"


def test_the_class_that_loaded_the_model_is_the_one_that_loads_it_again() -> None:
    source = render(loader="AutoModelForImageTextToText")
    assert "AutoModelForImageTextToText.from_pretrained(" in source
    assert "AutoModelForCausalLM" not in source
    with pytest.raises(InvalidValueError, match="class that loads a model"):
        render(loader="os.system")


def test_what_was_measured_on_a_cpu_runs_there_where_there_is_a_gpu_too() -> None:
    assert 'DEVICE = "cpu"\n' in render(device=DeviceType.CPU)
    assert 'DEVICE = "cuda" if torch.cuda.is_available() else "cpu"\n' in render()


def test_pickled_weights_are_loaded_where_they_were_allowed_and_that_is_said() -> None:
    source = render(pickle=True)
    assert "use_safetensors" not in source
    assert "# Pickle files are loaded where there are no safetensors" in source
    assert "ickle" not in render()


def test_a_kernel_by_others_is_loaded_as_it_was_measured() -> None:
    changes: dict[str, Any] = {"attention": AttentionBackend.HUB_KERNEL, "hub_kernel": "owner/kernel"}
    assert "allow_all_kernels=True" in render(trust=True, **changes)
    assert "allow_all_kernels" not in render(**changes)


def test_weights_over_a_limit_stay_in_host_memory() -> None:
    (load,) = [call for call in calls(render(weights_limit_mib=900), "from_pretrained") if "dtype" in call]
    assert load["device_map"] == "'auto'"
    assert load["max_memory"] == "{0: '900MiB', 'cpu': HOST_MEMORY}"


def test_kvrays_own_cache_and_attention_are_carried_along() -> None:
    window = render(cache=CacheStrategy.SLIDING_WINDOW, cache_params=PARAMS[CacheStrategy.SLIDING_WINDOW])
    assert "class SinkWindowLayer(DynamicLayer):" in window
    xformers = render(attention=AttentionBackend.XFORMERS)
    assert "    register()\n" in xformers
    for source in (window, xformers):
        assert "kvray" not in source
        compile(source, "snippet", "exec")


def test_it_stands_alone_and_fits_a_screen() -> None:
    for model_id in ("org/name", "/models/a.gguf", f"random:{TINY}", f"random:{TINY}/config.json"):
        for mode in CompileMode:
            source = render(model_id, cache=CacheStrategy.STATIC, compile=mode, attention=AttentionBackend.SDPA_MATH)
            lines = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
            imported = {line.split()[1].split(".")[0] for line in lines}
            assert imported <= {"__future__", "copy", "sys", "functools", "torch", "transformers"}
            assert max(map(len, source.splitlines())) <= 120 + len(str(TINY))
            assert "trust_remote_code" not in source


def test_foreign_code_is_run_only_where_it_was_measured() -> None:
    for model_id in ("org/name", "/models/a.gguf", "random:/models/a"):
        assert all(
            call["trust_remote_code"] == "True" for call in calls(render(model_id, trust=True), "from_pretrained")
        )
        assert "trust_remote_code" not in render(model_id)


def test_a_path_becomes_absolute_where_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "a.gguf").touch()
    assert f"MODEL = {str(tmp_path / 'model')!r}" in render("model")
    assert f"MODEL = {str(tmp_path / 'model')!r}" in render("random:./model")
    assert f"MODEL = {str(tmp_path)!r}\nGGUF_FILE = 'a.gguf'" in render("a.gguf")


def test_no_file_of_the_model_is_needed_to_write_it() -> None:
    assert "MODEL = '/gone/model'" in render("/gone/model")
    assert "MODEL = '/gone'\nGGUF_FILE = 'a.gguf'" in render("/gone/a.gguf")
    assert "MODEL = '/gone'" in render("random:/gone/config.json")


def test_a_model_without_tokenizer_gets_a_stand_in(tmp_path: Path) -> None:
    assert "class Bytes" in render(f"random:{TINY}")
    assert "class Bytes" not in render("org/name")
    (tmp_path / "tokenizer.json").touch()
    assert "if len(tokenizer) > vocabulary:" in render(f"random:{tmp_path}")


def test_a_batch_is_padded_on_the_left() -> None:
    source = render(batch_size=4)
    assert "def generate(model, tokenizer, prompts, max_new_tokens)" in source
    assert 'tokenizer.padding_side = "left"' in source
    assert "padding" not in render(batch_size=1)


def test_a_static_cache_is_kept_and_emptied_as_in_the_measurement() -> None:
    kept = render(cache=CacheStrategy.STATIC, compile=CompileMode.DEFAULT)
    plain = render(cache=CacheStrategy.STATIC)
    assert "CACHE_TOKENS = (576,)" in kept, "what is compiled is compiled for one length"
    assert "CACHE_TOKENS = (128, 576)" in plain
    for source in (kept, plain):
        assert "cache.reset()" in source
    assert "CACHE_TOKENS" not in render(cache=CacheStrategy.DYNAMIC)


def test_the_weights_of_a_gguf_file_are_unpacked_as_they_were_measured() -> None:
    """Transformers may otherwise keep them packed, where it has kernels for them."""
    source = render("/gone/a.gguf")
    assert {one["dequantize"] for one in calls(source, "GgufConfig")} == {"True"}
    assert "        **DENSE,\n" in source
    assert "DENSE" not in render("org/name")
