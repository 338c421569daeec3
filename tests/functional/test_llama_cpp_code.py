"""The code of a llama.cpp candidate does what its trials measured, and what cannot be measured is one line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DeviceType, DType
from kvray.cli.app import run
from kvray.config import TuneConfig
from kvray.engines.base import ModelRequest
from kvray.engines.llama_cpp import LlamaCppAdapter
from kvray.engines.snippet_case import SnippetCase, SnippetRun, read_answer
from kvray.search_paths import child_environment, python_command
from kvray.tuning.search import TuningSearch
from kvray.workload import Cell, get_profile

pytest.importorskip("llama_cpp")
Kvray = Callable[..., "subprocess.CompletedProcess[str]"]
CELL = Cell(40, 6, 2)
QUANTIZED = Candidate(
    engine="llama_cpp",
    cache=CacheStrategy.QUANTIZED,
    attention=AttentionBackend.FLASH,
    dtype=DType.FLOAT32,
    batch_size=2,
    settings=(("n_batch", 48), ("n_ubatch", 16), ("threads", 1), ("type_k", "q8_0"), ("type_v", "q4_0")),
)


def test_the_code_of_a_candidate_chooses_the_tokens_that_were_measured(demo_model: Path, tmp_path: Path) -> None:
    adapter, request = LlamaCppAdapter(), ModelRequest(model_id=str(demo_model))
    with closing(adapter.load(request, QUANTIZED, DeviceType.CPU, get_profile("ci-micro"))) as model:
        model.prepare(CELL)
        measured, used = model.generate(6).tokens, model.last_used()
    source = adapter.render_snippet(
        request, loader=None, candidate=QUANTIZED, device=DeviceType.CPU, cells=[CELL, Cell(24, 6, 2)]
    )
    case = SnippetCase(
        snippet=tmp_path / "code.py", answer=tmp_path / "answer.json", request=request, cell=CELL, limit_s=200
    )
    case.snippet.write_text(source)
    case.write(tmp_path / "case.json")
    command = python_command("-m", str(adapter.snippet_runner), str(tmp_path / "case.json"))
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
    answer = read_answer(case.answer)
    assert isinstance(answer, SnippetRun), done.stderr
    assert answer.tokens == measured
    assert used is not None
    assert answer.cache_class == used.cache_class
    alone = subprocess.run(python_command(str(case.snippet), "The", "A"), capture_output=True, text=True, check=True)
    assert len(alone.stdout.splitlines()) == 2
    assert not alone.stderr, "llama.cpp's log of thousands of lines is not the program's"


def test_a_sweep_of_several_engines_has_a_default_of_each_and_narrows_only_what_has_the_axis(
    demo_model: Path, tmp_path: Path
) -> None:
    config = TuneConfig(
        model_id=str(demo_model),
        models_for={"fake": "fake:ok"},
        profile=get_profile("ci-micro"),
        device=DeviceType.CPU,
        engine="llama_cpp,fake",
        output_dir=tmp_path,
        settings={"type_k": ("q8_0",), "type_v": ("f16", "q5_1")},
        forecast=False,
    )
    preview = TuningSearch(config=config).preview()
    labels = [one.label for one in preview.space.candidates]
    quantized = "llama_cpp:quantized/{}/float32+type_k:q8_0"
    assert labels[:4] == [
        "llama_cpp:static/flash/float32",
        quantized.format("flash"),
        quantized.format("eager"),
        quantized.format("flash") + "+type_v:q5_1",
    ]
    assert [one.engine for one in preview.defaults] == ["fake"]
    assert [(one.candidate.label, one.reason) for one in preview.space.rejected] == [
        (
            quantized.format("eager") + "+type_v:q5_1",
            "llama.cpp keeps values as q5_1 with flash attention only (quantized-values)",
        )
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--set", "type_v=q8_0", "--attention", "eager"), "llama.cpp keeps values as q8_0 with flash attention only"),
        (("--cache", "sliding_window"), "sliding_window: unknown to this engine"),
        (("--dtype", "bfloat16"), "bfloat16: unknown to this engine"),
        (("--set", "n_gpu_layers=4"), "needs a GPU and llama-cpp-python built for it"),
        (("--set", "type_k=q3_k"), "Unknown type of keys 'q3_k'."),
        (("--set", "poll=101"), "a whole number from 0 to 100"),
    ],
)
def test_what_llama_cpp_does_not_do_is_one_line_before_any_trial(
    arguments: tuple[str, ...],
    told: str,
    demo_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["tune", str(demo_model), "--engine", "llama_cpp", "--profile", "ci-micro", "--dry-run", "--no-forecast"]
    assert run([*asked, "--output", str(tmp_path), *arguments], verbose=False) != 0
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert told in line


@pytest.mark.slow
def test_both_engines_are_ranked_together_on_one_file_and_the_winner_s_code_runs(kvray: Kvray, tmp_path: Path) -> None:
    from transformers_samples import write_tiny_gguf  # imports torch, which nothing else here needs

    model = write_tiny_gguf(tmp_path / "tiny.gguf")
    workload = ("--context", "96", "--output-len", "8", "--repeats", "1", "--confirm", "0", "--no-forecast")
    narrowed = ("--cache", "static", "--attention", "flash,eager", "--dtype", "float32", "--set", "threads=1")
    swept = kvray(
        *("tune", model, "--engine", "transformers,llama_cpp", *workload, *narrowed),
        *("--output", tmp_path / "results", "--json"),
        OMP_NUM_THREADS="1",
    )
    assert swept.returncode == 0, swept.stderr
    told = json.loads(swept.stdout)
    assert [one["engine"] for one in told["engines"]] == ["transformers", "llama_cpp"]
    assert told["code_check"]["outcome"] == "checked", told["code_check"]
    (report,) = (tmp_path / "results").glob("reports/*/report.md")
    text = report.read_text()
    assert "flash_attn_ext (CPU)" in text
    assert "llama_cpp:static/eager/float32" in text
    assert "substituted" not in text
