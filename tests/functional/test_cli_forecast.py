"""`kvray forecast`: a table in a moment, from a config alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

Kvray = Callable[..., "subprocess.CompletedProcess[str]"]
MEASURED = "kvray: measuring how fast this device copies and multiplies: some seconds"
SMALL_JAMBA = {"num_hidden_layers": 8, "num_experts": 2, "hidden_size": 256, "intermediate_size": 256}
DISTURBED = "The rates are measured again in "


@pytest.fixture(scope="module")
def llama_8b(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The config of Llama-3.1-8B: 16 GB in 16 bits, of which no byte exists."""
    folder = tmp_path_factory.mktemp("llama")
    config = CONFIG_MAPPING["llama"](
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
        dtype="bfloat16",
    )
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return f"random:{folder}"


@pytest.mark.slow
def test_the_first_call_measures_the_device_and_says_so_and_the_next_does_not(
    kvray: Kvray, llama_8b: str, tmp_path: Path
) -> None:
    line = ("forecast", llama_8b, "--device", "cpu", "--context", "1024", "--output-len", "64", "--memory", "24000")
    first = kvray(*line, KVRAY_CACHE=str(tmp_path))
    assert first.returncode == 0
    assert first.stderr.startswith(MEASURED + "\n")
    second = kvray(*line, KVRAY_CACHE=str(tmp_path))
    assert second.returncode == 0
    assert MEASURED not in second.stderr
    assert second.stdout == first.stdout
    if DISTURBED not in first.stderr:
        assert (first.stderr, second.stderr) == (MEASURED + "\n", "")
    lines = first.stdout.splitlines()
    assert any(re.match(r"dynamic/sdpa/bfloat16 +baseline +yes +[\d,.]+ +[\d,.]+ +1[56],\d{3}$", one) for one in lines)
    assert any(re.match(r"dynamic/sdpa/float32 +no +[\d,.]+ +[\d,.]+ +3[01],\d{3}$", one) for one in lines)
    limits = lines[lines.index("Longest prompt that fits, with 64 new tokens after it and sdpa attention") + 2 :]
    assert re.match(r"dynamic +none +[\d,]+$", limits[0]) or re.match(r"dynamic +[\d,]+ +none$", limits[0])


def forecast_json(kvray: Kvray, *arguments: str) -> dict[str, Any]:
    done = kvray("forecast", *arguments, "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    shown: dict[str, Any] = json.loads(done.stdout)
    return shown


def test_json_has_numbers_per_candidate_and_cell(kvray: Kvray, tiny_model: str) -> None:
    asked = ("--context", "32,64", "--output-len", "4", "--cache", "dynamic,static", "--dtype", "float32")
    shown = forecast_json(kvray, tiny_model, *asked)
    labels = [one["label"] for one in shown["candidates"]]
    assert labels[0] == "dynamic/sdpa/float32"
    assert "static/sdpa/float32" in labels
    for one in shown["candidates"]:
        assert one["objection"] is None
        assert [cell["cell"] for cell in one["cells"]] == [[32, 4, 1], [64, 4, 1]]
        assert all(cell["ttft_ms"] > 0 and cell["decode_tok_s"] > 0 for cell in one["cells"])
        assert one["peak_mib"] > shown["hardware"]["resident_mib"] > 0
    assert {one["cache"] for one in shown["longest_contexts"]} == {"dynamic", "static"}


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        pytest.param(
            "jamba",
            SMALL_JAMBA,
            "Nothing can be forecast of random:model: kvray has no formulas for models of type 'jamba'.",
            marks=pytest.mark.slow,
        ),
        (
            "llama",
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "Nothing can be forecast of random:model: its weights are packed with GPTQ, so that a dtype does not tell "
            "their bytes.",
        ),
    ],
)
def test_a_model_that_cannot_be_forecast_is_refused_with_the_reason(
    kvray: Kvray, tmp_path: Path, kind: str, settings: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG_MAPPING[kind]().to_dict(), **settings}))
    done = kvray("forecast", f"random:{folder}", "--device", "cpu", "--context", "16", "--output-len", "4")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.splitlines()[-1] == f"kvray: {message} kvray tune measures it."


def test_the_rates_are_those_of_the_engines_own_python_where_one_is_named(kvray: Kvray, tiny_model: str) -> None:
    done = kvray("forecast", tiny_model, "--device", "cpu", "--engine-python", "transformers=/nowhere/python")
    assert "The Python of engine 'transformers', '/nowhere/python', cannot be started" in done.stderr


def test_memory_to_plan_with_stands_for_this_machines(kvray: Kvray, llama_8b: str) -> None:
    line = ("forecast", llama_8b, "--device", "cpu", "--context", "1024", "--output-len", "64", "--memory", "80GiB")
    done = kvray(*line)
    assert done.returncode == 0
    assert "free memory 81,920 MiB" in done.stdout
    assert not re.search(r"can be used|measured all the same", done.stderr)


def test_nothing_that_takes_seconds_to_import_is_imported(
    environment: dict[str, str], kvray: Kvray, tiny_model: str
) -> None:
    forecast_json(kvray, tiny_model, "--context", "32", "--output-len", "4")  # measures the device
    code = (
        "import sys, kvray.cli.app as app\n"
        f"line = ['forecast', {tiny_model!r}, '--device', 'cpu', '--context', '32', '--output-len', '4']\n"
        "assert app.run(line, verbose=False) == 0\n"
        "print('loaded', sorted({'torch', 'ray', 'pyarrow', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, timeout=240
    )
    assert done.stderr.splitlines()[-1] == "loaded []"
