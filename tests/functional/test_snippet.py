"""The generated program, run: it does what was measured, with the library alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers_samples import load, make_candidate, save_tiny_model, write_tiny_gguf

from kvray.candidate import Candidate
from kvray.engines.base import ModelRequest
from kvray.engines.transformers import TransformersAdapter
from kvray.engines.transformers.gguf import converted_gguf
from kvray.workload import Cell

PROMPT = "It was the best of times, it was the worst of times, it was"
TOKENS = 12
RUNNER = Path(__file__).parent / "run_snippets.py"


def write_snippet(path: Path, model_id: str, candidate: Candidate) -> Path:
    # For the compiled one the size of the cache is part of what was compiled: its prompt is a token per byte.
    cell = Cell(len(PROMPT.encode()), TOKENS, candidate.batch_size)
    source = TransformersAdapter().render_snippet(ModelRequest(model_id=model_id), candidate=candidate, cell=cell)
    path.write_text(source, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory,
    demo_model: Path,
    tiny_model: str,
    cache_folder: Path,
    environment: dict[str, str],
) -> dict[str, dict[str, Any]]:
    """What each snippet did and what kvray measured, all in one process."""
    folder = tmp_path_factory.mktemp("snippets")
    with pytest.MonkeyPatch.context() as variables:
        variables.setenv("KVRAY_CACHE", str(cache_folder))
        demo_folder = converted_gguf(demo_model)
    samples = save_tiny_model(folder / "model", do_sample=True, temperature=5.0, repetition_penalty=1.5)
    chosen: dict[str, tuple[str, Candidate]] = {
        "gguf": (str(write_tiny_gguf(folder / "tiny.gguf")), make_candidate("static", "sdpa_math", "bfloat16")),
        "folder": (str(demo_folder), make_candidate("dynamic", "sdpa_flash", "float32")),
        "batch": (str(samples), make_candidate("static", "eager", "float32", batch_size=2)),
        "random": (tiny_model, make_candidate("dynamic", "sdpa", "bfloat16")),
        "compiled": (tiny_model, make_candidate("static", "sdpa", "float32", compile="default")),
        "window": (str(samples), make_candidate("sliding_window(window=24,sinks=4)", batch_size=2)),
        "quantized": (tiny_model, make_candidate("quantized(backend=hqq,nbits=4,q_group_size=16)")),
        "pieces": (str(samples), make_candidate("static(max_cache_len=300)", prefill_chunk=16)),
    }
    cases = [
        {
            "path": str(write_snippet(folder / f"{name}.py", model_id, candidate)),
            "model_id": model_id,
            "candidate": candidate.to_dict(),
            "prompt": [PROMPT, PROMPT[::-1]] if candidate.batch_size > 1 else PROMPT,
            "tokens": TOKENS,
        }
        for name, (model_id, candidate) in chosen.items()
    ]
    (folder / "cases.json").write_text(json.dumps(cases))
    done = subprocess.run(
        [sys.executable, str(RUNNER), str(folder / "cases.json")],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env={
            **environment,
            **TransformersAdapter().process_environment(),
            "KVRAY_CACHE": str(cache_folder),
            "OMP_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(chosen, json.loads(done.stdout), strict=True))


NAMES = ("gguf", "folder", "batch", "random", "compiled", "window", "quantized", "pieces")


@pytest.mark.parametrize("name", NAMES)
def test_the_snippet_generates_exactly_the_measured_tokens(name: str, outcomes: dict[str, dict[str, Any]]) -> None:
    seen = outcomes[name]
    assert [len(row) for row in seen["tokens"]] == [TOKENS] * (2 if name in ("batch", "window") else 1)
    assert seen["tokens"] == seen["measured"]
    assert seen["repeats"], "the second call answers as the first"


@pytest.mark.parametrize(
    ("name", "cache_class", "attention", "kernel", "dtype"),
    [
        ("gguf", "StaticCache", "sdpa", "sdpa_math", "bfloat16"),
        ("folder", "DynamicCache", "sdpa", "sdpa_flash", "float32"),
        ("batch", "StaticCache", "eager", "eager", "float32"),
        ("random", "DynamicCache", "sdpa", "sdpa_flash", "bfloat16"),
        ("compiled", "StaticCache", "sdpa", "sdpa_flash", "float32"),
        ("window", "SlidingWindowCache", "sdpa", "sdpa_flash", "float32"),
        ("quantized", "QuantizedCache", "sdpa", "sdpa_flash", "float32"),
        ("pieces", "StaticCache", "sdpa", "sdpa_flash", "float32"),
    ],
)
def test_the_snippet_runs_the_measured_cache_kernel_and_dtype(
    name: str, cache_class: str, attention: str, kernel: str, dtype: str, outcomes: dict[str, dict[str, Any]]
) -> None:
    seen = outcomes[name]
    assert seen["cache_class"] == cache_class
    assert seen["attn_implementation"] == attention
    assert seen["kernels"] == [kernel]
    assert seen["dtype"] == dtype


def test_only_the_compiled_snippet_compiles_and_keeps_its_cache(outcomes: dict[str, dict[str, Any]]) -> None:
    assert {name for name in NAMES if outcomes[name]["compiled"]} == {"compiled"}
    assert {name for name in NAMES if outcomes[name]["same_cache"]} == {"compiled"}


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
        timeout=60,
        cwd=tmp_path / "elsewhere",
        env={**environment, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    expected = " ".join(str(byte) for byte in PROMPT.encode()) if kind == "a bare config" else PROMPT
    assert done.stdout.startswith(expected)
    assert len(done.stdout) > len(expected) + 1


@pytest.mark.parametrize("cache", [pytest.param("paged", marks=pytest.mark.slow), "sliding_window(window=24,sinks=4)"])
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
