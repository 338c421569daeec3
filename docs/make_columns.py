"""Print docs/columns.md: what each column of kvray's tables means, from the docstrings and schemas of the code.

python docs/make_columns.py > docs/columns.md   (a test compares the two)
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import itertools
import re
import typing

import pyarrow as pa

from kvray.record import Run, TrialRecord
from kvray.store.batch_table import BATCH_SCHEMA, BatchRow
from kvray.store.ranking_table import RANKING_SCHEMA, RankingRow
from kvray.store.schema import RUNS_SCHEMA, TRIALS_SCHEMA

INTRODUCTION = """# Columns of the tables

*Made by `python docs/make_columns.py`; do not edit.*

A results folder holds these tables in Parquet, with any number of sweeps in each:

| table | where | one row is |
|---|---|---|
| `ranking` | `reports/RUN_ID/ranking.parquet` | a candidate, with comparable figures: **ask this one what is best** |
| `trials` | `trials/run_id=RUN_ID/*.parquet` | a process that measured, or a candidate that was not launched |
| `runs` | `runs/run_id=RUN_ID/*.parquet` | one timed generation: the raw sample |
| `batch` | `batches/BATCH_ID/batch.parquet` | a sweep of `kvray batch`, with its winner, or why it has none |

The best of the newest sweep, in DuckDB:

```sql
SELECT rank, label, status, round(ttft_ms) AS ttft_ms, round(decode_tok_s, 1) AS tok_s, round(peak_mib) AS peak_mib,
       round(ttft_speedup, 2) AS ttft_speedup, round(decode_speedup, 2) AS decode_speedup, reason
FROM 'kvray_results/reports/*/ranking.parquet'
QUALIFY run_id = max(run_id) OVER ()
ORDER BY rank NULLS LAST;
```

Sorting `trials` by a metric does not answer that: a trial that was stopped at rung 0 has figures of shorter
generations, confirming trials are rows of their own, and what misses a limit is among them. `ranking` is derived from
the other two. It is written at the end of a sweep, and by `kvray report` with the limits and weights given there.

`examples/` asks all three tables with DuckDB, Polars and pandas. What was not measured is null. Times are UTC. Columns
are added, and not renamed without a new `kvray_schema_version` in the files' metadata.
"""
TABLES = (
    ("ranking", RankingRow, RANKING_SCHEMA),
    ("trials", TrialRecord, TRIALS_SCHEMA),
    ("runs", Run, RUNS_SCHEMA),
    ("batch", BatchRow, BATCH_SCHEMA),
)


def main() -> None:
    """Print the page."""
    print("\n".join(page()), end="")


def page() -> list[str]:
    """The lines of the page.

    Raises:
        SystemExit: a column is not described.
    """
    lines = INTRODUCTION.splitlines()
    for name, kind, schema in TABLES:
        lines += ["", f"## {name}", "", _summary(kind), "", "| column | type | what it is |", "|---|---|---|"]
        lines += _rows(kind, schema)
    return [*lines, ""]


def _rows(kind: type, schema: pa.Schema) -> list[str]:
    """One for each column, or for several that follow each other and are described together."""
    told = _descriptions(kind)
    if missing := [field.name for field in schema if field.name not in told]:
        raise SystemExit(f"Describe {', '.join(missing)} in the docstring of {kind.__name__}.")
    described = [
        (f"| {_type(field.type)} | {told[field.name]}{_values(kind, field)} |", field.name) for field in schema
    ]
    groups = itertools.groupby(described, key=lambda one: one[0])
    return [f"| {', '.join(f'`{name}`' for _, name in names)} {text}" for text, names in groups]


def _summary(kind: type) -> str:
    """The docstring before its attributes, paragraph by paragraph."""
    return (inspect.getdoc(kind) or "").partition("\nAttributes:")[0].strip()


def _descriptions(kind: type) -> dict[str, str]:
    """What the docstring says of each attribute; several may share a line."""
    text = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {name: _plain(told) for names, told in entries for name in names.split(", ")}


def _plain(told: str) -> str:
    text = re.sub(r"(?<=\. )`None`", "Null", " ".join(told.split())).replace("`None`", "null").replace("|", "\\|")
    text = re.sub(r" \((see )?`[a-z_]+\.[a-z_]+`\)", "", text)
    return f"{text[0].upper()}{text[1:]}" if text[0] != "`" else text


def _type(of: pa.DataType) -> str:
    if pa.types.is_list(of):
        return f"list of {_type(of.value_type)}"
    if pa.types.is_dictionary(of):
        return "text"
    if pa.types.is_timestamp(of):
        return "time"
    names = {pa.string(): "text", pa.int64(): "whole number", pa.float64(): "number", pa.bool_(): "true or false"}
    return names[of]


def _values(kind: type, field: pa.Field) -> str:
    """The values of an enum."""
    hint = next(one.type for one in dataclasses.fields(kind) if one.name == field.name)
    resolved = typing.get_type_hints(kind)[field.name] if isinstance(hint, str) else hint
    options = [one for one in (resolved, *typing.get_args(resolved)) if isinstance(one, type)]
    members = [str(member.value) for one in options if issubclass(one, enum.StrEnum) for member in one]
    return f" One of: {', '.join(f'`{value}`' for value in members)}." if members else ""


if __name__ == "__main__":
    main()
