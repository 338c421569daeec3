"""Imports modules in a fork server for all processes to come. The environment names them; `server_preload` calls
this."""

from __future__ import annotations

import gc
import importlib
import os
import traceback

PRELOAD = "KVRAY_PRELOAD"
"""Names of modules with commas between them."""


def preload() -> None:
    """Import them. One that cannot be imported fails again in the measurement process, where that has a status; here
    it would end the server without a word, as multiprocessing forgives nothing but an `ImportError`.

    Collecting garbage meanwhile would find none and take a fifth of the time. What was imported stays, and so is never
    looked through later.
    """
    gc.disable()
    for name in filter(None, os.environ.pop(PRELOAD, "").split(",")):
        try:
            importlib.import_module(name)
        except Exception:  # noqa: BLE001  (the boundary: see above)
            traceback.print_exc()
    gc.freeze()
    gc.enable()
