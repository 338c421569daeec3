"""How fast this CPU copies and multiplies, for forecasts: a second, in a process of its own, by numpy.

`python -m kvray.engines.llama_cpp.device_rates THREADS` prints a `Hardware` as JSON. llama.cpp multiplies with code of
its own, whose rates are near those of a good BLAS; forecasts need no more.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from kvray.candidate import DeviceType, DType
from kvray.engines.rates_process import print_rates, rates_from
from kvray.forecast.hardware import Hardware
from kvray.probes.cpu import PeakRss
from kvray.probes.disturbance import TrialWatch
from kvray.search_paths import child_environment, python_command

TIMEOUT_S = 60.0
LAYER_S = 2e-5
"""Seconds for which threads meet between the twenty or so operations of a layer: about a microsecond each."""
_MIB = 2**20
_COPIED_BYTES = 256 * _MIB
_SQUARE = 1024
_SHARE_S = 0.15
_LEAST_CALLS = 3


def measure_apart(threads: int, environment: Mapping[str, str]) -> Hardware | None:
    """The rates with so many threads; `None` if the process fails or takes too long."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    command = python_command("-m", __name__, str(threads))
    own = {**environment, **child_environment(), **limits}
    return rates_from(command, environment=own, timeout_s=TIMEOUT_S)


def measure(threads: int) -> Hardware:
    """The rates of this process."""
    run = TrialWatch(DeviceType.CPU).start_run()
    resident_mib = _resident_mib()
    copy_bytes_s = _copy_rate(threads)
    return Hardware(
        device=DeviceType.CPU,
        copy_bytes_s=copy_bytes_s,
        matmul_flops_s={DType.FLOAT32: _matmul_rate()},
        stream_bytes_s={DType.FLOAT32: copy_bytes_s},
        layer_s=LAYER_S,
        step_s=0.0,
        resident_mib=resident_mib,
        disturbance=run.finish().disturbance,
    )


def _resident_mib() -> float:
    """With the library loaded, as in a trial's process before it loads a model."""
    import llama_cpp.llama_cpp  # noqa: F401

    rss = PeakRss()
    rss.reset()
    return rss.read_mib()


def _copy_rate(threads: int) -> float:
    """Bytes read and written per second by `threads` that copy a part each."""
    import numpy as np

    source = np.zeros(_COPIED_BYTES, dtype=np.uint8)
    target = np.ones_like(source)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(max_workers=threads) as pool:
        return 2 * source.nbytes / _seconds(lambda: list(pool.map(lambda part: np.copyto(*part), parts)))


def _matmul_rate() -> float:
    import numpy as np

    left = np.ones((_SQUARE, _SQUARE), dtype=np.float32)
    return 2.0 * _SQUARE**3 / _seconds(lambda: left @ left)


def _seconds(work: Callable[[], object]) -> float:
    """Seconds of one call: the fastest of several after a warm-up, because whatever else runs here only adds."""
    work()
    spent: list[float] = []
    while len(spent) < _LEAST_CALLS or sum(spent) < _SHARE_S:
        started = time.perf_counter()
        work()
        spent.append(time.perf_counter() - started)
    return min(spent)


if __name__ == "__main__":
    print_rates(measure(int(sys.argv[1])))
