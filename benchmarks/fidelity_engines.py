"""The sides of each engine that `fidelity.py` can compare: its candidates, its plain program, its public tool."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from fidelity_sides import Samples, Sides
from overhead import demo_model

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DType
from kvray.engines.base import ModelRequest
from kvray.engines.hugging_face.model_folder import weights_path
from kvray.engines.llama_cpp.threads import default_threads
from kvray.engines.transformers import TransformersAdapter
from kvray.workload import Cell

TOOL = "optimum-benchmark"
TOOL_PACKAGES = ("optimum-benchmark==0.6.0", "transformers==4.57.6", f"torch=={version('torch').partition('+')[0]}")
PROMPT_TEXT = str(files("kvray.engines").joinpath("prompt_text.txt"))
LLAMA_TOOLS = Path(__file__).parent.parent / ".llama-tools" / "bin"
"""Where `make llama-tools` puts llama.cpp's own programs."""


class TransformersSides(Sides):
    """`model.generate()`, and optimum-benchmark where an interpreter that holds it is given."""

    engine = "transformers"
    plain_name = "plain generate"

    def __init__(self, *, tool_python: Path | None = None, **given: Any) -> None:
        for name, value in {**TransformersAdapter().process_environment(), "HF_HUB_OFFLINE": "1"}.items():
            os.environ.setdefault(name, value)
        self._tool_python = tool_python
        # The GGUF file is converted here, so that every side reads the same safetensors.
        folder = str(weights_path(ModelRequest(model_id=demo_model())))
        super().__init__(folder, tool_name=" ".join(TOOL_PACKAGES) if tool_python else None, **given)

    def candidates(self) -> list[Candidate]:
        """What a user can ask of plain `generate` by name: caches × attentions × dtypes."""
        caches = (CacheStrategy.DYNAMIC, CacheStrategy.STATIC)
        attentions = (AttentionBackend.SDPA, AttentionBackend.EAGER, AttentionBackend.SDPA_MATH)
        return [
            Candidate(engine=self.engine, cache=cache, attention=attention, dtype=dtype)
            for cache, attention, dtype in itertools.product(caches, attentions, (DType.FLOAT32, DType.BFLOAT16))
        ]

    def plain(self, candidate: Candidate) -> Samples:
        """Transformers alone."""
        return self.in_process(
            sys.executable,
            "plain_harness.py",
            text=PROMPT_TEXT,
            dtype=candidate.dtype,
            attention=candidate.attention.partition("_")[0],
            kernel="MATH" if candidate.attention is AttentionBackend.SDPA_MATH else None,
            cache="static" if candidate.cache is CacheStrategy.STATIC else None,
            cells=[(cell.context_tokens, cell.output_tokens) for cell in self._cells],
        )

    def tool_takes(self, candidate: Candidate) -> bool:
        """Its names for caches and kernels are few."""
        is_known = candidate.cache is CacheStrategy.DYNAMIC and candidate.attention is AttentionBackend.SDPA
        return super().tool_takes(candidate) and is_known

    def tool(self, candidate: Candidate) -> Samples:
        """The public tool, on the last cell."""
        cell = self._cells[-1]
        return self.in_process(
            str(self._tool_python),
            "tool_harness.py",
            dtype=candidate.dtype,
            attention=candidate.attention,
            cell=(cell.context_tokens, cell.output_tokens),
        )


class LlamaSides(Sides):
    """A loop over the C API, and `llama-bench` where it is found."""

    engine = "llama_cpp"
    plain_name = "plain C API"

    def __init__(self, **given: Any) -> None:
        self._bench = program("llama-bench")
        super().__init__(demo_model(), tool_name="llama-bench" if self._bench else None, **given)

    def candidates(self) -> list[Candidate]:
        """Flash attention on and off, and two quantised types of keys and values."""
        plain: dict[str, Any] = {"engine": self.engine, "cache": CacheStrategy.STATIC, "dtype": DType.FLOAT32}
        quantised: dict[str, Any] = {**plain, "cache": CacheStrategy.QUANTIZED, "attention": AttentionBackend.FLASH}
        return [
            Candidate(**plain, attention=AttentionBackend.FLASH),
            Candidate(**plain, attention=AttentionBackend.EAGER),
            *(Candidate(**quantised, settings=(("type_k", kind), ("type_v", kind))) for kind in ("q8_0", "q4_0")),
        ]

    def plain(self, candidate: Candidate) -> Samples:
        """The binding alone."""
        return self.in_process(
            sys.executable,
            "plain_llama.py",
            text=PROMPT_TEXT,
            cells=[(cell.context_tokens, cell.output_tokens) for cell in self._cells],
            **self._options(candidate),
        )

    def tool(self, candidate: Candidate) -> Samples:
        """Reading prompts in one process, then decoding after each of them in another one."""
        (tokens,) = {cell.output_tokens for cell in self._cells}
        contexts = ",".join(str(cell.context_tokens) for cell in self._cells)
        read = self._bench_rows(candidate, "-p", contexts, "-n", "0")
        decoded = self._bench_rows(candidate, "-p", "0", "-n", str(tokens - 1), "-d", contexts)
        return {
            Cell(row["n_prompt"], tokens, 1): {
                "ttft": [ns / 1e6 for ns in row["samples_ns"]],
                "decode": list(after["samples_ts"]),
                "itl": [ns / 1e6 / after["n_gen"] for ns in after["samples_ns"]],
            }
            for row, after in zip(read, decoded, strict=True)
        }

    def _bench_rows(self, candidate: Candidate, *tests: str) -> list[dict[str, Any]]:
        """One per test, in the order of the contexts."""
        asked = self._options(candidate)
        command = [str(self._bench), "-m", self._model, "-o", "json", "-r", str(self._profile.repeats), *tests]
        command += ["-t", str(asked["threads"]), "-fa", str(int(asked["flash"]))]
        command += ["-ctk", asked["type_k"], "-ctv", asked["type_v"]]
        rows: list[dict[str, Any]] = json.loads(self.output(command))
        for row in rows:
            self._check_threads(row["n_threads"])
        return rows

    @staticmethod
    def _options(candidate: Candidate) -> Mapping[str, Any]:
        return {
            "flash": candidate.attention is AttentionBackend.FLASH,
            "type_k": candidate.setting("type_k") or "f16",
            "type_v": candidate.setting("type_v") or "f16",
            "threads": candidate.setting("threads") or default_threads(),
        }


class VllmSides(Sides):
    """vLLM's own step loop. Starting an engine takes most of a minute, so there are two candidates.

    Args:
        python: the Python that holds vLLM.
    """

    engine = "vllm"
    plain_name = "plain vllm.LLM"

    def __init__(self, *, python: Path, **given: Any) -> None:
        if not python.exists():
            sys.exit(f"{python} is not there: make vllm-env makes it, or name another one with --engine-python")
        self._python = str(python)
        # The GGUF file is converted here, so that both sides read the same safetensors.
        super().__init__(str(weights_path(ModelRequest(model_id=demo_model()))), python=self._python, **given)

    def candidates(self) -> list[Candidate]:
        """Without compilation, which would take minutes."""
        paged: dict[str, Any] = {"cache": CacheStrategy.PAGED, "attention": AttentionBackend.FLASH}
        off = (("enable_prefix_caching", False),)
        return [
            Candidate(engine=self.engine, dtype=dtype, settings=off, **paged)
            for dtype in (DType.BFLOAT16, DType.FLOAT32)
        ]

    def plain(self, candidate: Candidate) -> Samples:
        """vLLM alone."""
        return self.in_process(
            self._python,
            "plain_vllm.py",
            text=PROMPT_TEXT,
            options={"dtype": candidate.dtype.value, "enforce_eager": True, "kv_cache_memory_bytes": 1 << 30},
            cells=[(cell.context_tokens, cell.output_tokens) for cell in self._cells],
        )

    def tool(self, candidate: Candidate) -> Samples:
        """None takes part."""
        raise NotImplementedError(candidate)


def program(name: str) -> str | None:
    """One of llama.cpp's own programs: built by `make llama-tools`, or found on the path."""
    return shutil.which(name, path=os.pathsep.join([str(LLAMA_TOOLS), os.environ.get("PATH", "")]))


def tool_python(folder: Path) -> Path:
    """The interpreter of optimum-benchmark's environment; the environment is made if it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True, symlinks=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *TOOL_PACKAGES], check=True, stdout=sys.stderr)
    return python
