"""How the latency per token grows with the context, per ranked candidate, from the raw runs of the newest sweep.

python examples/query_polars.py RESULTS   (a folder written by `kvray tune`; pip install polars)
"""

import sys

import polars as pl


def main(results: str) -> None:
    # Lazy: Polars reads only the columns and the sweep that the query needs. Ids of sweeps sort by time.
    ranking = pl.scan_parquet(f"{results}/reports/*/ranking.parquet").with_columns(pl.col("run_id").cast(pl.String))
    newest = ranking.select(pl.col("run_id").max()).collect().item()
    ranked = ranking.filter(pl.col("run_id") == newest, pl.col("rank").is_not_null())
    trials = pl.scan_parquet(f"{results}/trials/*/*.parquet").filter(pl.col("run_id").cast(pl.String) == newest)
    runs = pl.scan_parquet(f"{results}/runs/*/*.parquet").filter(pl.col("run_id").cast(pl.String) == newest)
    same = ["candidate_id", "fingerprint"]
    names = trials.select("trial_id", *same).join(ranked.select("rank", "label", *same), on=same, nulls_equal=True)
    # itl_ms is a list with one entry per token gap: explode it to get every gap of every run.
    gap_ms = pl.col("itl_ms").explode()
    table = (
        # Rung 0 is left out: its runs generate fewer tokens than the others.
        runs.filter(pl.col("rung") > 0, ~pl.col("disturbed"))
        .join(names, on="trial_id")
        .group_by("rank", "label", "context_tokens", "output_tokens")
        .agg(
            runs=pl.len(),
            ttft_ms=pl.col("ttft_ms").median().round(1),
            itl_p50_ms=gap_ms.quantile(0.50, "linear").round(2),
            itl_p99_ms=gap_ms.quantile(0.99, "linear").round(2),
        )
        .sort("rank", "context_tokens", "output_tokens")
        .collect()
    )
    with pl.Config(tbl_rows=-1, tbl_cols=-1, fmt_str_lengths=60, tbl_hide_dataframe_shape=True, tbl_width_chars=160):
        print(table)


if __name__ == "__main__":
    main(sys.argv[1])
