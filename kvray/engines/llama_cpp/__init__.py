"""llama.cpp through the C API of `llama-cpp-python`. Importing this loads no library."""

from kvray.engines.llama_cpp.adapter import LlamaCppAdapter

__all__ = ["LlamaCppAdapter"]
