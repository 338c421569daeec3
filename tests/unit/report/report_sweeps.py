"""Sweeps to report on: real records and runs with made-up, repeatable figures, analysed by `kvray.analysis`."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kvray.analysis import analyse
from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, CompileMode, DType
from kvray.record import Phase, Role, Run, TrialRecord, TrialResult, TrialStatus
from kvray.report.info import ReportInfo, report_info
from kvray.store.manifest import SweepManifest
from kvray.workload import Cell, Limits, WorkloadProfile

STARTED = dt.datetime(2026, 11, 24, 21, 30, tzinfo=dt.UTC)
PROFILE = WorkloadProfile(
    name="chat-agent",
    context_lengths=(512, 1024, 2048),
    output_lengths=(32, 64),
    weight_ttft=0.5,
    weight_throughput=0.35,
    weight_memory=0.15,
)
ENVIRONMENT: dict[str, Any] = {
    "device_name": "AMD EPYC 7B13, 2 cores",
    "torch_version": "2.13.0+cpu",
    "transformers_version": "5.23.0",
    "kvray_version": "0.1.0",
    "host": "laptop",
    "niceness": 0,
    "threads": 2,
    "cpus": 2,
}


def candidate(
    cache: str = "dynamic", attention: str = "sdpa", dtype: str = "float32", compile_mode: str = "off", **more: Any
) -> Candidate:
    return Candidate(
        engine="transformers",
        cache=CacheStrategy(cache),
        attention=AttentionBackend(attention),
        dtype=DType(dtype),
        compile=CompileMode(compile_mode),
        **more,
    )


BASELINE = candidate()
WINNER = candidate("dynamic", "sdpa_flash", "bfloat16")


def measured(
    what: Candidate,
    *,
    speed: float = 1.0,
    prefill: float | None = None,
    peak_mib: float | None = 900.0,
    role: Role = Role.SEARCH,
    process: int = 0,
    profile: WorkloadProfile = PROFILE,
    repeats: int = 3,
    **values: Any,
) -> TrialResult:
    """A complete trial of `what`, decoding `speed` and prefilling `prefill` (or else also `speed`) times as fast as the
    baseline does, with repeatable noise."""
    noise = random.Random(f"{what.candidate_id}/{process}")
    between = noise.gauss(1.0, 0.01)
    trial_id = f"{what.candidate_id}-{role}-{process}"
    runs = tuple(
        _run(
            what, trial_id, cell, repeat, speed * between * noise.gauss(1.0, 0.01), (prefill or speed) / speed, peak_mib
        )
        for cell in profile.cells(what.batch_size, rung=2)
        for repeat in range(repeats)
    )
    settings: dict[str, Any] = {
        "rung": 2,
        "load_s": 0.21,
        "first_call_s": 0.9,
        "warmup_s": 3.4,
        "kv_cache_mib": 46.9,
        "cache_class": "DynamicCache[DynamicLayer]",
        "kernel_prefill": "aten::_scaled_dot_product_flash_attention_for_cpu",
        "kernel_decode": "aten::_scaled_dot_product_flash_attention_for_cpu",
        "kl_mean": 0.00021,
        "top1_agreement": 0.998,
        "peak_mib": peak_mib,
        **ENVIRONMENT,
    }
    record = record_of(what, TrialStatus.OK, role=role, trial_id=trial_id, **{**settings, **values})
    return TrialResult(record=record, runs=runs)


def _run(
    what: Candidate, trial_id: str, cell: Cell, repeat: int, speed: float, prefill: float, peak_mib: float | None
) -> Run:
    """Prefill costs more per token the longer the prompt, as attention does; so does each decoded token."""
    itl_ms = 37.0 * (1 + cell.context_tokens / 20_000) / speed
    return Run(
        run_id="20261124-2130-ab12",
        trial_id=trial_id,
        candidate_id=what.candidate_id,
        context_tokens=cell.context_tokens,
        output_tokens=cell.output_tokens,
        batch_size=cell.batch_size,
        rung=2,
        repeat=repeat,
        ttft_ms=cell.context_tokens * 1.1 * (1 + cell.context_tokens / 10_000) / (speed * prefill),
        itl_ms=tuple(itl_ms * (1.3 if step % 12 == 7 else 1.0) for step in range(cell.output_tokens - 1)),
        decode_tok_s=1000 * cell.batch_size / itl_ms,
        peak_mib=None if peak_mib is None else peak_mib + cell.context_tokens / 100,
        started_at=STARTED,
    )


def ended(what: Candidate, status: TrialStatus, message: str, **values: Any) -> TrialResult:
    """A trial without runs, or with one of the rung that it came to."""
    record = record_of(what, status, message=message, **values)
    if record.rung is None:
        return TrialResult(record=record)
    cell = PROFILE.cells(what.batch_size, rung=record.rung)[0]
    run = replace(_run(what, record.trial_id, cell, 0, 1.0, 1.0, 900.0), rung=record.rung)
    return TrialResult(record=record, runs=(run,))


def record_of(what: Candidate, status: TrialStatus, **values: Any) -> TrialRecord:
    settings: dict[str, Any] = {
        "role": Role.BASELINE if what == BASELINE else Role.SEARCH,
        "trial_id": what.candidate_id,
        **values,
    }
    return TrialRecord.of(
        what,
        run_id="20261124-2130-ab12",
        model_id="HuggingFaceTB/SmolLM2-135M",
        profile="chat-agent",
        status=status,
        **settings,
    )


def manifest(**values: Any) -> SweepManifest:
    settings: dict[str, Any] = {
        "kvray_version": "0.1.0",
        "run_id": "20261124-2130-ab12",
        "created_at": STARTED,
        "model_id": "HuggingFaceTB/SmolLM2-135M",
        "model_revision": "93efa2f",
        "architecture": "LlamaForCausalLM",
        "engine": "transformers",
        "device": "cpu",
        "device_name": "AMD EPYC 7B13, 2 cores",
        "profile": PROFILE,
        "baseline_id": BASELINE.candidate_id,
        "memory_note": "Highest resident set of the measuring process within a run, weights included.",
        "left_out": (
            ("cache", "offloaded", "moves the cache between GPU and host memory: needs a CUDA GPU"),
            ("dtype", "float16", "emulated on a CPU (prefill 6-10 times slower)"),
        ),
        "arguments": ("HuggingFaceTB/SmolLM2-135M", "--profile", "chat-agent"),
    }
    return SweepManifest(**{**settings, **values})


def info_of(results: Sequence[TrialResult], **values: Any) -> ReportInfo:
    """The report of `results`; `values` are fields of the manifest."""
    about = manifest(**values)
    return report_info(about, results, analyse(results, about.profile, seed=about.seed))


def realistic_results() -> list[TrialResult]:
    """Twelve complete candidates over six cells, confirmed, and one or more of every other end."""
    math_kernel: dict[str, Any] = {
        "kernel_prefill": "aten::_scaled_dot_product_attention_math",
        "kernel_decode": "aten::bmm",
    }
    static: dict[str, Any] = {"cache_class": "StaticCache[StaticLayer]", "kv_cache_mib": 92.8}
    compiled: dict[str, Any] = {
        "first_call_s": 41.2,
        "warmup_s": 55.0,
        "compile_s": 49.7,
        "graph_breaks": 0,
        "recompiles": 1,
    }
    rival = candidate("dynamic", "sdpa", "bfloat16")
    results = [
        measured(BASELINE, role=Role.BASELINE, peak_mib=902),
        measured(WINNER, speed=1.31, prefill=1.98, peak_mib=614),
        measured(rival, speed=1.305, prefill=1.97, peak_mib=748),
        measured(candidate("static", "sdpa", "bfloat16"), speed=1.12, prefill=1.84, peak_mib=660, **static),
        measured(candidate("static", "sdpa_flash", "bfloat16"), speed=1.11, prefill=1.83, peak_mib=661, **static),
        measured(
            candidate("static", "sdpa", "bfloat16", "default"),
            speed=1.42,
            prefill=1.71,
            peak_mib=790,
            **static,
            **compiled,
        ),
        measured(candidate("dynamic", "sdpa_flash", "float32"), speed=1.01, peak_mib=903),
        measured(candidate("static", "sdpa_flash", "float32"), speed=0.87, peak_mib=948, **static),
        measured(
            candidate("static", "sdpa_math", "bfloat16"),
            speed=1.02,
            prefill=0.71,
            peak_mib=655,
            **static,
            **math_kernel,
        ),
        measured(candidate("dynamic", "sdpa_math", "bfloat16"), speed=1.16, prefill=0.94, peak_mib=560, **math_kernel),
        measured(candidate("dynamic", "eager", "float32"), speed=0.93, prefill=0.52, peak_mib=940, **math_kernel),
        measured(
            candidate("static", "eager", "bfloat16"), speed=0.88, prefill=0.60, peak_mib=650, **static, **math_kernel
        ),
        measured(candidate("dynamic", "sdpa", "bfloat16", batch_size=4), speed=0.78, prefill=0.51, peak_mib=1210),
    ]
    for process in (1, 2):
        results += [
            measured(WINNER, speed=1.31, prefill=1.98, peak_mib=614, role=Role.CONFIRM, process=process),
            measured(rival, speed=1.305, prefill=1.97, peak_mib=748, role=Role.CONFIRM, process=process),
            measured(BASELINE, peak_mib=902, role=Role.CONFIRM, process=process),
        ]
    return results + unsuccessful_results()


def limits_missed(results: Sequence[TrialResult]) -> ReportInfo:
    """The report of `results` under limits that nothing measured here keeps."""
    limits = Limits(max_ttft_ms=1_000.0, min_decode_tok_s=100.0)
    return info_of(results, profile=PROFILE.model_copy(update={"limits": limits}))


def unsuccessful_results() -> list[TrialResult]:
    tail = (
        "Traceback (most recent call last):\n"
        '  File "kvray/trial/process.py", line 88, in measure\n'
        "    model.generate(cell)\n"
        "RuntimeError: [enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 8589934592 bytes."
    )
    half: dict[str, Any] = {"dtype": "float16"}
    return [
        ended(
            candidate("static", "eager", "float32"),
            TrialStatus.OOM,
            "Needed 8.0 GiB more than the host has.",
            phase=Phase.MEASURE,
            log_tail=tail,
            load_s=0.22,
        ),
        ended(
            candidate("dynamic", "sdpa", **half),
            TrialStatus.TIMEOUT,
            "The warm-up took longer than 600 s.",
            phase=Phase.WARMUP,
            load_s=0.2,
        ),
        ended(
            candidate("static", "sdpa", "float32", "reduce-overhead"),
            TrialStatus.CRASHED,
            "Died by signal 11 (SIGSEGV).",
            phase=Phase.WARMUP,
            log_tail="inductor: ```\nFatal Python error",
        ),
        ended(
            candidate("dynamic", "sdpa_math", "float32"),
            TrialStatus.SUBSTITUTED,
            "Asked for sdpa_math; aten::_scaled_dot_product_flash_attention_for_cpu ran.",
            phase=Phase.MEASURE,
        ),
        *(
            ended(
                candidate("static", kernel, **half), TrialStatus.STOPPED, "Behind three quarters of the rest.", rung=0
            )
            for kernel in ("sdpa", "sdpa_math")
        ),
        *(
            ended(candidate(cache, f"sdpa_{kernel}", dtype), TrialStatus.REJECTED, f"sdpa_{kernel} needs CUDA.")
            for cache in ("dynamic", "static")
            for kernel in ("cudnn", "efficient")
            for dtype in ("float32", "bfloat16")
        ),
        ended(
            candidate("dynamic", "eager", **half),
            TrialStatus.SKIPPED,
            "Predicted utility −1.9 ± 0.3, at least 48 % behind the best.",
        ),
    ]
