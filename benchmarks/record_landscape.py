"""Turns an exhaustive sweep (`kvray tune --search grid --confirm 0`) into a small Parquet file for `landscapes.py`.

python benchmarks/record_landscape.py RESULTS RUN_ID NAME
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from landscapes import RECORDED

from kvray.analysis.aggregate import aggregate, aggregate_cells, runs_at_rung
from kvray.candidate import Candidate, DeviceType
from kvray.config import TuneConfig
from kvray.engines.registry import get_engine
from kvray.forecast.prediction import forecast
from kvray.record import Run, TrialResult
from kvray.store.manifest import SweepManifest
from kvray.store.parquet import ResultsStore
from kvray.tuning.resolved import check_request, resolve, with_measured_rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results")
    parser.add_argument("run_id")
    parser.add_argument("name")
    arguments = parser.parse_args()
    store = ResultsStore(arguments.results)
    manifest = store.read_manifest(arguments.run_id)
    results = [one for one in store.read(arguments.run_id) if one.record.status.was_launched]
    results.sort(key=lambda one: one.record.candidate_id != manifest.baseline_id)
    profile = manifest.profile
    about = {
        "model": manifest.model_id.rpartition("/")[2],
        "device": manifest.device_name,
        "threads": results[0].record.threads,
        "measured": manifest.created_at.date().isoformat(),
        "contexts": profile.context_lengths,
        "outputs": profile.output_lengths,
        "weights": (profile.weight_ttft, profile.weight_throughput, profile.weight_memory),
        "within": within(results),
    }
    predict = predictor(manifest)
    rows = [{**row(one), **predict(one.record.candidate)} for one in results]
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"landscape": json.dumps(about)})
    RECORDED.mkdir(exist_ok=True)
    pq.write_table(table, RECORDED / f"{arguments.name}.parquet")
    print(f"{arguments.name}: {len(rows)} candidates, runs differ by {about['within']}")


def row(result: TrialResult) -> dict[str, object]:
    """One candidate: means over cells at full length and at rung 0, and where its seconds went."""
    record = result.record
    rung_s = [sum(seconds(run) for run in result.runs if run.rung == rung) for rung in range(3)]
    values: dict[str, object] = {
        "candidate": json.dumps(record.candidate.to_dict()),
        "status": record.status.value,
        "start_s": (record.wall_s or 0.0) - sum(rung_s),
        **{f"rung{rung}_s": spent for rung, spent in enumerate(rung_s)},
    }
    for prefix, rung in (("", 2), ("first_", 0)):
        cells = aggregate_cells(runs_at_rung(result.runs, rung))
        metrics = aggregate(cells) if cells and record.status == "ok" else None
        for name in ("ttft_ms", "decode_tok_s", "peak_mib"):
            values[f"{prefix}{name}"] = getattr(metrics, name) if metrics else None
    return values


def predictor(manifest: SweepManifest) -> Callable[[Candidate], dict[str, object]]:
    """What the model's config alone foretells of a candidate."""
    engine, device = get_engine(manifest.engine), DeviceType(manifest.device)
    config = TuneConfig(model_id=manifest.model_id, profile=manifest.profile, device=device, engine=manifest.engine)
    resolved = with_measured_rates(resolve(check_request(config, engine)))
    costs, hardware = engine.cost_model(resolved.model), resolved.hardware
    if costs is None:
        raise ValueError(f"{manifest.model_id} cannot be forecast")

    def predict(candidate: Candidate) -> dict[str, object]:
        one = forecast(costs, candidate, manifest.profile, device, hardware)
        return {f"forecast_{name}": getattr(one, name) for name in ("ttft_ms", "decode_tok_s", "peak_mib")}

    return predict


def within(results: Sequence[TrialResult]) -> list[float]:
    """Standard deviation of one run's logarithms of TTFT, tok/s and peak around its cell's, over calm runs."""
    variances = []
    for result in results:
        for cell in {run.cell for run in result.runs if run.rung > 0}:
            runs = [run for run in result.runs if run.rung > 0 and run.cell == cell and not run.disturbed]
            if len(runs) > 1:
                logs = np.log([[one.ttft_ms, one.decode_tok_s, one.peak_mib or 1.0] for one in runs])
                variances.append(logs.var(axis=0, ddof=1))
    return [round(float(value), 5) for value in np.sqrt(np.mean(variances, axis=0))]


def seconds(run: Run) -> float:
    """Seconds that one generation took."""
    return (run.ttft_ms + sum(run.itl_ms)) / 1000


if __name__ == "__main__":
    main()
