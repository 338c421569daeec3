"""A device's rates, measured by a process of its own, which prints a `Hardware` as JSON on its last line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence

from kvray.forecast.hardware import Hardware


def rates_from(command: Sequence[str], *, environment: Mapping[str, str], timeout_s: float) -> Hardware | None:
    """What the process `command` measures; `None` if it fails or takes too long."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=timeout_s, env=dict(environment)
        )
        return Hardware.from_json(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, OSError, ValueError, LookupError, TypeError):
        return None


def print_rates(measured: Hardware) -> None:
    """For that process: libraries may have written lines of their own, so ours is the last."""
    sys.stdout.write("\n" + measured.to_json().replace("\n", ""))
