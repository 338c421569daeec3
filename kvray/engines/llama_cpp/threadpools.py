"""Threads that wait for work as busily as the settings say, made as llama.cpp's own tools make them."""

from __future__ import annotations

import ctypes
from typing import Any

from kvray.engines.llama_cpp.binding import native_function
from kvray.engines.llama_cpp.settings import ContextSettings

_MOST_THREADS = 512


class _PoolParams(ctypes.Structure):
    """`ggml_threadpool_params`."""

    _fields_ = (
        ("cpumask", ctypes.c_bool * _MOST_THREADS),
        ("n_threads", ctypes.c_int),
        ("priority", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


class Threadpools:
    """One pool for decoding and one for prompts; a single one where they have as many threads. A build that does not
    offer them makes its own, with llama.cpp's default of `poll`."""

    def __init__(self, context: Any, settings: ContextSettings) -> None:
        self._settings, self._pools = settings, list[Any]()
        params = (ctypes.POINTER(_PoolParams),)
        self._init = native_function("ggml_threadpool_params_init", None, (*params, ctypes.c_int))
        self._new = native_function("ggml_threadpool_new", ctypes.c_void_p, params)
        self._free = native_function("ggml_threadpool_free", None, (ctypes.c_void_p,))
        attach = native_function("llama_attach_threadpool", None, (ctypes.c_void_p,) * 3)
        if attach is None or None in (self._init, self._new, self._free):
            return
        unlike = settings.threads != settings.threads_batch
        for_prompts = self._pool(settings.threads_batch, paused=False) if unlike else None
        attach(context, self._pool(settings.threads, paused=unlike), for_prompts)

    def close(self) -> None:
        """Free them; the context must be freed by then."""
        while self._pools and self._free is not None:
            self._free(self._pools.pop())

    def _pool(self, threads: int, *, paused: bool) -> Any:
        assert self._init is not None
        assert self._new is not None
        params = _PoolParams()
        self._init(ctypes.byref(params), threads)
        params.poll, params.paused = self._settings.poll, paused
        self._pools.append(self._new(ctypes.byref(params)))
        return self._pools[-1]
