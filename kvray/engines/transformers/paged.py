"""`PagedSession`: the library's continuous batching for one cell, timed through its own time stamps."""

from __future__ import annotations

import copy
import logging
import time
from typing import Any

from transformers import GenerationConfig

from kvray.engines.base import Generation, UnsupportedError
from kvray.engines.transformers.paging import paging
from kvray.workload import Cell

_POLL_S = 1.0
_NO_EOS = -1


class PagedSession:
    """Pages for one cell and the thread that serves requests from them, until `close`.

    Args:
        model: loaded with the attention that is asked for.
        settings: what holds for every request; with an end-of-sequence token only where a text may end early.
    """

    def __init__(self, model: Any, settings: GenerationConfig, cell: Cell) -> None:
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
        served = copy.deepcopy(settings)
        if served.eos_token_id is None:
            served.eos_token_id = _NO_EOS
        self._manager = model.init_continuous_batching(
            generation_config=served,
            continuous_batching_config=paging(cell.batch_size, cell.context_tokens, cell.output_tokens),
        )
        self._manager.warmup()
        self._manager.start()

    @property
    def cache(self) -> Any:
        """The library's cache object, `None` before the first request."""
        return self._manager.batch_processor.cache

    def generate(self, rows: list[list[int]], output_tokens: int) -> Generation:
        """Submit all `rows` at once and wait for them. Each sequence has its tokens at times of its own.

        Raises:
            UnsupportedError: the library failed a request.
        """
        started = time.perf_counter()
        names = self._manager.add_requests(rows, max_new_tokens=output_tokens, record_timestamps=True)
        done: dict[str, Any] = {}
        while len(done) < len(names):
            result = self._manager.get_result(timeout=_POLL_S)
            if result is not None and result.is_finished():
                done[result.request_id] = result
            elif result is None and not self._manager.is_running():
                raise UnsupportedError("continuous batching stopped by itself; see the log")
        results = [done[name] for name in names]
        if failed := next((result.error for result in results if result.error), None):
            raise UnsupportedError(f"continuous batching: {failed}")
        return Generation.of_sequences(
            started_s=started,
            sequence_s=[result.timestamps for result in results],
            tokens=tuple(tuple(result.generated_tokens) for result in results),
        )

    def close(self) -> None:
        """Stop the thread and free the pages."""
        self._manager.stop(block=True)
        self._manager.destroy()
