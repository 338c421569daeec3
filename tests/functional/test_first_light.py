"""The first run on a GPU host is tried on a CPU, so that no lent second is lost to a slip of the script."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "first_light.sh"


@pytest.mark.slow  # every step; the test beside it runs some
def test_every_step_of_first_light_runs_on_a_cpu(environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [SCRIPT, tmp_path, "--device", "cpu", "--quick"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )

    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "first_light.json").read_text())
    assert figures["checks_wrong"] == 0, done.stdout
    assert figures["kernels_sdpa_math"] == "sdpa_math | sdpa_math"
    assert figures["hang_status"].startswith("timeout: ")
    assert figures["oom_status"] == "needs a GPU"
    assert figures["caches_static"].endswith("StaticCache, StaticLayer×2, bfloat16")
    assert figures["several_tp_same_tokens"] == "True"
    assert figures["engines_llama_cpp_kernels"] == "flash_attn_ext (CPU) | flash_attn_ext (CPU)"
    assert {"demo_s", "kernels_s", "forecasts_s", "energy_s"} <= figures.keys()
    assert (tmp_path / "first_light.txt").read_text() == done.stdout


@pytest.mark.slow
def test_a_step_that_fails_is_a_finding_and_the_next_ones_run(environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [SCRIPT, tmp_path, "--device", "cuda", "--only", "kernels,freed"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**environment, "CUDA_VISIBLE_DEVICES": ""},
    )

    figures = json.loads((tmp_path / "first_light.json").read_text())
    assert figures["checks_wrong"] >= 1, done.stdout
    assert "freed_s" in figures
