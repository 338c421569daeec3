"""kvray with one extra: it brings all that its users need, and nothing of the others."""

from __future__ import annotations

from pathlib import Path

import pytest
from lean_environment import IMPORT_ALL, create_environment, run_in

TINY = f"random:{Path(__file__).parents[1] / 'assets' / 'tiny_llama'}"


@pytest.fixture(scope="module")
def with_tune(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_environment(tmp_path_factory.mktemp("tune") / "environment", "tune")


@pytest.fixture(scope="module")
def with_transformers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_environment(tmp_path_factory.mktemp("transformers") / "environment", "transformers")


@pytest.mark.slow
def test_an_engine_without_torch_is_measured_where_there_is_none(with_tune: Path, tmp_path: Path) -> None:
    absent = run_in(with_tune, tmp_path, "-c", "import importlib.util as u; print(u.find_spec('torch'))")
    assert absent.stdout == "None\n"
    options = ("--context", "64", "--output-len", "4", "--max-trials", "2", "--confirm", "0")
    done = run_in(with_tune, tmp_path, "-m", "kvray", "tune", "fake:ok", "--engine", "fake", *options)
    assert done.returncode == 0, done.stderr
    assert "2 trials launched" in done.stdout
    read = run_in(with_tune, tmp_path, "-m", "kvray", "rank", "kvray_results")
    assert read.returncode == 0, read.stderr


def test_the_engine_transformers_finds_all_that_it_imports(with_transformers: Path, tmp_path: Path) -> None:
    failed = [line.split() for line in run_in(with_transformers, tmp_path, "-c", IMPORT_ALL).stdout.splitlines()]
    assert {library for _, library in failed} == {"pytest"}
    assert all(module.startswith("kvray.testing.") for module, _ in failed)


def test_what_another_extra_brings_is_named_in_the_menu(with_transformers: Path, tmp_path: Path) -> None:
    preview = ("-m", "kvray", "tune", TINY, "--context", "16", "--output-len", "4", "--dry-run")
    done = run_in(with_transformers, tmp_path, *preview)
    assert done.returncode == 0, done.stderr
    asked = run_in(with_transformers, tmp_path, *preview, "--cache", "quantized(backend=hqq,nbits=4)")
    assert asked.returncode != 0
    assert "-m pip install 'kvray[quantized]==0.1.0' brings hqq" in asked.stderr
