"""kvray without extras: everything that reads works, and what measures says in one line which extra it needs."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from lean_environment import IMPORT_ALL, create_environment, run_in

from kvray.errors import EngineError
from kvray.models.request import ModelRequest
from kvray.models.revision import revision_of
from kvray.models.source import parse_model_id

ASSETS = Path(__file__).parents[1] / "assets"
SWEEP, FAKE_SWEEP = "20261127-023230-e83e", "20261127-023553-8bef"
TINY = f"random:{ASSETS / 'tiny_llama'}"
TRANSFORMERS = (
    "The engine transformers needs accelerate, gguf, huggingface_hub, safetensors, torch, transformers, which"
)
RENDERED = """
import json, sys
from kvray.candidate import Candidate, DeviceType
from kvray.engines.registry import get_engine
from kvray.engines.base import ModelRequest
from kvray.workload import Cell
candidates = [Candidate.from_dict(known["candidate"]) for known in json.load(sys.stdin)]
for candidate in candidates:
    source = get_engine(candidate.engine).render_snippet(
        ModelRequest(model_id="o/m"), loader=None, candidate=candidate, device=DeviceType.CPU, cells=[Cell(24, 4, 1)]
    )
    compile(source, "snippet", "exec")
print(len(candidates))
"""
Core = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_environment(tmp_path_factory.mktemp("core") / "environment")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ASSETS / "results_v3", tmp_path / "results", copy_function=shutil.copyfile))


@pytest.fixture
def core(python: Path, tmp_path: Path) -> Core:
    """Run the interpreter of the core environment; returns the completed process."""
    return partial(run_in, python, tmp_path)


@pytest.fixture
def kvray(core: Core) -> Core:
    return lambda *arguments: core("-m", "kvray", *arguments)


def test_nothing_that_measures_is_there(core: Core) -> None:
    absent = ("torch", "transformers", "ray", "scipy", "safetensors", "huggingface_hub", "pandas", "pytest")
    found = core("-c", f"import importlib.util as u; print([n for n in {absent!r} if u.find_spec(n)])")
    assert found.stdout == "[]\n", found.stderr


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--help"], "rank"),
        (["tune", "--help"], "--context"),
        (["forecast", "--help"], "--memory"),
        (["profiles"], "chat-agent"),
        (["rank", "results", "--run", SWEEP], "dynamic/sdpa/float32+chunk:32×2"),
        (["rank", "results", "--run", SWEEP, "--max-vram", "1GiB", "--json"], '"model_id"'),
        (["compare", f"results#{SWEEP}", f"results#{FAKE_SWEEP}"], "These sweeps are not alike"),
        (["apply", f"results/reports/{SWEEP}/best_plan.json"], "use      dynamic/sdpa/float32+chunk:32×2"),
        (["apply", f"results/reports/{SWEEP}/best_plan.json", "--print-snippet"], "from transformers import"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_reads_works(arguments: list[str], shown: str, kvray: Core, results: Path) -> None:
    done = kvray(*arguments)
    assert (done.returncode, shown in done.stdout) == (0, True), (done.stdout, done.stderr)


@pytest.mark.parametrize("run_id", [SWEEP, FAKE_SWEEP])
def test_reports_plan_and_code_are_written_again(run_id: str, kvray: Core, results: Path) -> None:
    written = results / "reports" / run_id
    shutil.rmtree(written)
    done = kvray("report", "results", "--run", run_id)
    assert done.returncode == 0, done.stderr
    names = {"best_plan.json", "optimized_config.py", "ranking.parquet", "report.html", "report.md"}
    assert {path.name for path in written.iterdir()} == names


def test_info_shows_the_machine_and_how_to_get_the_engine(kvray: Core) -> None:
    done = kvray("info")
    assert done.returncode == 0, done.stderr
    assert "Engine transformers" in done.stdout
    assert TRANSFORMERS in " ".join(done.stdout.split())
    assert "-m pip install 'kvray[transformers]==" in " ".join(done.stdout.split())


@pytest.mark.slow  # tests/unit/test_extras.py has the words
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tune", TINY], f"{TRANSFORMERS} are not installed. Install them: "),
        (["tune", TINY, "--dry-run"], f"{TRANSFORMERS} are not"),
        (["tune", TINY, "--search", "optuna"], f"{TRANSFORMERS} are not"),
        (["forecast", TINY], f"{TRANSFORMERS} are not"),
        (
            ["tune", "fake:ok", "--engine", "fake"],
            "Measuring needs ray, scipy, which are not installed. Install them: ",
        ),
        (
            ["tune", "fake:ok", "--engine", "fake", "--search", "optuna", "--dry-run"],
            "Optuna is not installed. Install it: ",
        ),
    ],
    ids=lambda value: " ".join(value[::2]) if isinstance(value, list) else "",
)
def test_what_measures_names_the_extra_that_it_needs(
    arguments: list[str], told: str, kvray: Core, tmp_path: Path
) -> None:
    done = kvray(*arguments)
    assert done.returncode == EngineError.exit_code
    assert done.stderr.startswith(f"kvray: {told}")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("kvray_results*"))


def test_a_plan_says_what_its_model_needs(core: Core, results: Path) -> None:
    code = f"import kvray; kvray.load_plan('results/reports/{SWEEP}/best_plan.json').load()"
    assert f"EngineError: {TRANSFORMERS}" in core("-c", code).stderr


def test_only_rooms_that_measure_import_more_than_the_core_has(core: Core) -> None:
    allowed = {
        "kvray.engines.transformers.": {"torch", "transformers"},
        "kvray.sweep.": {"ray", "scipy"},
        "kvray.analysis.": {"scipy"},  # the model of a search, and nothing that judges
        "kvray.testing.": {"pytest"},
    }
    failed = [line.split() for line in core("-c", IMPORT_ALL).stdout.splitlines()]
    assert len(failed) > len(allowed)
    for module, library in failed:
        assert library in next((libraries for room, libraries in allowed.items() if module.startswith(room)), ()), (
            module
        )


def test_a_models_files_are_found_and_told_apart_without_any_engine(core: Core) -> None:
    request = ModelRequest(model_id=TINY)
    source = parse_model_id(TINY)
    code = (
        "from kvray.models import config_file, folders, request, revision, source; "
        f"asked = request.ModelRequest(model_id={TINY!r}); folder = folders.weights_folder(asked); "
        "config_file.check_config_file(folder / 'config.json'); "
        "print(folder, revision.revision_of(asked, source.parse_model_id(asked.model_id), folder))"
    )
    told = core("-c", code)
    assert told.stdout == f"{source.local_path} {revision_of(request, source, source.local_path)}\n", told.stderr


def test_the_code_of_every_kind_of_candidate_can_be_printed(core: Core) -> None:
    every = json.loads((ASSETS / "candidate_ids.json").read_text(encoding="utf-8"))
    # Those over several GPUs do not say how the model is split, and were never measured.
    known = [one for one in every if one["candidate"].get("parallelism", 1) == 1]
    assert len(known) > 100
    done = core("-c", RENDERED, given=json.dumps(known))
    assert done.stdout == f"{len(known)}\n", done.stderr
