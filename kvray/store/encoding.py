"""Tables as the bytes of a Parquet file, which any reader of Parquet can open."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq


def many_rows(table: pa.Table) -> bytes:
    """Compressed, and with what readers skip rows by. Figures are not put into a dictionary: hardly two are equal."""
    types = pa.types
    repeated = [one.name for one in table.schema if not (types.is_floating(one.type) or types.is_list(one.type))]
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True, use_dictionary=repeated)
    return bytes(sink.getvalue())


def few_rows(table: pa.Table) -> bytes:
    """Without what pays for many rows only. For one row of a hundred columns that is a fifth of the work of whoever
    writes or reads it."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, write_page_checksum=True, use_dictionary=False, compression="none", write_statistics=False
    )
    return bytes(sink.getvalue())
