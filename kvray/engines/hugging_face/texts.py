"""`ModelTexts`: prompts and the text for quality as token ids of one model. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kvray.engines.base import ModelRequest
from kvray.engines.hugging_face.ordinary_ids import ordinary_ids
from kvray.engines.hugging_face.tokenizer import WrittenTexts, choose_texts
from kvray.engines.prompts import tile_tokens
from kvray.workload import Cell

_RANDOM_SEED = 1


class ModelTexts:
    """Texts for one model.

    Args:
        texts: written by the model's tokenizer; `None`: random ids are fed.
        ids: those that random ids are drawn from, where there are no texts.
    """

    def __init__(self, texts: WrittenTexts | None, ids: Sequence[int]) -> None:
        self._texts = texts
        self._ids = ids

    @classmethod
    def of(cls, request: ModelRequest, tokenizer: Any | None, config: Any) -> ModelTexts:
        """What is fed to the model that `request` names, see `choose_texts`."""
        vocabulary = int(config.get_text_config(decoder=True).vocab_size)
        texts = choose_texts(request, tokenizer, vocabulary).texts
        return cls(texts, ordinary_ids(config) if texts is None else ())

    @property
    def are_random(self) -> bool:
        """Whether the model's tokenizer cannot write texts for it."""
        return self._texts is None

    def prompts(self, cell: Cell) -> list[list[int]]:
        """`cell.batch_size` rows of exactly `cell.context_tokens` ids; BOS comes first where the tokenizer adds it."""
        if self._texts is None:
            return self._random_rows(cell.batch_size, cell.context_tokens)
        return tile_tokens(
            self._texts.prompt,
            context_tokens=cell.context_tokens,
            rows=cell.batch_size,
            prefix=self._texts.prefix,
        )

    def forced(self, cell: Cell, forced: int) -> list[int]:
        """As a prompt begins, then `forced` tokens of the text for that; together as long as the cell."""
        length = max(forced + 1, cell.context_tokens + cell.output_tokens)
        if self._texts is None:
            return self._random_rows(1, length)[0]
        beginning = self.prompts(Cell(length - forced, forced, 1))[0]
        return [*beginning, *tile_tokens(self._texts.forced, context_tokens=forced, rows=1)[0]]

    def _random_rows(self, rows: int, tokens: int) -> list[list[int]]:
        drawn = np.random.default_rng(_RANDOM_SEED).choice(np.asarray(self._ids), size=(rows, tokens))
        made: list[list[int]] = drawn.tolist()
        return made
