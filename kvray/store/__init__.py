"""Parquet records and the sweep's manifest; the only importer of pyarrow."""
