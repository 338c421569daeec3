"""`BatchOptions`: what all sweeps of a batch have in common, and the command that goes on with it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Any

from kvray.candidate import DeviceType
from kvray.jobs.sent_model import as_typed, is_a_job, repeating_command
from kvray.store.parquet import ResultsStore
from kvray.tuning.batch_retry import BatchRetry


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """What all sweeps of a batch have in common.

    Attributes:
        file: the batch file, as it was named.
        budget_s: seconds for all sweeps together, shared equally by those that have not ended.
        retry: what of a batch that goes on is measured again.
    """

    output_dir: str
    file: str | None = None
    device: DeviceType | None = None
    address: str | None = None
    gpu_type: str | None = None
    slots: int | None = None
    exclusive: bool = False
    offline: bool = False
    budget_s: float | None = None
    retry: BatchRetry = field(default_factory=BatchRetry)

    @property
    def of_a_sweep(self) -> dict[str, Any]:
        """The fields of a sweep's `TuneConfig`."""
        names = ("output_dir", "device", "address", "gpu_type", "slots", "exclusive", "offline")
        return {name: getattr(self, name) for name in names}

    def command(self, batch_id: str, *, sends_models: bool = False) -> str:
        """What measures the rest of a batch in the same way; it may take as long as it needs.

        Args:
            sends_models: whether models came with this job; they are sent again, as is the file that names them.
        """
        parts = shlex.split(repeating_command("batch", sends_model=sends_models))
        if is_a_job() and self.file is not None:
            parts.append(as_typed(self.file))
        parts += ["--resume", batch_id, "--output", ResultsStore(self.output_dir).display_name]
        if retry := str(self.retry):
            parts += ["--retry", retry]
        for name in ("device", *(() if is_a_job() else ("address",)), "gpu_type", "slots"):
            if (value := getattr(self, name)) is not None:
                parts += [f"--{name.replace('_', '-')}", str(value)]
        flags = [f"--{name}" for name in ("exclusive", "offline") if getattr(self, name)]
        return shlex.join([*parts, *flags])
