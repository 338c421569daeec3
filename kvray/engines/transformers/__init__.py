"""Hugging Face Transformers. Importing this costs no torch: only a measurement process loads `loaded`."""

from kvray.engines.transformers.adapter import TransformersAdapter

__all__ = ["TransformersAdapter"]
