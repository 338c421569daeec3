"""The extras of kvray's package, and the command that installs one where a user lacks it.

The core reads, ranks and reports. What measures comes with `kvray[transformers]` or the extra of another engine.
"""

from __future__ import annotations

import enum
import importlib.metadata
import importlib.util
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from kvray.errors import EngineError
from kvray.search_paths import python_command


class Extra(enum.StrEnum):
    """An extra by its name in pyproject.toml."""

    TUNE = "tune"
    TRANSFORMERS = "transformers"
    LLAMA_CPP = "llama-cpp"
    VLLM = "vllm"
    QUANTIZED = "quantized"
    OPTUNA = "optuna"
    CLUSTER = "cluster"
    WATCH = "watch"

    @property
    def install_command(self) -> str:
        """What a user types to get it."""
        return install_command(self)

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules that it brings itself, beside those of the extras that it includes."""
        return _MODULES[self]

    def require(self, user: str) -> None:
        """Refuse to go on where a module of this extra is absent; imports nothing.

        Args:
            user: who needs it, as the subject of a sentence.

        Raises:
            EngineError: names what is missing and how to get it.
        """
        missing = [name for name in self.modules if importlib.util.find_spec(name) is None]
        if missing:
            are, them = ("is", "it") if len(missing) == 1 else ("are", "them")
            raise EngineError(
                f"{user} needs {', '.join(missing)}, which {are} not installed.",
                hint=f"Install {them}: {self.install_command}",
            )


_OF_AN_EXTRA = re.compile(r"(?P<package>[^;]+);.*extra == ['\"](?P<extra>[\w-]+)['\"].*")
_MODULES = {
    Extra.TUNE: ("ray", "scipy"),
    Extra.TRANSFORMERS: ("accelerate", "gguf", "huggingface_hub", "safetensors", "torch", "transformers"),
    Extra.LLAMA_CPP: ("gguf", "llama_cpp"),
    Extra.VLLM: ("vllm",),
    Extra.QUANTIZED: ("hqq", "optimum"),
    Extra.OPTUNA: ("optuna",),
    Extra.CLUSTER: ("aiohttp", "ray", "requests"),
    Extra.WATCH: ("ruptures",),
}


def install_command(*extras: Extra, python: str | None = None) -> str:
    """What a user types to get this kvray with `extras` for the interpreter at the path `python`; `None`: this one.

    It names the source that this kvray was installed from, because no package index may have it. Where the source is
    gone or not known, it names for this interpreter the packages that are absent.
    """
    try:
        installed = importlib.metadata.distribution("kvray")
    except importlib.metadata.PackageNotFoundError:
        return pip_command(_named(extras), python=python)
    source = _source(_origin_of(installed), extras)
    if source is None and python is None:
        source = tuple(_absent_packages(installed.requires or (), extras))
    return pip_command(*(source or (f"{_named(extras)}=={installed.version}",)), python=python)


def pip_command(*arguments: str, python: str | None = None) -> str:
    """What a user types to install `arguments` for the interpreter at the path `python`; `None`: this one."""
    return shlex.join((python or python_command()[0], "-m", "pip", "install", *arguments))


def _origin_of(installed: importlib.metadata.Distribution) -> dict[str, Any]:
    """Where pip found it (PEP 610); empty where that was an index, or nothing is known."""
    try:
        origin = json.loads(installed.read_text("direct_url.json") or "{}")
    except ValueError:
        return {}
    return origin if isinstance(origin, dict) else {}


def _source(origin: dict[str, Any], extras: Iterable[Extra]) -> tuple[str, ...] | None:
    """Arguments of `pip install` for kvray as `origin` has it; `None` where that is a file that is gone, a URL with a
    password, or not known."""
    url = str(origin.get("url", ""))
    parts = urlsplit(url)
    if parts.scheme == "file":
        path = unquote(parts.path)
        editable = ("-e",) if (origin.get("dir_info") or {}).get("editable") else ()
        return (*editable, f"{path}{_in_brackets(extras)}") if Path(path).exists() else None
    if not parts.scheme or parts.password:
        return None
    repository = origin.get("vcs_info")
    if repository:
        url = f"{repository.get('vcs', 'git')}+{url}@{repository.get('commit_id', '')}".rstrip("@")
    folder = f"#subdirectory={origin['subdirectory']}" if origin.get("subdirectory") else ""
    return (f"{_named(extras)} @ {url}{folder}",)


def _absent_packages(requirements: Iterable[str], extras: Iterable[Extra]) -> Iterator[str]:
    """Those of kvray's requirements that `extras` bring and this environment lacks, each once."""
    brought = dict.fromkeys(
        found["package"].strip()
        for one in requirements
        if (found := _OF_AN_EXTRA.fullmatch(one)) and found["extra"] in set(extras)
    )
    for one in brought:
        try:
            importlib.metadata.distribution(re.split(r"[^\w.-]", one)[0])
        except importlib.metadata.PackageNotFoundError:
            yield one


def _named(extras: Iterable[Extra]) -> str:
    return f"kvray{_in_brackets(extras)}"


def _in_brackets(extras: Iterable[Extra]) -> str:
    names = ",".join(dict.fromkeys(extras))
    return f"[{names}]" if names else ""


def missing_extra(error: ModuleNotFoundError) -> EngineError | None:
    """What to tell a user in place of `error`, where an extra would have brought the module; else `None`."""
    module = (error.name or "").partition(".")[0]
    extra = next((one for one in Extra if module in one.modules), None)
    if extra is None:
        return None
    return EngineError(f"This needs {module}, which is not installed.", hint=f"Install it: {extra.install_command}")
