"""How the trials of the newest run ended, and why those that failed or were never launched did.

python examples/query_pandas.py RESULTS   (a folder written by `kvray tune`; pip install pandas pyarrow)
"""

import sys

import pandas as pd

COLUMNS = ["run_id", "status", "phase", "cache", "attention", "dtype", "message", "started_at", "wall_s"]


def main(results: str) -> None:
    trials = pd.read_parquet(f"{results}/trials", columns=COLUMNS)
    # Enums arrive as categories; as plain strings they group without the values that did not occur.
    trials = trials.astype(dict.fromkeys(["run_id", "status", "phase", "cache", "attention", "dtype"], "str"))
    newest = trials.loc[trials["started_at"].idxmax(), "run_id"]
    trials = trials[trials["run_id"] == newest]

    ends = trials.groupby("status").agg(trials=("status", "size"), seconds=("wall_s", "sum")).round(1)
    print(f"Run {newest}\n\n{ends.sort_values('trials', ascending=False)}\n")

    unmeasured = trials[trials["status"] != "ok"]
    if not unmeasured.empty:
        print(unmeasured[["status", "phase", "cache", "attention", "dtype", "message"]].to_string(index=False))


if __name__ == "__main__":
    main(sys.argv[1])
