"""The ranking of the newest sweep, with the tail latency of the raw runs behind it, in SQL.

python examples/query_duckdb.py RESULTS   (a folder written by `kvray tune`; pip install duckdb)
"""

import sys

import duckdb

QUERY = """
WITH ranking AS (
    -- One row a candidate, with figures that can be compared. Ids of sweeps sort by time.
    SELECT * FROM read_parquet(getvariable('results') || '/reports/*/ranking.parquet', union_by_name = true)
    QUALIFY run_id = max(run_id) OVER ()
),
trials AS (
    -- One row a process. A candidate's confirming runs are rows of their own.
    SELECT * FROM read_parquet(getvariable('results') || '/trials/*/*.parquet', union_by_name = true)
),
gaps AS (
    -- itl_ms is a list with one entry per token gap: unnest it to get every gap of every run. Rung 0 is left out: its
    -- runs are shorter, and a candidate that was stopped early has no others.
    SELECT trial_id, unnest(itl_ms) AS gap_ms
    FROM read_parquet(getvariable('results') || '/runs/*/*.parquet', union_by_name = true)
    WHERE run_id = (SELECT any_value(run_id) FROM ranking) AND rung > 0 AND NOT disturbed
),
tail AS (
    SELECT candidate_id, fingerprint, quantile_cont(gap_ms, 0.999) AS worst_gap_ms
    FROM gaps JOIN trials USING (trial_id)
    WHERE run_id = (SELECT any_value(run_id) FROM ranking) AND status IN ('ok', 'stopped')
    GROUP BY ALL
)
SELECT
    rank,
    label,
    ranking.status,
    round(ttft_ms, 1) AS ttft_ms,
    round(decode_tok_s, 1) AS decode_tok_s,
    round(peak_mib) AS peak_mib,
    round(ttft_speedup, 2) AS ttft_speedup,
    round(worst_gap_ms, 1) AS worst_gap_ms
FROM ranking LEFT JOIN tail
    ON ranking.candidate_id = tail.candidate_id AND ranking.fingerprint IS NOT DISTINCT FROM tail.fingerprint
ORDER BY rank NULLS LAST, label
"""


def main(results: str) -> None:
    connection = duckdb.connect()
    connection.execute("SET VARIABLE results = ?", [results.rstrip("/")])
    connection.sql(QUERY).show(max_width=160)


if __name__ == "__main__":
    main(sys.argv[1])
