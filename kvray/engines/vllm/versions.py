"""Which versions of vLLM the engine was tried with: its inner parts change from one to the next."""

from __future__ import annotations

from kvray.errors import EngineError
from kvray.extras import Extra, pip_command
from kvray.probes.environment import library_versions

OLDEST, NEWEST = (0, 32), (0, 33)
"""Minor versions between which it was tried."""


def check_version() -> None:
    """Refuse a vLLM that the engine was never tried with; imports nothing of it.

    Raises:
        EngineError: there is none, or another one.
    """
    installed = library_versions(["vllm"]).get("vllm")
    if installed is None:
        raise EngineError("vLLM is not installed.", hint=f"Install it: {Extra.VLLM.install_command}")
    minor = tuple(int(part) if part.isdigit() else 0 for part in installed.split(".")[:2])
    if not OLDEST <= minor <= NEWEST:
        raise EngineError(
            f"kvray was tried with vLLM {_text(OLDEST)} to {_text(NEWEST)}, this is {installed}.",
            hint=f"Install one of these: {pip_command(f'vllm>={_text(OLDEST)},<{_text((NEWEST[0], NEWEST[1] + 1))}')}",
        )


def _text(minor: tuple[int, int]) -> str:
    return ".".join(map(str, minor))
