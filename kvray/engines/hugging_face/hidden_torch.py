"""Transformers' configuration classes without the seconds that importing torch takes: for processes that read a config
and nothing else."""

from __future__ import annotations

import importlib.util


def hide_torch() -> None:
    """Have this process find no torch. Transformers asks `find_spec` whether there is one, and has no other switch."""
    real = importlib.util.find_spec
    importlib.util.find_spec = lambda name, package=None: None if name == "torch" else real(name, package)
