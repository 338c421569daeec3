"""Whose Python code a model may bring, once the user trusts it: not that of a folder which merely lies in the working
folder under the name of a hub repository. Transformers takes such a folder before it asks the hub."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from kvray.engines.base import ModelRequest
from kvray.errors import ModelError

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FILES = ("config.json", "tokenizer_config.json", "processor_config.json", "generation_config.json")


def check_code_source(request: ModelRequest, folder: Path) -> None:
    """Refuse, where the model's code would run, what could be another's: the name of a hub repository that is a folder
    here, for the model in `folder` itself or for the repository that has its code.

    Raises:
        ModelError
    """
    if not request.trust_remote_code:
        return
    name = request.model_id
    if _HUB_ID.fullmatch(name) and Path(name).is_dir():
        raise ModelError(
            f"{name!r} is a folder in the working folder, and could be a model of the hub: with --trust-remote-code it "
            "must be clear whose code is to run.",
            hint=f"Write './{name}' for the folder; for the hub's, start kvray in another folder.",
        )
    for repository in _repositories(folder):
        if not Path(repository).is_absolute() and Path(repository).is_dir():
            raise ModelError(
                f"Model {name!r} takes its code from the hub's {repository!r}, and a folder of that name lies in the "
                "working folder, which Transformers would take instead.",
                hint="Start kvray in another folder.",
            )


def _repositories(folder: Path) -> Iterator[str]:
    """The `org/name` of each `org/name--module.Class`."""
    for file in _FILES:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            known = json.loads((folder / file).read_text(encoding="utf-8"))
            mapped = known.get("auto_map") if isinstance(known, dict) else None
            for one in mapped.values() if isinstance(mapped, dict) else ():
                for reference in one if isinstance(one, list) else [one]:
                    if isinstance(reference, str) and "--" in reference:
                        yield reference.partition("--")[0]
