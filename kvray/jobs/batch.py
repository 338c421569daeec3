"""The file of a batch as it goes to a cluster: the local files that it names go along, and it names them there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from kvray.jobs.package import Argument

_FOLDER = "sent"


def batch_argument(path: Path, *, model: Callable[[str], Argument]) -> Argument:
    """The batch file at `path`, which is known to be valid, as an argument of `kvray batch` on a cluster.

    Its paths become those of the job's package, which is the working folder there. They do not depend on where the
    files lie here, so that a batch goes on when the same file is sent again with `--resume`.

    Args:
        model: tells how a model is named there; one that goes along is an `Argument.local`.
    """
    files: dict[Path, str] = {}
    models: dict[str, str] = {}

    def placed(local: Path) -> str:
        return files.setdefault(local, f"{_FOLDER}/{len(files)}/{local.name}")

    def file(text: str) -> str:
        path = Path(text)
        return placed(path.absolute()) if path.suffix and path.is_file() else text

    def named_model(text: str) -> str:
        found = model(text)
        if found.local is None:
            return found.text
        there = found.text + placed(found.local)
        models[there] = text
        return there

    def settings(given: Mapping[str, Any]) -> dict[str, Any]:
        found = dict(given)
        for name in ("space", "candidates"):
            if name in found:
                found[name] = file(found[name])
        if "profiles" in found:
            found["profiles"] = [file(one) for one in found["profiles"]]
        if "model" in found:
            found["model"] = named_model(found["model"])
        if "models_for" in found:
            found["models_for"] = {engine: named_model(one) for engine, one in found["models_for"].items()}
        return found

    content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    if "defaults" in content:
        content["defaults"] = settings(content["defaults"])
    content["models"] = [named_model(one) if isinstance(one, str) else settings(one) for one in content["models"]]
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    beside = {name: local for local, name in files.items()}
    return Argument(local=path.absolute(), content=text, beside=beside, models=models)
