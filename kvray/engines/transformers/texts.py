"""`ModelTexts`: prompts and the text for quality as token ids of one model. Without a tokenizer: random ids."""

from __future__ import annotations

from typing import Any

import torch

from kvray.engines.prompts import forced_text, prompt_text, tile_tokens
from kvray.workload import Cell

_RANDOM_SEED = 1


class ModelTexts:
    """Texts for one model.

    Args:
        tokenizer: the model's, or `None`.
        vocabulary: number of token ids.
    """

    def __init__(self, tokenizer: Any | None, vocabulary: int) -> None:
        self._tokenizer: Any = tokenizer
        self._vocabulary = vocabulary

    def prompts(self, cell: Cell) -> list[list[int]]:
        """`cell.batch_size` rows of exactly `cell.context_tokens` ids; BOS comes first where the tokenizer adds it."""
        if self._tokenizer is None:
            return self._random_rows(cell.batch_size, cell.context_tokens)
        bos = self._tokenizer.bos_token_id
        adds_bos = bos is not None and self._tokenizer("a")["input_ids"][:1] == [bos]
        return tile_tokens(
            self._ids(prompt_text()),
            context_tokens=cell.context_tokens,
            rows=cell.batch_size,
            prefix=(bos,) if adds_bos else (),
        )

    def forced(self, cell: Cell, forced: int) -> list[int]:
        """As a prompt begins, then `forced` tokens of the text for that; together as long as the cell."""
        length = max(forced + 1, cell.context_tokens + cell.output_tokens)
        if self._tokenizer is None:
            return self._random_rows(1, length)[0]
        beginning = self.prompts(Cell(length - forced, forced, 1))[0]
        return [*beginning, *tile_tokens(self._ids(forced_text()), context_tokens=forced, rows=1)[0]]

    def _random_rows(self, rows: int, tokens: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(_RANDOM_SEED)
        made: list[list[int]] = torch.randint(0, self._vocabulary, (rows, tokens), generator=generator).tolist()
        return made

    def _ids(self, text: str) -> list[int]:
        # `verbose=False`: the text may be longer than the model takes; what is fed of it is cut to size.
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
