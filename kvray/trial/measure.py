"""From time stamps to a `Run`: the only place where TTFT, ITL and throughput are computed from clocks."""

from __future__ import annotations

import datetime as dt
import itertools
import statistics

from kvray.candidate import DeviceType
from kvray.engines.base import Generation, LoadedModel
from kvray.errors import KvrayError
from kvray.probes.disturbance import TrialWatch
from kvray.probes.own_processes import OwnProcesses
from kvray.record import Run
from kvray.trial.spec import TrialSpec
from kvray.workload import Cell


class MeasurementError(KvrayError):
    """A generation did not deliver what was asked, so its times mean nothing."""


def measure_run(model: LoadedModel, spec: TrialSpec, cell: Cell, *, rung: int, repeat: int, watch: TrialWatch) -> Run:
    """Time one generation of the prepared `cell`, with its own window of peak memory and its environment watched.

    Raises:
        MeasurementError: the engine produced another number of tokens or sequences than the cell has.
    """
    model.reset_peak_memory()
    watch.own.reset_peak()
    started_at = dt.datetime.now(dt.UTC)
    watched = watch.start_run()
    generation = model.generate(cell.output_tokens)
    conditions = watched.finish()
    peak_mib = _peak_mib(model, spec.device, watch.own)
    check_generation(generation, cell.output_tokens, cell.batch_size)
    return Run(
        run_id=spec.run_id,
        trial_id=spec.trial_id,
        candidate_id=spec.candidate.candidate_id,
        **cell._asdict(),
        rung=rung,
        repeat=repeat,
        ttft_ms=ttft_ms(generation),
        itl_ms=itl_ms(generation),
        decode_tok_s=decode_tok_s(generation, cell.batch_size),
        peak_mib=peak_mib,
        reserved_peak_mib=model.reserved_memory_mib(),
        energy_j=conditions.energy_j,
        disturbed=conditions.disturbance is not None,
        disturbance=conditions.disturbance,
        started_at=started_at,
    )


def _peak_mib(model: LoadedModel, device: DeviceType, own: OwnProcesses) -> float | None:
    """On a CPU with the resident sets of the engine's other processes. A GPU's allocator is the engine's to ask."""
    peak_mib = model.peak_memory_mib()
    if peak_mib is None or device is not DeviceType.CPU:
        return peak_mib
    return peak_mib + own.others_peak_mib()


def check_generation(generation: Generation, output_tokens: int, batch_size: int) -> None:
    """Refuse a generation that is not `batch_size` sequences of exactly `output_tokens` with a stamp for each token.

    Raises:
        MeasurementError
    """
    lengths = {len(row) for row in generation.tokens}
    if len(generation.tokens) != batch_size or lengths != {output_tokens}:
        raise MeasurementError(
            f"asked for {batch_size} × {output_tokens} tokens, got {len(generation.tokens)} × {sorted(lengths)}"
        )
    stamped = [len(row) for row in generation.sequence_s]
    if stamped and stamped != [output_tokens] * batch_size:
        raise MeasurementError(
            f"{batch_size} × {output_tokens} tokens came with {len(stamped)} × {sorted(set(stamped))} time stamps"
        )
    if len(generation.token_s) != output_tokens:
        raise MeasurementError(f"{output_tokens} tokens came with {len(generation.token_s)} time stamps")


def ttft_ms(generation: Generation) -> float:
    """Milliseconds from the submitted prompts to the first token on the host: the mean over the sequences."""
    return (statistics.fmean(row[0] for row in generation.stamp_rows) - generation.started_s) * 1e3


def itl_ms(generation: Generation) -> tuple[float, ...]:
    """Milliseconds between successive tokens: one fewer than tokens, for one sequence after the other, or once for all
    that are in lockstep."""
    return tuple((later - earlier) * 1e3 for row in generation.stamp_rows for earlier, later in itertools.pairwise(row))


def decode_tok_s(generation: Generation, batch_size: int) -> float:
    """`(tokens - 1) * batch_size / decode seconds`. Decoding begins with the first token of any sequence and ends with
    the last of all."""
    rows = generation.stamp_rows
    return (len(rows[0]) - 1) * batch_size / (max(row[-1] for row in rows) - min(row[0] for row in rows))
