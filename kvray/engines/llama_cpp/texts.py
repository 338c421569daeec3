"""`ModelTexts`: prompts and the text for quality, written by the file's own tokenizer and cut as for every engine."""

from __future__ import annotations

from kvray.engines.llama_cpp.native_model import NativeModel
from kvray.engines.prompts import forced_text, prompt_text, tile_tokens
from kvray.workload import Cell


class ModelTexts:
    """Texts for one model.

    Raises:
        UnsupportedError: the file has no tokenizer.
    """

    def __init__(self, model: NativeModel) -> None:
        self._model = model
        self._prompt = model.tokenize(prompt_text(), as_prompt=False)

    def prompts(self, cell: Cell) -> list[list[int]]:
        """`cell.batch_size` rows of exactly `cell.context_tokens` ids; BOS comes first where the file says so."""
        return tile_tokens(
            self._prompt, context_tokens=cell.context_tokens, rows=cell.batch_size, prefix=self._model.prefix
        )

    def forced(self, cell: Cell, forced: int) -> list[int]:
        """As a prompt begins, then `forced` tokens of the text for that; together as long as the cell."""
        length = max(forced + 1, cell.context_tokens + cell.output_tokens)
        text = self._model.tokenize(forced_text(), as_prompt=False)
        beginning = self.prompts(Cell(length - forced, forced, 1))[0]
        return [*beginning, *tile_tokens(text, context_tokens=forced, rows=1)[0]]
