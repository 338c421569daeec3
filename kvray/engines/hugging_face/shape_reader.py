"""A model's sizes as Transformers' config tells them, for engines that do not describe models by Transformers.

`python -m kvray.engines.hugging_face.shape_reader FOLDER` prints them as JSON, without importing torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kvray.engines.hugging_face.hidden_torch import hide_torch
from kvray.engines.hugging_face.quiet import quiet_library
from kvray.engines.hugging_face.shapes import model_shape, unknown_because
from kvray.errors import ModelError, sentence_of
from kvray.forecast.shape import LayerShape, ModelShape
from kvray.search_paths import child_environment, python_command

TIMEOUT_S = 60.0
_NO_TRANSFORMERS = "Transformers, which reads its sizes from its config, is not installed beside kvray"


@dataclass(frozen=True, kw_only=True)
class FoundShape:
    """What a config tells: `shape`, or why it is `unknown`, as the end of a sentence about the model."""

    shape: ModelShape | None = None
    unknown: str | None = None


def found_shape(folder: Path) -> FoundShape:
    """The sizes of the model whose config.json lies in `folder`. Code that comes with a model is never run for it."""
    if find_spec("transformers") is None:
        return FoundShape(unknown=_NO_TRANSFORMERS)
    if "torch" in sys.modules and "transformers" in sys.modules:
        return _read(folder)  # both are here already, so that a process of its own would only take time
    command = python_command("-m", __name__, str(folder))
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S, env=child_environment()
        )
        told = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return FoundShape(unknown="its config cannot be read by Transformers")
    return FoundShape(shape=shape_of_table(told["shape"]), unknown=told["unknown"])


def shape_of_table(values: Mapping[str, Any] | None) -> ModelShape | None:
    """The inverse of `asdict`."""
    if values is None:
        return None
    layers = tuple(LayerShape(**layer) for layer in values["layers"])
    return ModelShape(**{**values, "layers": layers})


def _read(folder: Path) -> FoundShape:
    from transformers import AutoConfig

    try:
        with quiet_library():
            config = AutoConfig.from_pretrained(folder)
        return FoundShape(shape=model_shape(config), unknown=unknown_because(config))
    except ModelError as error:
        return FoundShape(unknown=f"its config cannot be read: {error.message}")
    except Exception as error:  # noqa: BLE001  (a config is outside input, and every class checks its own in its own way)
        return FoundShape(unknown=f"its config cannot be read: {sentence_of(error)}".rstrip("."))


if __name__ == "__main__":
    hide_torch()
    sys.stdout.write(json.dumps(asdict(_read(Path(sys.argv[1])))))
