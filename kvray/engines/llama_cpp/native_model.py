"""`NativeModel`: a GGUF file's weights and vocabulary, loaded by llama.cpp in this process."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvray.engines.failures import UnsupportedError
from kvray.engines.llama_cpp.binding import engine_log, library, native_function
from kvray.engines.llama_cpp.failed import load_error
from kvray.engines.llama_cpp.settings import ContextSettings, SplitMode

_SPLIT_MODES = {SplitMode.NONE: 0, SplitMode.LAYER: 1, SplitMode.ROW: 2, SplitMode.TENSOR: 3}
_EXPERTS = r"blk\.{layer}\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""Names of the tensors that `--n-cpu-moe` keeps in host memory, for one layer."""
_NO_VOCABULARY = 0
_NO_LOAD_MODE = 0
"""`LLAMA_LOAD_MODE_NONE`."""


class _TensorPlace(ctypes.Structure):
    """`llama_model_tensor_buft_override`, which the binding does not declare."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


class NativeModel:
    """Owns the native model until `close`.

    Args:
        only_sizes: read no weights and simulate every allocation, so that nothing can be computed.

    Raises:
        ModelError, UnsupportedError, OutOfMemoryError: it cannot be loaded; with the engine's own words.
    """

    def __init__(self, path: Path, settings: ContextSettings, *, only_sizes: bool = False) -> None:
        self._llama = library()
        log = engine_log()
        begun = log.mark
        # The library reads the overrides while it loads.
        overrides = _experts_on_host(settings.n_cpu_moe)
        params = _model_params(self._llama, settings, overrides)
        if only_sizes:
            _simulate(params)
        self.handle = self._llama.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise load_error(path, log.errors_since(begun))
        self.said = log.since(begun)
        self._vocab = self._llama.llama_model_get_vocab(self.handle)
        self.vocabulary = int(self._llama.llama_vocab_n_tokens(self._vocab))

    @property
    def window(self) -> int:
        """Tokens that a layer with a sliding window sees; 0: the model has none."""
        return int(self._llama.llama_model_n_swa(self.handle))

    @property
    def prefix(self) -> tuple[int, ...]:
        """What every text begins with: BOS, where the file says so."""
        bos = int(self._llama.llama_vocab_bos(self._vocab))
        return (bos,) if bos >= 0 and self._llama.llama_vocab_get_add_bos(self._vocab) else ()

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return int(self._llama.llama_model_n_layer(self.handle))

    def sizes_of_heads(self) -> tuple[int, int] | None:
        """Elements of one token's keys and of its values in a layer; `None` where layers are unlike."""
        architecture = self._field("general.architecture")
        attention = f"{architecture}.attention"
        heads, kv_heads = self._number(f"{attention}.head_count"), self._number(f"{attention}.head_count_kv")
        width = self._number(f"{architecture}.embedding_length")
        is_latent = self._field(f"{attention}.kv_lora_rank") is not None
        has_unlike = self._field(f"{attention}.key_length_swa") is not None
        if not heads or not width or is_latent or has_unlike:
            return None
        kv_heads = heads if self._field(f"{attention}.head_count_kv") is None else kv_heads
        if not kv_heads:
            return None
        key, value = (self._number(f"{attention}.{one}_length") or width // heads for one in ("key", "value"))
        return kv_heads * key, kv_heads * value

    def end_tokens(self) -> NDArray[np.int64]:
        """Ids that end an answer."""
        is_end = self._llama.llama_vocab_is_eog
        return np.array([one for one in range(self.vocabulary) if is_end(self._vocab, one)], dtype=np.int64)

    def suppressed_tokens(self) -> NDArray[np.int64]:
        """Ids that the file wants never to be chosen, as llama.cpp's own tools heed it."""
        ask = getattr(self._llama, "llama_vocab_get_suppress_tokens", None)
        count = ctypes.c_int32(0)
        found = None if ask is None else ask(self._vocab, ctypes.byref(count))
        return np.array(found[: count.value] if found else [], dtype=np.int64)

    def tokenize(self, text: str, *, as_prompt: bool) -> list[int]:
        """Ids of `text`.

        Args:
            as_prompt: begin as the file says (BOS), and read names of special tokens as these.

        Raises:
            UnsupportedError: the file has no tokenizer, or it cannot write the text.
        """
        if self._llama.llama_vocab_type(self._vocab) == _NO_VOCABULARY:
            raise UnsupportedError("this file has no tokenizer")
        data = text.encode()
        room = len(data) + 16  # a token is at least one byte; BOS and a space may come first
        ids = (ctypes.c_int32 * room)()
        count = self._llama.llama_tokenize(self._vocab, data, len(data), ids, room, as_prompt, as_prompt)
        if count < 0:
            raise UnsupportedError(f"the tokenizer cannot write this text (code {count})")
        return list(ids[:count])

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens."""
        tokens = (ctypes.c_int32 * max(1, len(ids)))(*ids)
        size = 64 + 16 * len(ids)
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._llama.llama_detokenize(self._vocab, tokens, len(ids), buffer, size, False, False)
            if count >= 0:
                return buffer.raw[:count].decode(errors="replace")
            size = -count

    def _field(self, key: str) -> str | None:
        """A field of the file's header as text; a list looks like one."""
        buffer = ctypes.create_string_buffer(256)
        length = self._llama.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return None if length < 0 else buffer.value.decode(errors="replace")

    def _number(self, key: str) -> int | None:
        """A field that is one number."""
        text = self._field(key) or ""
        return int(text) if text.isdigit() else None

    def close(self) -> None:
        """Free the weights; every context must be closed by then."""
        if self.handle:
            self._llama.llama_model_free(self.handle)
            self.handle = None


def _model_params(llama: Any, settings: ContextSettings, overrides: Any | None) -> Any:
    params = llama.llama_model_default_params()
    params.n_gpu_layers = settings.n_gpu_layers
    params.split_mode = _SPLIT_MODES[settings.split_mode]
    params.use_extra_bufts = settings.repack
    if overrides is not None:
        params.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
    return params


def _simulate(params: Any) -> None:
    """Have allocations simulated, for which the file must not be mapped.

    Raises:
        UnsupportedError: this binding is older than that.
    """
    if not hasattr(params, "no_alloc"):
        raise UnsupportedError("this llama-cpp-python cannot simulate allocations")
    params.no_alloc = True
    if hasattr(params, "load_mode"):
        params.load_mode = _NO_LOAD_MODE
    else:
        params.use_mmap = False


def _experts_on_host(layers: int) -> Any | None:
    """Places for the experts of the first `layers`, ended by an empty one.

    Raises:
        UnsupportedError: this build cannot name the host's memory.
    """
    if layers == 0:
        return None
    host = native_function("ggml_backend_cpu_buffer_type", ctypes.c_void_p, ())
    if host is None:
        raise UnsupportedError("this build of llama.cpp does not let experts stay in host memory")
    patterns = [_EXPERTS.format(layer=layer).encode() for layer in range(layers)]
    return (_TensorPlace * (layers + 1))(*(_TensorPlace(pattern, host()) for pattern in patterns))
