"""The extras of kvray's package, and the one line for a user who lacks one.

The core reads, ranks and reports. What measures comes with `kvray[transformers]` or the extra of another engine.
"""

from __future__ import annotations

import enum
import importlib.util

from kvray.errors import EngineError


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
        return f"pip install 'kvray[{self.value}]'"

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
                hint=f"Install {them} with {self.install_command}.",
            )


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


def missing_extra(error: ModuleNotFoundError) -> EngineError | None:
    """What to tell a user in place of `error`, where an extra would have brought the module; else `None`."""
    module = (error.name or "").partition(".")[0]
    extra = next((one for one in Extra if module in one.modules), None)
    if extra is None:
        return None
    return EngineError(
        f"This needs {module}, which is not installed.", hint=f"Install it with {extra.install_command}."
    )
