"""The best candidates of the newest run, with the tail latency of their raw runs, in SQL.

python examples/query_duckdb.py RESULTS   (a folder written by `kvray tune`; pip install duckdb)
"""

import sys

import duckdb

QUERY = """
WITH trials AS (
    SELECT * FROM read_parquet(getvariable('results') || '/trials/*/*.parquet', union_by_name = true)
),
newest AS (
    -- A run's trials start one after another; those that were never launched have no start.
    SELECT run_id FROM trials WHERE started_at IS NOT NULL ORDER BY started_at DESC LIMIT 1
),
tail AS (
    -- itl_ms is a list with one entry per token gap: unnest it to get every gap of every run.
    SELECT trial_id, quantile_cont(gap_ms, 0.99) AS itl_p99_ms
    FROM (
        SELECT trial_id, unnest(itl_ms) AS gap_ms
        FROM read_parquet(getvariable('results') || '/runs/*/*.parquet', union_by_name = true)
        WHERE run_id = (FROM newest) AND NOT disturbed
    )
    GROUP BY trial_id
)
SELECT
    role,
    cache,
    attention,
    dtype,
    round(ttft_ms, 1) AS ttft_ms,
    round(decode_tok_s, 1) AS decode_tok_s,
    round(peak_mib) AS peak_mib,
    round(tail.itl_p99_ms, 1) AS itl_p99_ms
FROM trials LEFT JOIN tail USING (trial_id)
WHERE run_id = (FROM newest) AND status = 'ok'
ORDER BY decode_tok_s DESC
LIMIT 10
"""


def main(results: str) -> None:
    connection = duckdb.connect()
    connection.execute("SET VARIABLE results = ?", [results.rstrip("/")])
    connection.sql(QUERY).show(max_width=160)


if __name__ == "__main__":
    main(sys.argv[1])
