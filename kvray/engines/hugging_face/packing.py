"""How a checkpoint's config says that its weights are packed (GPTQ, AWQ, FP8, …). Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvray.errors import ModelError

_NAMES = {
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "fp8": "FP8",
    "gptq": "GPTQ",
    "hqq": "HQQ",
    "mxfp4": "MXFP4",
    "mxfp8": "MXFP8",
    "nvfp4": "NVFP4",
}


def packing_of(config: Any) -> str | None:
    """What the weights of a checkpoint with this `config` are packed with; `None` if they are plain.

    Raises:
        ModelError: it says that they are packed, and not how.
    """
    packing = getattr(config, "quantization_config", None)
    if packing is None:
        packing = getattr(config.get_text_config(decoder=True), "quantization_config", None)
    if packing is None:
        return None
    values = packing if isinstance(packing, Mapping) else packing.to_dict()
    method = values.get("quant_method")
    if method is None and (values.get("load_in_4bit") or values.get("load_in_8bit")):
        method = "bitsandbytes"
    if method is None:
        raise ModelError(
            "Its config says that the weights are packed (quantization_config), and not how (quant_method): MLX writes "
            "such files, and Transformers does not read them.",
            hint="Give the original model that they were made from.",
        )
    return _NAMES.get(str(method), str(method))
