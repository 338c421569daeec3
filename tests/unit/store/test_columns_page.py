"""docs/columns.md says what every column means, and is what the code says now."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

from kvray.store.ranking_table import RANKING_SCHEMA, RankingRow

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_of_columns_is_that_of_the_code() -> None:
    made = runpy.run_path(str(DOCS / "make_columns.py"))["page"]()
    assert "\n".join(made) == (DOCS / "columns.md").read_text(), "python docs/make_columns.py > docs/columns.md"


def test_every_field_of_a_ranking_row_has_its_column_in_the_same_place() -> None:
    assert RANKING_SCHEMA.names == [field.name for field in dataclasses.fields(RankingRow)]
