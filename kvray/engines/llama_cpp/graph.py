"""Which attention operators a graph has and on which devices they run, told by the library's callback for each node."""

from __future__ import annotations

import ctypes
import enum
import time
from collections import Counter

from kvray.engines.llama_cpp.binding import library, native_function

FUSED, PLAIN = "flash_attn_ext", "mul_mat + soft_max"
"""The two ways to compute attention."""
_FUSED_OPERATOR, _SOFT_MAX, _SCORES = b"FLASH_ATTN_EXT", b"SOFT_MAX", b"kq_soft_max"
_NAME_OFFSET, _BUFFER_OFFSET = 256, 8
"""Places in `ggml_tensor`. The second is read only where the first, which can be asked for, is as it was known."""
_BURST_S = 50e-6
"""Calls that follow each other faster have no computation between them."""


class Step(enum.Enum):
    """What is computed while nodes are noted."""

    PREFILL = "prefill"
    DECODE = "decode"


class GraphRecorder:
    """Notes attention while `step` is set. Give `on_node` to a context, and keep this as long as that lives.

    Attributes:
        spent_s: that the calls have taken so far. All nodes of a graph are told before any of them is computed.
    """

    def __init__(self) -> None:
        self.step: Step | None = None
        self.spent_s = 0.0
        self.seen: dict[Step, Counter[str]] = {step: Counter() for step in Step}
        self.on_node = library().ggml_backend_sched_eval_callback(self._note)
        self._last_s = 0.0
        pointer = (ctypes.c_void_p,)
        self._operator = native_function("ggml_op_desc", ctypes.c_char_p, pointer)
        self._name = native_function("ggml_get_name", ctypes.c_void_p, pointer)
        self._buffer_name = native_function("ggml_backend_buffer_name", ctypes.c_char_p, pointer)

    def attention(self, step: Step) -> dict[str, int]:
        """Attention operators in the graphs of `step`, such as `flash_attn_ext (CPU)`, and how many there were."""
        return dict(self.seen[step])

    def _note(self, tensor: int, ask: bool, _: object) -> bool:
        now = time.perf_counter()
        if now - self._last_s < _BURST_S:
            self.spent_s += now - self._last_s
        self._last_s = now
        if self.step is not None and ask and (operator := self._attention_operator(tensor)) is not None:
            self.seen[self.step][f"{operator} ({self._device(tensor)})"] += 1
        return False  # compute the graph as a whole

    def _attention_operator(self, tensor: int) -> str | None:
        operator = None if self._operator is None else self._operator(tensor)
        if operator == _FUSED_OPERATOR:
            return FUSED
        if operator == _SOFT_MAX and self._name_of(tensor).startswith(_SCORES):  # others choose experts
            return PLAIN
        return None

    def _name_of(self, tensor: int) -> bytes:
        return b"" if self._name is None else ctypes.string_at(self._name(tensor))

    def _device(self, tensor: int) -> str:
        if self._name is None or self._buffer_name is None or self._name(tensor) - tensor != _NAME_OFFSET:
            return "device unknown"
        buffer = ctypes.c_void_p.from_address(tensor + _BUFFER_OFFSET).value
        return self._buffer_name(buffer).decode() if buffer else "no device"
