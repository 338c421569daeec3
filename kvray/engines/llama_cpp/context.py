"""`NativeContext`: one llama.cpp context, made with settings, and the tokens that it is fed."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvray.engines.llama_cpp.binding import engine_log, library
from kvray.engines.llama_cpp.failed import context_error, decode_error
from kvray.engines.llama_cpp.native_model import NativeModel
from kvray.engines.llama_cpp.said import Said
from kvray.engines.llama_cpp.settings import ContextSettings
from kvray.engines.llama_cpp.threadpools import Threadpools

_BF16 = 30
"""`GGML_TYPE_BF16`, which the binding does not name."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Tokens of a batch from `begin` on, as the library takes them: pointers into that batch, which must live on.

    Attributes:
        wanted: places in the piece whose logits are wanted.
    """

    begin: int
    native: Any
    wanted: tuple[int, ...]


class TokenBatch:
    """Tokens to feed, each with its place in its sequence, and whether its logits are wanted. Lies in arrays of its
    own: the library keeps pointers into them while it computes."""

    def __init__(
        self,
        tokens: NDArray[np.int32],
        places: NDArray[np.int32],
        sequences: NDArray[np.int32],
        wanted: NDArray[np.int8],
    ) -> None:
        self.tokens, self.places, self.sequences, self.wanted = tokens, places, sequences, wanted
        self._counts = np.ones(len(tokens), dtype=np.int32)
        self._pieces: tuple[int, list[Piece]] | None = None
        self._owners = self.sequences.ctypes.data + 4 * np.arange(len(tokens), dtype=np.uint64)

    @classmethod
    def of_rows(cls, rows: Sequence[Sequence[int]], *, begin: int, wanted: Sequence[Sequence[int]]) -> TokenBatch:
        """`rows` of equal length, one per sequence and one after the other, of which the first token has the place
        `begin`; `wanted` has 1 where logits are."""
        count, length = len(rows), len(rows[0])
        return cls(
            np.array(rows, dtype=np.int32).reshape(-1),
            np.tile(np.arange(begin, begin + length, dtype=np.int32), count),
            np.repeat(np.arange(count, dtype=np.int32), length),
            np.array(wanted, dtype=np.int8).reshape(-1),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def pieces(self, llama: Any, most: int) -> list[Piece]:
        """The batch in pieces of at most `most` tokens. Made once: only the arrays' contents change."""
        if self._pieces is None or self._pieces[0] != most:
            begins = range(0, len(self), most)
            self._pieces = most, [self._piece(llama, begin, min(begin + most, len(self))) for begin in begins]
        return self._pieces[1]

    def _piece(self, llama: Any, begin: int, end: int) -> Piece:
        def pointer(array: NDArray[Any], kind: Any) -> Any:
            return ctypes.cast(array.ctypes.data + begin * array.itemsize, ctypes.POINTER(kind))

        native = llama.llama_batch(
            n_tokens=end - begin,
            token=pointer(self.tokens, ctypes.c_int32),
            pos=pointer(self.places, ctypes.c_int32),
            n_seq_id=pointer(self._counts, ctypes.c_int32),
            seq_id=pointer(self._owners, ctypes.POINTER(ctypes.c_int32)),
            logits=pointer(self.wanted, ctypes.c_int8),
        )
        return Piece(begin=begin, native=native, wanted=tuple(np.flatnonzero(self.wanted[begin:end]).tolist()))


class NativeContext:
    """Owns the native context until `close`. Sequences are numbered from 0.

    Args:
        on_node: called for each node of every graph before it is computed; measured contexts have none.

    Raises:
        UnsupportedError, OutOfMemoryError: none can be made; with the engine's own words.
    """

    def __init__(self, model: NativeModel, settings: ContextSettings, *, on_node: Any | None = None) -> None:
        self._llama, self._vocabulary = library(), model.vocabulary
        self._on_node = on_node  # the library calls it as long as the context lives
        log = engine_log()
        begun = log.mark
        self.handle = self._llama.llama_init_from_model(model.handle, context_params(self._llama, settings, on_node))
        if not self.handle:
            raise context_error(log.errors_since(begun))
        self.said = Said.of((*model.said, *log.since(begun)))
        self._memory = self._llama.llama_get_memory(self.handle)
        self._pools = Threadpools(self.handle, settings)
        self._rows = int(self._llama.llama_n_batch(self.handle))
        # Looked at only when the library has just named the address again.
        self._views: dict[int, NDArray[np.float32]] = {}

    @property
    def sizes(self) -> dict[str, int]:
        """What the library says of itself now, by the names of `ContextSettings`."""
        llama = self._llama
        return {
            "n_ctx": int(llama.llama_n_ctx(self.handle)),
            "n_seq_max": int(llama.llama_n_seq_max(self.handle)),
            "n_batch": int(llama.llama_n_batch(self.handle)),
            "n_ubatch": int(llama.llama_n_ubatch(self.handle)),
            "threads": int(llama.llama_n_threads(self.handle)),
            "threads_batch": int(llama.llama_n_threads_batch(self.handle)),
        }

    def clear(self) -> None:
        """Forget all tokens. What the buffers hold is overwritten later."""
        self._llama.llama_memory_clear(self._memory, False)

    def held_tokens(self, sequence: int) -> int:
        """Tokens of `sequence` up to the last one in the cache; one with a sliding window may have dropped the first
        of them."""
        return int(self._llama.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def feed(self, batch: TokenBatch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Compute `batch` in pieces as large as the context takes. For each wanted token its index in `batch` and its
        logits, on the host, which may be changed and hold until the next is asked for.

        Raises:
            OutOfMemoryError, UnsupportedError
        """
        for piece in batch.pieces(self._llama, self._rows):
            self._decode(piece.native)
            for index in piece.wanted:
                yield piece.begin + index, self._logits(index)

    def close(self) -> None:
        """Free the context, its cache and its threads."""
        if self.handle:
            self._llama.llama_free(self.handle)
            self.handle = None
            self._pools.close()

    def _decode(self, batch: Any) -> None:
        log = engine_log()
        begun = log.mark
        code = self._llama.llama_decode(self.handle, batch)
        if code != 0:
            raise decode_error(code, log.errors_since(begun) or log.since(begun))
        self._llama.llama_synchronize(self.handle)

    def _logits(self, index: int) -> NDArray[np.float32]:
        found = self._llama.llama_get_logits_ith(self.handle, index)
        address = ctypes.cast(found, ctypes.c_void_p).value
        if address is None:
            raise decode_error(-1, ("it gives no logits",))
        if address not in self._views:
            values = (ctypes.c_float * self._vocabulary).from_address(address)
            self._views[address] = np.ctypeslib.as_array(values)
        return self._views[address]


def context_params(llama: Any, settings: ContextSettings, on_node: Any | None) -> Any:
    """`settings` as the library takes them."""
    params = llama.llama_context_default_params()
    for name in ("n_ctx", "n_seq_max", "n_batch", "n_ubatch", "swa_full", "kv_unified", "offload_kqv"):
        setattr(params, name, getattr(settings, name))
    params.n_threads, params.n_threads_batch = settings.threads, settings.threads_batch
    params.type_k, params.type_v = _type_number(llama, settings.type_k), _type_number(llama, settings.type_v)
    # The binding does not name the values: 0 is off, 1 is on.
    params.flash_attn_type = int(settings.flash_attention)
    if on_node is not None:
        params.cb_eval = on_node
    return params


def _type_number(llama: Any, name: str) -> int:
    """llama.cpp's number of a type that `settings.CACHE_TYPES` names."""
    return int(getattr(llama, f"GGML_TYPE_{name.upper()}", _BF16 if name == "bf16" else -1))
