"""What is remembered: `Run` (one timed generation), `TrialRecord` (one candidate in one process), `TrialStatus`.

Field names are the Parquet column names. `None` means "not measured".
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, CompileMode, DType, ParamValue
from kvray.workload import Cell

if TYPE_CHECKING:
    from kvray.cell_figures import TrialCells
    from kvray.run_columns import RunColumns

RANDOM_PREFIX = "random:"
"""Begins the id of a model whose architecture is real and whose weights are random."""


class TrialStatus(enum.StrEnum):
    """How a trial ended. Every trial ends in exactly one."""

    OK = "ok"
    STOPPED = "stopped"
    """Ended early by the scheduler; its measurements so far are kept."""
    INTERRUPTED = "interrupted"
    """The sweep ended under it; the rungs that it had finished are kept, and a resumed sweep measures it again."""
    OOM = "oom"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    UNSUPPORTED = "unsupported"
    """The engine refused the configuration, in its own words."""
    SUBSTITUTED = "substituted"
    """Something other than the asked-for kernel or cache ran."""
    QUALITY = "quality"
    """Strays further from the reference than the profile's limit allows; its measurements so far are kept."""
    REJECTED = "rejected"
    """Never launched: a rule or the forecast excluded it."""
    SKIPPED = "skipped"
    """Never launched: the search gave it too little chance, or had to end."""
    ERROR = "error"

    @property
    def is_failure(self) -> bool:
        """Whether the trial was launched and could not deliver what it was asked for."""
        return self in _FAILURES

    @classmethod
    def failures(cls) -> tuple[TrialStatus, ...]:
        """The statuses that are failures."""
        return tuple(status for status in cls if status.is_failure)

    @property
    def is_cut_short(self) -> bool:
        """Whether the trial was ended from outside while all was well."""
        return self in (TrialStatus.STOPPED, TrialStatus.INTERRUPTED)

    @property
    def was_launched(self) -> bool:
        """Whether a process was started for it."""
        return self not in (TrialStatus.REJECTED, TrialStatus.SKIPPED)


_FAILURES = frozenset(
    {
        TrialStatus.OOM,
        TrialStatus.TIMEOUT,
        TrialStatus.CRASHED,
        TrialStatus.UNSUPPORTED,
        TrialStatus.SUBSTITUTED,
        TrialStatus.QUALITY,
        TrialStatus.ERROR,
    }
)


class Role(enum.StrEnum):
    """Why a trial was run."""

    BASELINE = "baseline"
    SEARCH = "search"
    CONFIRM = "confirm"
    CHECK = "check"
    """One side of a round of `kvray check`: it belongs to no sweep, so rankings and resumed sweeps pass it over."""


class Phase(enum.StrEnum):
    """Where in a trial something happened."""

    START = "start"
    PREPARE = "prepare"
    LOAD = "load"
    WARMUP = "warmup"
    MEASURE = "measure"
    REFERENCE = "reference"
    """Making what the model's candidates are compared with, once per model."""
    QUALITY = "quality"


_VERSION_FIELDS = {"torch": "torch_version", "transformers": "transformers_version"}
"""Libraries that have a field of their own in records, fingerprints and plans, because old ones know them by it."""


def version_fields(versions: Mapping[str, str]) -> dict[str, str | None]:
    """The fields that some of the engine's libraries have of their own, from all of `versions`."""
    return {field: versions.get(library) for library, field in _VERSION_FIELDS.items()}


def known_versions(holder: object, versions: Mapping[str, str]) -> dict[str, str]:
    """`versions` of libraries by name, with those that `holder` knows by fields of their own alone."""
    own = {library: getattr(holder, field) for library, field in _VERSION_FIELDS.items()}
    return {**{library: version for library, version in own.items() if version is not None}, **versions}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One timed generation of one cell, raw.

    Attributes:
        run_id: id of the sweep.
        trial_id: id of the trial, which is one process: joins with `trials`.
        candidate_id: hash over every field of the configuration: the same in all sweeps.
        context_tokens: length of the prompt.
        output_tokens: tokens generated for each sequence.
        batch_size: sequences generated together.
        rung: the fidelity step that asked for it: 0 is every context length once with at most 16 tokens, 1 every cell
            once at full length, 2 the further repeats. Runs of rung 0 are of other cells than those of 1 and 2.
        repeat: number of the run within its rung and cell, from 0.
        ttft_ms: from submitted prompt to first token on the host; the mean over the sequences of a batch.
        itl_ms: the `output_tokens - 1` gaps between successive tokens of each sequence, one sequence after the other;
            once for all where they get their tokens in lockstep.
        decode_tok_s: `(output_tokens - 1) * batch_size / decode seconds`.
        peak_mib: device allocator peak (CUDA) or resident-set high water of the engine's processes (CPU) in the run.
        reserved_peak_mib: what the device allocator held from the driver at most within the run; `None` on a CPU.
        energy_j: energy of the visible GPUs, as whole boards, during the whole run; `None` where there is no counter.
        disturbed: whether the environment changed during the run, so that aggregates leave it out.
        disturbance: what changed, for people; `None` in a calm run, and in records older than this column.
        started_at: when it began.
    """

    run_id: str
    trial_id: str
    candidate_id: str
    context_tokens: int
    output_tokens: int
    batch_size: int
    rung: int
    repeat: int
    ttft_ms: float
    itl_ms: tuple[float, ...]
    decode_tok_s: float
    peak_mib: float | None = None
    reserved_peak_mib: float | None = None
    energy_j: float | None = None
    disturbed: bool = False
    disturbance: str | None = None
    started_at: dt.datetime

    @property
    def cell(self) -> Cell:
        """The cell it measured."""
        return Cell(self.context_tokens, self.output_tokens, self.batch_size)


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """What one trial leaves: identity, candidate, end, aggregated metrics, cold costs, what was observed, environment.

    Metrics are geometric means over the cells of the highest rung completed, each cell by the median of its runs.

    Attributes:
        run_id: id of the sweep; ids of kvray's own making sort by time.
        trial_id: id of the trial, which is one process.
        candidate_id: hash over every field of the configuration: the same in all sweeps.
        role: why it ran. The baseline and each searched candidate run once, confirming trials further times. Trials of
            `kvray check` belong to no sweep.
        confirm_round: the confirming round, or the round of a check, that it belongs to, from 1; `None` for other
            trials, and in older records.
        model_id: the model, as it was given.
        engine: inference engine.
        profile: name of the workload; `…, changed` where it was measured with other lengths or batch sizes.
        cache: cache strategy.
        cache_params: settings of the cache strategy (JSON).
        attention: attention implementation that was asked for.
        hub_kernel: name of the kernel where `attention` is `hub_kernel`.
        dtype: floating-point type of the weights.
        compile: mode of torch.compile.
        batch_size: sequences generated together.
        parallelism: GPUs that one copy of the model is spread over.
        prefill_chunk: prompt tokens that are worked on at once; `None`: all.
        weights_limit_mib: device memory that the weights may take; `None`: no limit.
        settings: values of the engine's own axes that are set (JSON).
        status: how it ended.
        message: why, in the words of the engine or of kvray.
        rung: highest rung completed, `None` if none was. Metrics of different rungs are of different cells.
        phase: where it ended when it failed.
        log_tail: last lines that the process printed, kept where they explain a failure.
        wall_s: seconds from the fork to the end.
        busy_s: seconds of `wall_s` spent loading, warming up, proving and measuring.
        proof_s: seconds of `busy_s` spent only to see what really ran.
        started_at: when its process was started; `None` if none was.
        ended_at: when its process had ended.
        host: name of the machine that measured.
        pid: process id there.
        ttft_ms: from submitted prompt to first token on the host; the mean over the sequences of a batch.
        itl_p50_ms, itl_p95_ms, itl_p99_ms: percentiles of the gaps between tokens.
        decode_tok_s: tokens per second of all sequences together, the first token left out.
        peak_mib: peak memory: of the device's allocator, or on a CPU the resident sets of the engine's processes.
        reserved_peak_mib: what the device's allocator held from the driver at most, the highest of any run.
        library_mib: what pages of shared libraries' files took of `peak_mib` on a CPU, after the last run. The system
            decides how many of them it keeps, so comparisons leave them out. `None` in older records.
        kv_cache_mib: size of the cache at the end of the longest generation.
        device_peak_mib: what NVML says the trial's processes held on the visible GPUs after any run at most, CUDA
            contexts and libraries included. An allocator that caches keeps until the next cell what it took within a
            run, so what is held after a run is that run's peak, unless memory ran so short that cached blocks were
            given back.
        device_peak_gpu_mib: the same on that one of the visible GPUs on which it was highest: what each of them must
            have free. `None` in older records.
        energy_j_per_tok: a run's energy over its `output_tokens * batch_size`, so the prefill is part of it.
        load_s: seconds to put the model on the device.
        compile_s: seconds of warm-up calls beyond a steady one, where something was compiled.
        compile_cold: whether the compiler had to work; false if all came from its cache on disk.
        first_call_s: seconds of the very first generation.
        warmup_s: seconds of all warm-up calls together.
        cold_s: seconds until warm beyond what steady calls cost: `load_s`, and what every warm-up call took longer than
            the steady call of its cell.
        warmed_up: whether every cell became steady within the bounded number of warm-up calls.
        forecast_ttft_ms, forecast_decode_tok_s, forecast_peak_mib: what was predicted before the launch, for the cells
            that the metrics rest on.
        roofline_share: measured tokens per second over those at which reading weights and cache once a step would take
            all of the device's copy bandwidth (see `forecast.prediction`).
        expected_ttft_ms, expected_decode_tok_s, expected_peak_mib: what the search's model expects of a candidate that
            was skipped.
        expected_score_low, expected_score_high: 95 % interval of a skipped candidate's score over that of the best one
            measured.
        win_chance: probability that a skipped candidate beats the best one measured by more than 2 %.
        gpu_clock_mhz: median of the SM clock right after runs.
        gpu_temperature_c: highest temperature after any run.
        gpu_power_w: median of the boards' power right after runs.
        cache_class: class of the cache that ran.
        cache_layers: classes of its layers, with their number.
        kernel_prefill, kernel_decode: attention kernels that a profiler saw in that phase.
        graph_breaks, recompiles: how often torch.compile broke a graph, or compiled again; `None` where nothing was
            compiled.
        kv_dtype: type of the keys and values in the cache.
        resolved: what the engine made of the configuration and of all that was left to it, by the names that it has for
            its own settings (JSON); `None` where it does not tell, and in older records.
        sample_context_tokens: prompt tokens of the smallest cell, where `sample_tokens` were generated.
        sample_tokens: first tokens generated there, of the first and the last sequence of the batch (JSON).
        forced_logs: digest of a text that was fed at the end, and the log-probability of each token told of it, of the
            first and the last sequence of the batch (JSON); `None` where it was not asked for.
        processors: settings of generation_config.json that change the scores of every token.
        processor_share: share of a token's time that `processors` take.
        device_name: device that measured.
        device_uuid: which one it was: the UUIDs of the GPUs that the trial held, joined by commas; on a CPU a name of
            the machine, which is a new one after every boot. `None` in older records.
        driver_version: version of its driver.
        engine_versions: versions of the libraries in which the engine computed, by name (JSON), as the measuring
            process had them. Empty in older records.
        torch_version, transformers_version: the same of these two, where the engine computes in them.
        kvray_version: version of kvray that measured.
        kl_mean: Kullback-Leibler divergence of the reference from this candidate, nats per token (see `trial.quality`).
        kl_decode: `kl_mean` over the tokens that were decoded one by one.
        nll_delta: change of the text's negative log-likelihood, nats per token.
        nll_delta_se: standard error of `nll_delta`.
        top1_agreement: share of tokens at which both hold the same one for the most probable.
        kl_upper, kl_decode_upper, nll_delta_upper: upper bounds of `kl_mean`, `kl_decode` and `nll_delta`, which are
            lower bounds then, because the engine told the most probable tokens only; `None` where these are exact.
        quality_s: seconds of measuring quality, without making the reference.
        quality_note: why quality was not measured, where that was tried; or what its engine's tokenizer does otherwise
            than the reference's.
        fingerprint: digest of what makes measurements comparable (see `store.fingerprint`); of the trials of one sweep
            those with the same one are ranked together. `None` in older records, which have the sweep's first one.
        hardware: digest of the node that measured: its device, driver, CPUs, memory and libraries. Only trials with the
            same one are ranked together. `None` where a sweep measured on its own machine, and in older records.
        gpu_type: Ray's accelerator type of the cluster's GPUs that the candidate was to be measured on: each type is
            searched by itself. `None` on a CPU, without a cluster, where Ray knows no type, and in older records.
        niceness: scheduling priority of the measuring process.
        threads: its intra-op threads.
        cpus: CPUs that it might use.
        cpu_quota: CPUs' worth of time that its control groups allow (`probes.cgroups`); `None` without such a limit.
    """

    run_id: str
    trial_id: str
    candidate_id: str
    role: Role
    confirm_round: int | None = None
    model_id: str
    engine: str
    profile: str
    cache: CacheStrategy
    cache_params: tuple[tuple[str, ParamValue], ...] = ()
    attention: AttentionBackend
    hub_kernel: str | None = None
    dtype: DType
    compile: CompileMode
    batch_size: int
    parallelism: int
    prefill_chunk: int | None = None
    weights_limit_mib: int | None = None
    settings: tuple[tuple[str, ParamValue], ...] = ()

    status: TrialStatus
    phase: Phase | None = None
    message: str | None = None
    log_tail: str | None = None
    rung: int | None = None
    wall_s: float | None = None
    busy_s: float | None = None
    proof_s: float | None = None
    started_at: dt.datetime | None = None
    ended_at: dt.datetime | None = None
    host: str | None = None
    pid: int | None = None

    ttft_ms: float | None = None
    itl_p50_ms: float | None = None
    itl_p95_ms: float | None = None
    itl_p99_ms: float | None = None
    decode_tok_s: float | None = None
    peak_mib: float | None = None
    reserved_peak_mib: float | None = None
    library_mib: float | None = None
    device_peak_mib: float | None = None
    device_peak_gpu_mib: float | None = None
    kv_cache_mib: float | None = None
    energy_j_per_tok: float | None = None

    load_s: float | None = None
    compile_s: float | None = None
    first_call_s: float | None = None
    warmup_s: float | None = None
    cold_s: float | None = None
    warmed_up: bool | None = None

    kl_mean: float | None = None
    kl_decode: float | None = None
    nll_delta: float | None = None
    nll_delta_se: float | None = None
    top1_agreement: float | None = None
    kl_upper: float | None = None
    kl_decode_upper: float | None = None
    nll_delta_upper: float | None = None
    quality_s: float | None = None
    quality_note: str | None = None

    cache_class: str | None = None
    cache_layers: str | None = None
    kernel_prefill: str | None = None
    kernel_decode: str | None = None
    graph_breaks: int | None = None
    recompiles: int | None = None
    compile_cold: bool | None = None
    kv_dtype: str | None = None
    resolved: str | None = None
    sample_context_tokens: int | None = None
    sample_tokens: str | None = None
    forced_logs: str | None = None
    processors: str | None = None
    processor_share: float | None = None

    forecast_ttft_ms: float | None = None
    forecast_decode_tok_s: float | None = None
    forecast_peak_mib: float | None = None
    roofline_share: float | None = None
    expected_ttft_ms: float | None = None
    expected_decode_tok_s: float | None = None
    expected_peak_mib: float | None = None
    expected_score_low: float | None = None
    expected_score_high: float | None = None
    win_chance: float | None = None

    device_name: str | None = None
    device_uuid: str | None = None
    driver_version: str | None = None
    engine_versions: tuple[tuple[str, str], ...] = ()
    torch_version: str | None = None
    transformers_version: str | None = None
    kvray_version: str | None = None
    fingerprint: str | None = None
    hardware: str | None = None
    gpu_type: str | None = None
    niceness: int | None = None
    threads: int | None = None
    cpus: int | None = None
    cpu_quota: float | None = None
    gpu_clock_mhz: float | None = None
    gpu_temperature_c: float | None = None
    gpu_power_w: float | None = None

    @classmethod
    def of(
        cls,
        candidate: Candidate,
        *,
        run_id: str,
        trial_id: str,
        role: Role,
        model_id: str,
        profile: str,
        status: TrialStatus,
        **values: Any,
    ) -> TrialRecord:
        """A record of `candidate`; `values` are further fields by name."""
        return cls(
            run_id=run_id,
            trial_id=trial_id,
            candidate_id=candidate.candidate_id,
            role=role,
            model_id=model_id,
            profile=profile,
            status=status,
            **{name: getattr(candidate, name) for name in _CANDIDATE_FIELDS},
            **values,
        )

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the engine's libraries by name, of older records too."""
        return known_versions(self, dict(self.engine_versions))

    @cached_property
    def candidate(self) -> Candidate:
        """The configuration that was measured."""
        return Candidate(**{name: getattr(self, name) for name in _CANDIDATE_FIELDS})

    def with_(self, **changes: Any) -> TrialRecord:
        """A copy with `changes` applied."""
        return replace(self, **changes)


def gpus_of(device_uuid: str | None) -> frozenset[str]:
    """The GPUs, or the machine, that a column `device_uuid` names; none where it is not known."""
    return frozenset(device_uuid.split(",")) if device_uuid else frozenset()


_CANDIDATE_FIELDS = tuple(spec.name for spec in fields(Candidate))


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """A trial's record together with its raw runs, as it travels from a slot to the store."""

    record: TrialRecord
    runs: Sequence[Run] = field(default_factory=tuple)

    def __repr__(self) -> str:
        """Short: Tune makes the text of every result several times, and shows it to nobody."""
        return f"TrialResult({self.record.trial_id!r}, {self.record.status.value}, {len(self.runs)} runs)"

    @property
    def columns(self) -> RunColumns:
        """`runs` as arrays: records that were read have them so, and make objects only of those that are asked for."""
        from kvray.run_columns import RunColumns  # numpy takes a tenth of a second, which `kvray --help` does without

        known = getattr(self.runs, "columns", None)
        return known if isinstance(known, RunColumns) else self._columns_of_objects

    @cached_property
    def _columns_of_objects(self) -> RunColumns:
        from kvray.run_columns import RunColumns

        return RunColumns.of(self.runs)

    @cached_property
    def full_length(self) -> dict[Cell, RunColumns]:
        """The runs of each full-length cell."""
        return self.columns.by_cell(full_length=True)

    @cached_property
    def cells(self) -> TrialCells:
        """What the full-length cells come to; of records that were read, computed for many trials at once."""
        from kvray.cell_figures import TrialBlock, TrialCells

        known = getattr(self.runs, "cells", None)
        return known if isinstance(known, TrialCells) else TrialBlock(self.columns, (0, len(self.columns))).cells(0)

    @property
    def has_disturbed_runs(self) -> bool:
        """Whether the environment changed during one of its runs."""
        known = getattr(self.runs, "has_disturbed", None)
        return bool(self.columns.disturbed.any() if known is None else known)

    @property
    def has_lost_its_runs(self) -> bool:
        """Whether it measured something, and its raw runs are gone or could not be read."""
        return self.record.rung is not None and not self.runs


def short_model_name(model_id: str) -> str:
    """For titles: the last part of a local path, e.g. `model.gguf` or `random:llama`; a hub id as it is."""
    prefix = RANDOM_PREFIX if model_id.startswith(RANDOM_PREFIX) else ""
    path = PurePath(model_id.removeprefix(prefix))
    return prefix + path.name if path.is_absolute() else model_id
