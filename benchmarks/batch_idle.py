"""What a batch of many models leaves idle: 12 fake models of 10 trials each on 4 slots that stand in for GPUs.

The slots are CPUs that Ray is told of, whatever the machine has, and the trials sleep, so that what is measured is the
batch's own work: which trial is next, which sweep joins, and what is written up meanwhile. The share is counted from
the records, between the start of the first trial and the end of the last. A slot is idle while it has no trial, also
while it starts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import ray
from output import make_parser, print_table, write_figures

from kvray.candidate import DeviceType
from kvray.record import TrialRecord
from kvray.store.parquet import ResultsStore
from kvray.testing.misbehaviour import SLOW_S
from kvray.tuning.batch import BatchSearch
from kvray.tuning.batch_file import AskedSweep, read_batch_file
from kvray.tuning.batch_options import BatchOptions

SLOTS = 4
MODELS = 12
TRIALS = 10
FILE = """\
defaults: {{engine: fake, profiles: [ci-micro], context_lengths: [64], output_lengths: [4], dtypes: [float32],
           caches: [dynamic, static], attentions: [sdpa, eager, sdpa_flash, sdpa_math], compiles: ["off", default],
           search: grid, max_trials: {trials}, confirm_rounds: 0, check_snippet: false, forecast: false}}
models: [{models}]
"""


def main() -> None:
    arguments = make_parser(__doc__).parse_args()
    models = 3 if arguments.quick else MODELS
    with tempfile.TemporaryDirectory(prefix="kvray-idle-", ignore_cleanup_errors=True) as folder:
        ray.init(num_cpus=SLOTS, include_dashboard=False, log_to_driver=False, address="local")
        try:
            records = measured(Path(folder), models)
        finally:
            ray.shutdown()
    figures = idle_figures(records)
    print_table("A batch on 4 slots", ("figure", "value"), list(figures.items()))
    told = {"models": models, "slots": SLOTS, "least_trial_s": SLOW_S}
    write_figures(arguments.json, {**figures, **told}, quick=arguments.quick)


def measured(folder: Path, models: int) -> list[TrialRecord]:
    """The records of all trials of a batch."""
    options = BatchOptions(output_dir=str(folder / "results"), device=DeviceType.CPU, slots=SLOTS)
    manifest = BatchSearch(asked(folder, models), options, tell=print).run()
    store = ResultsStore(folder / "results")
    results = (one for sweep in manifest.sweeps for one in store.read(sweep.run_id))
    return [one.record for one in results if one.record.status.was_launched]


def asked(folder: Path, models: int) -> list[AskedSweep]:
    # All candidates are slow; what else the name has makes each model another one.
    names = ", ".join(f'"fake:=slow,none{number}=oom"' for number in range(models))
    path = folder / "models.yaml"
    path.write_text(FILE.format(models=names, trials=TRIALS), encoding="utf-8")
    return list(read_batch_file(str(path)))


def idle_figures(records: Sequence[TrialRecord]) -> dict[str, float | int]:
    """Slot seconds without a trial, as a share of all."""
    spans = [(one.started_at, one.ended_at) for one in records]
    known = [(start.timestamp(), end.timestamp()) for start, end in spans if start is not None and end is not None]
    all_s = SLOTS * (max(end for _, end in known) - min(start for start, _ in known))
    busy_s = sum(end - start for start, end in known)
    return {
        "batch_idle_share": round(1 - busy_s / all_s, 4),
        "trials": len(records),
        "slot_seconds": round(all_s, 1),
        "idle_slot_seconds": round(all_s - busy_s, 1),
        "mean_trial_s": round(busy_s / len(known), 2),
    }


if __name__ == "__main__":
    main()
