"""What the newest sweep decided, how its trials ended, and why candidates have no rank.

python examples/query_pandas.py RESULTS   (a folder written by `kvray tune`; pip install pandas pyarrow)
"""

import sys
from pathlib import Path

import pandas as pd

SHOWN = ["rank", "label", "ttft_ms", "decode_tok_s", "peak_mib", "ttft_speedup", "decode_speedup", "peak_ratio"]


def main(results: str) -> None:
    # Ids of sweeps sort by time. One row a candidate, with figures that can be compared.
    newest = max(Path(results).glob("reports/*/ranking.parquet"))
    ranking = pd.read_parquet(newest)
    print(f"Sweep {newest.parent.name}\n")
    ranked = ranking[ranking["rank"].notna()].astype({"rank": "int"})
    print(f"{ranked[SHOWN].round(2).to_string(index=False)}\n")

    # One row a process. Enums arrive as categories; as plain strings they group without values that did not occur.
    trials = pd.read_parquet(f"{results}/trials/run_id={newest.parent.name}", columns=["status", "wall_s"])
    trials = trials.astype({"status": "str"})
    ends = trials.groupby("status").agg(trials=("status", "size"), seconds=("wall_s", "sum")).round(1)
    print(f"{ends.sort_values('trials', ascending=False)}\n")

    unranked = ranking[ranking["rank"].isna()].astype({"status": "str"})
    if not unranked.empty:
        print(unranked[["status", "label", "reason"]].to_string(index=False, max_colwidth=70))


if __name__ == "__main__":
    main(sys.argv[1])
