"""The generated program, run: it does what was measured, with the library alone."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from transformers_samples import (
    change_config,
    give_own_code,
    load,
    make_candidate,
    pickle_weights,
    save_image_text_config,
    save_tiny_model,
    write_tiny_gguf,
)

from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import ModelRequest
from kvray.engines.hugging_face.gguf import converted_gguf
from kvray.engines.transformers import TransformersAdapter
from kvray.engines.transformers.arguments import call_arguments
from kvray.workload import Cell

PROMPT = "It was the best of times, it was the worst of times, it was"
TOKENS = 12
RUNNER = Path(__file__).parent / "run_snippets.py"


def measured_cell(candidate: Candidate) -> Cell:
    """A token per byte is more than any of the prompts has, so that all calls take the cache of the measured length."""
    return Cell(len(PROMPT.encode()), TOKENS, candidate.batch_size)


def write_snippet(path: Path, request: ModelRequest | str, candidate: Candidate, *, loader: str | None = None) -> Path:
    source = TransformersAdapter().render_snippet(
        ModelRequest(model_id=request) if isinstance(request, str) else request,
        loader=loader,
        candidate=candidate,
        device=DeviceType.CPU,
        cells=[measured_cell(candidate)],
    )
    path.write_text(source, encoding="utf-8")
    return path


CANDIDATES = {
    "gguf": make_candidate("static", "sdpa_math", "bfloat16"),
    "folder": make_candidate("dynamic", "sdpa_flash", "float32"),
    "batch": make_candidate("static", "eager", "float32", batch_size=2),
    "random": make_candidate("dynamic", "sdpa", "bfloat16"),
    "compiled": make_candidate("static", "sdpa", "float32", compile="default"),
    "window": make_candidate("sliding_window(window=24,sinks=4)", batch_size=2),
    "quantized": make_candidate("quantized(backend=hqq,nbits=4,q_group_size=16)"),
    "pieces": make_candidate("static(max_cache_len=300)", prefill_chunk=16),
    "pickled": make_candidate("dynamic", "eager"),
    "own code": make_candidate("static", "eager"),
    "token types": make_candidate("static"),
    "no special tokens": make_candidate("dynamic", batch_size=2),
    "other tokenizer": make_candidate(),
    "images": make_candidate("static"),
}
SLOW = {"compiled"}
"""Compiling takes as long as all others together."""
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CANDIDATES]


@pytest.fixture(scope="module")
def requests(
    tmp_path_factory: pytest.TempPathFactory, demo_model: Path, tiny_model: str, cache_folder: Path
) -> dict[str, ModelRequest]:
    """The model of each snippet."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as variables:
        variables.setenv("KVRAY_CACHE", str(cache_folder))
        demo_folder = converted_gguf(demo_model)
    samples = save_tiny_model(folder / "model", do_sample=True, num_return_sequences=2, repetition_penalty=1.5)
    pickled = pickle_weights(save_tiny_model(folder / "pickled"))
    own = give_own_code(save_tiny_model(folder / "own"))
    typed = save_tiny_model(folder / "typed")
    given = ["input_ids", "token_type_ids", "attention_mask"]
    change_config(typed, name="tokenizer_config.json", model_input_names=given)
    bare = save_tiny_model(folder / "bare", has_special_tokens=False)
    smaller = change_config(save_tiny_model(folder / "smaller"), vocab_size=96)
    images = save_image_text_config(folder / "images")
    of_their_own = {
        "gguf": ModelRequest(model_id=str(write_tiny_gguf(folder / "tiny.gguf"))),
        "folder": ModelRequest(model_id=str(demo_folder)),
        "random": ModelRequest(model_id=tiny_model),
        "compiled": ModelRequest(model_id=tiny_model),
        "quantized": ModelRequest(model_id=tiny_model),
        "pickled": ModelRequest(model_id=str(pickled), allow_pickle=True),
        "own code": ModelRequest(model_id=str(own), trust_remote_code=True),
        "token types": ModelRequest(model_id=str(typed)),
        "no special tokens": ModelRequest(model_id=str(bare)),
        "other tokenizer": ModelRequest(model_id=f"random:{smaller}"),
        "images": ModelRequest(model_id=f"random:{images}"),
    }
    return {name: of_their_own.get(name, ModelRequest(model_id=str(samples))) for name in CANDIDATES}


@pytest.fixture(scope="module")
def outcome(
    tmp_path_factory: pytest.TempPathFactory,
    requests: dict[str, ModelRequest],
    cache_folder: Path,
    environment: dict[str, str],
) -> Callable[[str], dict[str, Any]]:
    """What a snippet did and what kvray measured: all quick ones in one process, the slow ones in another."""

    @functools.cache
    def outcomes(names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        folder = tmp_path_factory.mktemp("snippets")
        cases = [case_of(name, requests[name], folder) for name in names]
        (folder / "cases.json").write_text(json.dumps(cases))
        done = subprocess.run(
            [sys.executable, str(RUNNER), str(folder / "cases.json")],
            capture_output=True,
            text=True,
            check=False,
            env={
                **environment,
                **TransformersAdapter().process_environment(),
                "KVRAY_CACHE": str(cache_folder),
                "OMP_NUM_THREADS": "1",
            },
        )
        assert done.returncode == 0, done.stderr
        return dict(zip(names, json.loads(done.stdout), strict=True))

    return lambda name: outcomes(tuple(one for one in CANDIDATES if (one in SLOW) == (name in SLOW)))[name]


def case_of(name: str, request: ModelRequest, folder: Path) -> dict[str, Any]:
    candidate, loader = CANDIDATES[name], "AutoModelForImageTextToText" if name == "images" else None
    return {
        "path": str(write_snippet(folder / f"{name}.py", request, candidate, loader=loader)),
        "request": asdict(request),
        "candidate": candidate.to_dict(),
        "cell": measured_cell(candidate),
        "prompt": [PROMPT, PROMPT[::-1]] if candidate.batch_size > 1 else PROMPT,
        "tokens": TOKENS,
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_snippet_generates_exactly_the_measured_tokens(name: str, outcome: Callable[[str], dict[str, Any]]) -> None:
    seen = outcome(name)
    assert [len(row) for row in seen["tokens"]] == [TOKENS] * CANDIDATES[name].batch_size
    assert seen["tokens"] == seen["measured"]
    assert seen["repeats"], "the second call answers as the first"
    said = seen["said"]
    assert said is None or said[0] == said[1], "a plan's session says what was measured"
    silent = ("random", "compiled", "quantized", "other tokenizer", "images")
    assert (said is None) == (name in silent or CANDIDATES[name].batch_size > 1), "no tokenizer there writes for it"


@pytest.mark.parametrize("name", NAMES)
def test_the_snippet_runs_the_measured_cache_kernel_and_dtype(
    name: str, outcome: Callable[[str], dict[str, Any]]
) -> None:
    seen, candidate = outcome(name), CANDIDATES[name]
    arguments = call_arguments(candidate)
    assert seen["cache_class"] == arguments.cache_class
    assert seen["attn_implementation"] == arguments.attn_implementation
    # On a CPU SDPA runs its flash kernel, as far as it is let to.
    assert seen["kernels"] == ["sdpa_flash" if candidate.attention == "sdpa" else candidate.attention]
    assert seen["dtype"] == candidate.dtype
    expected = {"own code": "OwnForCausalLM", "images": "Mistral3ForConditionalGeneration"}
    assert seen["class"] == expected.get(name, "LlamaForCausalLM")
    assert seen["compiled"] == (name == "compiled")
    assert seen["same_cache"] == candidate.cache.has_fixed_size, "a static cache is kept between calls"


WITHOUT_KVRAY = "import runpy, sys; sys.modules['kvray'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"


@pytest.mark.parametrize("kind", ["a batch of a saved model", "a bare config"])
def test_a_user_runs_it_as_a_script_without_kvray(
    kind: str, tmp_path: Path, tiny_model: str, environment: dict[str, str]
) -> None:
    model_id = tiny_model if kind == "a bare config" else str(save_tiny_model(tmp_path / "model"))
    candidate = make_candidate("static", "sdpa_math", batch_size=1 if kind == "a bare config" else 2)
    script = write_snippet(tmp_path / "script.py", model_id, candidate)
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_KVRAY, str(script), PROMPT],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        cwd=tmp_path / "elsewhere",
        env={**environment, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    expected = " ".join(str(byte) for byte in PROMPT.encode()) if kind == "a bare config" else PROMPT
    assert done.stdout.startswith(expected)
    assert len(done.stdout) > len(expected) + 1


@pytest.mark.slow  # an interpreter of its own
@pytest.mark.parametrize("cache", ["paged", "sliding_window(window=24,sinks=4)"])
def test_what_no_argument_of_generate_gives_is_in_the_script_too(
    cache: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    model_id, candidate = str(save_tiny_model(tmp_path / "model")), make_candidate(cache)
    script = write_snippet(tmp_path / "script.py", model_id, candidate)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_KVRAY, str(script), PROMPT],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**environment, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )
    assert done.returncode == 0, done.stderr
    model = load(model_id, candidate)
    expected = PROMPT + model.complete(PROMPT, TOKENS)
    model.close()
    assert done.stdout.removesuffix("\n") == expected
