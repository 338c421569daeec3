"""The roofline, and the work that every engine has to do: multiplications with a model's parameters, and their reading.

A phase takes the longer of its multiplications and of reading what it multiplies (Williams et al. 2009, "Roofline: an
insightful visual performance model"). What neither hides is the engine's to add.
"""

from __future__ import annotations

from kvray.candidate import DType
from kvray.forecast.hardware import Hardware
from kvray.forecast.memory import ITEM_BYTES
from kvray.forecast.shape import LayerShape, ModelShape
from kvray.workload import Cell


def roofline_s(*, flops: float, read_bytes: float, dtype: DType, hardware: Hardware, gpus: int = 1) -> float | None:
    """Seconds for `flops` in `dtype` on matrices of `read_bytes`; `None` where the dtype's rates are not known.

    Args:
        gpus: that share the work evenly, each as fast as `hardware`.
    """
    matmul, stream = hardware.matmul_flops_s.get(dtype), hardware.stream_bytes_s.get(dtype)
    if matmul is None or stream is None:
        return None
    return max(flops / matmul, read_bytes / stream) / gpus


def copy_s(bytes_read: float, hardware: Hardware, *, gpus: int = 1) -> float:
    """Seconds in which the device could copy so many bytes, shared evenly by `gpus`."""
    return bytes_read / hardware.copy_bytes_s / gpus


def read_weight_bytes(shape: ModelShape, dtype: DType, *, tokens: int) -> float:
    """Bytes of the weights that are read to work on `tokens` at once."""
    return shape.multiplied_parameters(tokens=tokens) * ITEM_BYTES[dtype]


def prompt_flops(shape: ModelShape, cell: Cell) -> float:
    """Floating-point operations with the parameters while the prompts of `cell` are read: two for each parameter and
    token. The head sees the last token only."""
    tokens, head = cell.batch_size * cell.context_tokens, shape.head_parameters
    return 2 * (tokens * (shape.active_parameters - head) + cell.batch_size * head)


def step_flops(shape: ModelShape, cell: Cell) -> float:
    """The same of one decode step, a token for every sequence."""
    return 2 * cell.batch_size * shape.active_parameters


def attention_flops(shape: ModelShape, layer: LayerShape, cell: Cell, *, is_whole: bool) -> float:
    """Floating-point operations of attention in `layer` while the prompts of `cell` are read.

    Args:
        is_whole: whether the kernel computes every pair of tokens; one that knows of causality leaves half of them out.
    """
    if not layer.kv_elements:
        return 0.0
    pairs = cell.context_tokens**2 * (1.0 if is_whole else 0.5)
    return 2 * cell.batch_size * shape.heads * pairs * (layer.attended_key_dim + layer.attended_value_dim)
