"""How the latency per token grows with the context, per candidate, from the raw runs of the newest run.

python examples/query_polars.py RESULTS   (a folder written by `kvray tune`; pip install polars)
"""

import sys

import polars as pl


def main(results: str) -> None:
    # Lazy: Polars reads only the columns and the run that the query needs.
    trials = pl.scan_parquet(f"{results}/trials/*/*.parquet")
    runs = pl.scan_parquet(f"{results}/runs/*/*.parquet")
    newest = trials.select(pl.col("run_id").cast(pl.String).sort_by("started_at", nulls_last=False).last()).collect()
    names = trials.select("trial_id", label=pl.concat_str("cache", "attention", "dtype", separator="/"))
    # itl_ms is a list with one entry per token gap: explode it to get every gap of every run.
    gap_ms = pl.col("itl_ms").explode()
    table = (
        runs.filter(pl.col("run_id") == newest.item(), ~pl.col("disturbed"))
        .join(names, on="trial_id")
        .group_by("label", "context_tokens", "batch_size")
        .agg(
            runs=pl.len(),
            ttft_ms=pl.col("ttft_ms").median().round(1),
            itl_p50_ms=gap_ms.quantile(0.50, "linear").round(2),
            itl_p99_ms=gap_ms.quantile(0.99, "linear").round(2),
        )
        .sort("context_tokens", "batch_size", "itl_p50_ms")
        .collect()
    )
    with pl.Config(tbl_rows=-1, tbl_cols=-1, fmt_str_lengths=60, tbl_hide_dataframe_shape=True):
        print(table)


if __name__ == "__main__":
    main(sys.argv[1])
