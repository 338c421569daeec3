"""A model's configuration without the seconds that importing torch takes.

`python -m kvray.engines.transformers.outline REQUEST FOLDER` reads it in a process from which torch is hidden:
Transformers then offers its configuration classes alone, at once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kvray.candidate import AttentionBackend, AttentionChoice, DType
from kvray.engines.base import ModelInfo, ModelRequest
from kvray.engines.hugging_face.hidden_torch import hide_torch
from kvray.engines.hugging_face.model_folder import config_path
from kvray.engines.hugging_face.shape_reader import shape_of_table
from kvray.engines.hugging_face.shapes import layer_kinds
from kvray.engines.transformers import description
from kvray.engines.transformers.architecture import OtherKindError, is_known_decoder
from kvray.engines.transformers.class_source import declared_attentions
from kvray.errors import ModelError
from kvray.search_paths import child_environment, python_command

_INFO, _REFUSAL = "info", "refusal"
"""What the process tells: one of the two."""


def outline_model(request: ModelRequest) -> ModelInfo | None:
    """What `description.describe` says. `None` where the config needs more than a look: it brings its own code, is of a
    type that has to be tried, or cannot be read so, for whatever reason.

    Raises:
        ModelError: there is no config, or it says that the model is no decoder.
    """
    if request.trust_remote_code:
        return None
    folder = config_path(request)
    command = python_command("-m", __name__, json.dumps(asdict(request)), str(folder))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=child_environment())
    if done.returncode != 0:
        return None
    told = json.loads(done.stdout)
    if (refusal := told.get(_REFUSAL)) is not None:
        raise OtherKindError(refusal["message"], hint=refusal["hint"])
    return _info(told[_INFO])


def _info(values: dict[str, Any]) -> ModelInfo:
    shape = shape_of_table(values.pop("shape"))
    kinds, notes = tuple(values.pop("layer_kinds")), tuple(values.pop("notes"))
    missing = tuple(AttentionBackend(one) for one in values.pop("missing_attentions"))
    attention, kernel = values.pop("default_attention").values()
    return ModelInfo(
        **{**values, "native_dtype": DType(values["native_dtype"])},
        default_attention=AttentionChoice(AttentionBackend(attention), kernel),
        missing_attentions=missing,
        layer_kinds=kinds,
        notes=notes,
        shape=shape,
    )


def _main(request: ModelRequest, folder: Path) -> None:
    hide_torch()
    try:
        config = description.read_config(request, folder)
    except OtherKindError as error:
        _tell(_REFUSAL, {"message": error.message, "hint": error.hint})
        return
    if not is_known_decoder(config):
        sys.exit("What this type of model does has to be tried, which takes torch.")
    missing = declared_attentions(config)
    if missing is None:
        sys.exit("What attention this type of model has takes an import to know.")
    with description.config_errors(request):
        kinds = layer_kinds(config.get_text_config(decoder=True))
    info = description.told(request, folder, config, layer_kinds=kinds, missing=missing)
    _tell(_INFO, asdict(info))


def _tell(what: str, values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({what: values}))


if __name__ == "__main__":
    try:
        _main(ModelRequest(**json.loads(sys.argv[1])), Path(sys.argv[2]))
    except ModelError as error:
        sys.exit(str(error))
