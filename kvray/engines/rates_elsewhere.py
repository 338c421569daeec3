"""A device's rates in the Python in which an engine's trials run, where that is not kvray's own.

`python -m kvray.engines.rates_elsewhere MODULE:CLASS DEVICE THREADS` prints a `Hardware` as JSON on its last line.
"""

from __future__ import annotations

import importlib
import subprocess
import sys

from kvray.candidate import DeviceType
from kvray.engines.base import EngineAdapter
from kvray.forecast.hardware import Hardware
from kvray.search_paths import child_environment, python_command

TIMEOUT_S = 300.0
_UNSET = "-"
"""In place of a number of threads."""


def rates_in(python: str, adapter: EngineAdapter, device: DeviceType, threads: int | None) -> Hardware | None:
    """What `adapter.measure_hardware` measures in the Python at `python`; `None` if it could not be done."""
    kind = type(adapter)
    named = f"{kind.__module__}:{kind.__qualname__}"
    command = python_command("-m", __name__, named, device.value, str(threads or _UNSET), python=python)
    own = child_environment(python=python)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S, env=own)
        return Hardware.from_json(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, OSError, ValueError, LookupError, TypeError):
        return None


def _main(named: str, device: str, threads: str) -> None:
    module, _, name = named.partition(":")
    adapter: EngineAdapter = getattr(importlib.import_module(module), name)()
    measured = adapter.measure_hardware(DeviceType(device), None if threads == _UNSET else int(threads))
    if measured is None:
        sys.exit(f"The engine {adapter.name} could not measure this device.")
    sys.stdout.write("\n" + measured.to_json().replace("\n", ""))


if __name__ == "__main__":
    _main(*sys.argv[1:])
