"""The conversion of a GGUF file in a process of its own, so that neither the driver nor a measurement holds the weights
a second time."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path

from kvray.engines.hugging_face.gguf import check_gguf, is_converted
from kvray.errors import ModelError
from kvray.models.request import ModelRequest
from kvray.models.source import SourceKind, parse_model_id
from kvray.search_paths import child_environment, python_command

_logger = logging.getLogger("kvray.engines")


def convert_if_gguf(request: ModelRequest) -> None:
    """Convert the GGUF file that `request` names, unless it names another kind of model or one that is converted.

    Raises:
        ModelError: the file cannot be converted.
    """
    source = parse_model_id(request.model_id)
    if source.kind is SourceKind.GGUF and not is_converted(source.local_path):
        check_gguf(source.local_path)
        size_gib = source.local_path.stat().st_size / (1 << 30)
        _logger.info("reading %s (%.1f GiB) once, to convert it to safetensors", source.local_path, size_gib)
        _convert_apart(source.local_path)


def _convert_apart(gguf: Path) -> None:
    command = python_command("-m", "kvray.engines.hugging_face.gguf", str(gguf))
    # On a GPU for which it has kernels Transformers would keep the weights packed.
    environment = {**child_environment(), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ModelError(lines[-1])
