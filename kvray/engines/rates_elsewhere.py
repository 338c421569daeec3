"""A device's rates in the Python in which an engine's trials run, where that is not kvray's own.

`python -m kvray.engines.rates_elsewhere MODULE:CLASS DEVICE THREADS` prints a `Hardware` as JSON on its last line.
"""

from __future__ import annotations

import importlib
import sys

from kvray.candidate import DeviceType
from kvray.engines.base import EngineAdapter
from kvray.engines.rates_process import print_rates, rates_from
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
    return rates_from(command, environment=own, timeout_s=TIMEOUT_S)


def _main(named: str, device: str, threads: str) -> None:
    module, _, name = named.partition(":")
    adapter: EngineAdapter = getattr(importlib.import_module(module), name)()
    measured = adapter.measure_hardware(DeviceType(device), None if threads == _UNSET else int(threads))
    if measured is None:
        sys.exit(f"The engine {adapter.name} could not measure this device.")
    print_rates(measured)


if __name__ == "__main__":
    _main(*sys.argv[1:])
