"""The engine `vllm`. Only what runs in a measurement process imports vLLM, which lives in a Python of its own."""

from kvray.engines.vllm.adapter import VllmAdapter

__all__ = ["VllmAdapter"]
