"""Every option of every command in any combination, and what may stand for a model."""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from hostile_values import damaged, mostly, rarely, texts
from hypothesis import strategies as st
from promises import CELL, Place, fuzzes

from kvray.candidate import AttentionBackend, CacheStrategy, CompileMode, DeviceType, DType
from kvray.cli.app import COMMANDS
from kvray.engines.base import ModelRequest
from kvray.engines.registry import get_engine
from kvray.errors import KvrayError
from kvray.workload import list_profiles

ASSETS = Path(__file__).parents[1] / "assets"
RUN_ID = "20261127-023230-e83e"
HERE = "@here@"
"""Stands for the folder of the inputs until one is fed."""
# fmt: off
WORDS = (
    *(value.value for axis in (AttentionBackend, CacheStrategy, CompileMode, DeviceType, DType) for value in axis),
    *list_profiles(), "none", "on", "512", "16,4", "8GiB", "7.5 gb", "20m", "1.5h", "90s", "0s", "1e3", "fake",
    "latency", "transformers", "default", "full", "grid", "asha", "optuna", "model", RUN_ID, "t-1", "#", "a#b#c",
    "none,512", "512,none", "9" * 20, "quantized(nbits=4)", "sliding_window(window=8)", "owner/kernel",
    *(f"{HERE}/{name}" for name in ("plan.json", "space.yaml", "missing", "")),
)
PARTS = (
    f"random:{HERE}/model", "random:", "random:random:", "org/name", "a/b/c", "name", "", ".", "..", "/", "~", "~/x",
    "fake:ok", ":", f"{HERE}/model", f"{HERE}/model/config.json", f"{HERE}/loop", f"{HERE}/empty", "x.gguf", "x.GGUF",
    f"{HERE}/broken.gguf", "/dev/null", "/dev/zero", "/dev/stdin", "/proc/self/mem", "/proc/self/environ",
    "/root/.ssh", "x" * 4096, "/" + "x" * 300, "/".join(["y" * 200] * 30), "a" * 97 + "/b", "org/name.git",
    "-org/name-", "\0",
)
# fmt: on
words = st.sampled_from(WORDS)
numbers = st.sampled_from((-1, 0, 1, 3, 2**31, 2**63, 10**30)).map(str)
values = st.one_of(words, mostly(words, st.tuples(words, words).map(",".join)), texts, numbers)


PARAMETERS: dict[str, list[Any]] = {
    name: typer.main.get_command(importlib.import_module(f"kvray.cli.{name}").app).params for name in COMMANDS
}


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """What could start something is a dry run."""
    name = draw(st.sampled_from((*COMMANDS, "tune", "tune", "forecast")))
    line: list[str] = []
    for parameter in PARAMETERS[name]:
        if parameter.param_type_name == "argument":
            line += draw(_positional(parameter.name))
        elif "--help" not in parameter.opts and draw(rarely(2)):
            line += draw(_option(parameter))
    if draw(rarely()):
        line.insert(draw(st.integers(0, len(line))), draw(texts))
    if name in ("tune", "forecast"):
        line = ["--device", "cpu", *(["--engine", "fake"] if draw(st.booleans()) else []), *line]
    if name == "check":  # a side that cannot be started ends it before anything is measured
        line += ["--output", f"{HERE}/../output/check", "--against", "python=/none/python"]
    if name == "watch":  # of one observation there is nothing to serve, which ends it before anything is measured
        line += ["--output", f"{HERE}/../output/watch", "--once", "--listen", "127.0.0.1:1"]
    return [name, "--dry-run", *line] if name == "tune" else [name, *line]


def _positional(name: str) -> st.SearchStrategy[list[str]]:
    usual = {
        "model": ("fake:ok",),
        "plan": (f"{HERE}/plan.json",),
        "baseline": (f"{HERE}/../output/results", f"{HERE}/plan.json"),
        "name": list_profiles(),
    }
    good = st.sampled_from(usual.get(name, (f"{HERE}/../output/results",))).map(lambda value: [value])
    return mostly(good, values.map(lambda value: [value]), st.just([]))


def _option(parameter: Any) -> st.SearchStrategy[list[str]]:
    options = st.sampled_from((*parameter.opts, *parameter.secondary_opts))
    if parameter.is_flag:
        return options.map(lambda option: [option])
    if "--out" in parameter.opts:
        return values.map(lambda value: ["--out", f"{HERE}/../output/x{value.replace('/', '_')}"])
    return st.tuples(options, values).map(list)


@st.composite
def model_ids(draw: st.DrawFn) -> str:
    pieces = draw(st.lists(st.sampled_from(PARTS) | texts, min_size=1, max_size=3))
    text = draw(st.sampled_from(("", "/", "\\", " "))).join(pieces)
    if draw(rarely(6)):
        data = text.encode("utf-8", errors="surrogatepass")
        return draw(damaged(data)).decode("utf-8", errors="surrogateescape")
    return text


@pytest.fixture(scope="module")
def ready(place: Place) -> Place:
    """Files to name."""
    shutil.copytree(ASSETS / "results_v3", place.output / "results", copy_function=shutil.copyfile)
    shutil.copyfile(ASSETS / "results_v3" / "reports" / RUN_ID / "best_plan.json", place.input / "plan.json")
    (place.input / "space.yaml").write_text("- cache: [static]\n", encoding="utf-8")
    for name in ("model", "empty"):
        (place.input / name).mkdir()
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    (place.input / "model" / "config.json").write_text(json.dumps({"model_type": "llama", **sizes}), encoding="utf-8")
    (place.input / "broken.gguf").write_bytes(b"GGUF")
    (place.input / "loop").symlink_to(place.input / "loop")
    return place


@fuzzes("command_lines", line=command_lines())
def test_a_command_line_ends_with_a_result_or_one_line(line: list[str], ready: Place) -> bool:
    line = [argument.replace(HERE, str(ready.input)) for argument in line]
    (ready.output / "line.json").write_text(json.dumps(line), encoding="utf-8")
    code, _ = ready.cli(*line)
    return code == 0


@fuzzes("model_ids", model_id=model_ids())
def test_a_model_id_is_understood_or_refused(model_id: str, ready: Place) -> bool:
    model_id = model_id.replace(HERE, str(ready.input))
    (ready.output / "model_id.json").write_text(json.dumps(model_id), encoding="utf-8")
    with contextlib.suppress(KvrayError), ready.watched(KvrayError):
        get_engine("transformers").check_model(ModelRequest(model_id=model_id))
    code, _ = ready.cli("tune", *CELL, "--", model_id)
    return code == 0
