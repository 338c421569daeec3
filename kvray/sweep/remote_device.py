"""What a node that will measure says of itself: its device, what stands in each engine's way there, its versions.

The machine that a sweep is started from may have no GPU, or another one. NVML is asked and no engine's library is
imported, so asking takes no memory of the GPU.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kvray.candidate import DeviceType
from kvray.engines.base import DeviceFacts, EngineAdapter
from kvray.engines.model_access import ModelAccess
from kvray.errors import SweepError, sentence_of
from kvray.forecast.hardware import Hardware, HardwareKey, load_hardware
from kvray.probes.cpu import cpu_name, trial_threads, wished_threads
from kvray.probes.environment import Environment, capture_environment
from kvray.probes.gpu import visible_gpus
from kvray.space.axis import Axis
from kvray.sweep.gpu_types import gpu_type_of, measured_types
from kvray.sweep.remote_model import NodeModels

_GPU_SHARE = 0.001
"""Share of a GPU, so that the question waits only where every GPU of the node is taken as a whole."""
_PATIENCE_S = 10.0
_LATEST_S = 60.0
"""After the first answer, until which the others must have come: a type whose GPUs are all taken holds up no other."""
_logger = logging.getLogger("kvray.sweep")


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """One node of those that will measure.

    Attributes:
        gpu_type: Ray's accelerator type of its GPUs, which trials keep to; `None` where Ray knows none, and on a CPU.
        axes: by engine, what it lets one choose there, with what stands in the way of each value.
        environments: by engine, the node's machine and the versions of the engine's libraries there.
        rates: by engine, what kvray's cache on that node has of its rates.
        models: what it and the other nodes of its type have of the model.
    """

    device: DeviceFacts
    gpu_type: str | None = None
    axes: Mapping[str, tuple[Axis, ...]]
    environments: Mapping[str, Environment]
    rates: Mapping[str, Hardware] = field(default_factory=dict)
    models: ModelAccess = field(default_factory=ModelAccess)


def ask_nodes(
    adapters: Sequence[EngineAdapter],
    *,
    device: DeviceType | None,
    gpu_type: str | None,
    check_alive: Callable[[], None],
    slots: int = 1,
) -> tuple[NodeFacts, ...]:
    """Ask a node of the connected Ray, for each type of GPU one: those with GPUs where there are any and `device` is
    not the CPU. The type that the cluster has most GPUs of comes first.

    Args:
        device: what was asked for; `None` takes GPUs where there are any.
        gpu_type: Ray's accelerator type that was asked for; `None`: all.
        check_alive: called while the answers are waited for; what it raises ends the wait.
        slots: among which a machine's CPUs are divided.

    Raises:
        SweepError: no node has what was asked for, or none could answer.
    """
    import ray

    nodes = [(node["NodeID"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
    nodes = sorted((node for node in nodes if node[1].get("CPU", 0.0) >= 1), key=lambda node: str(node[0]))
    if not nodes:
        raise SweepError("Ray offers no CPU to run a slot on.")
    with_gpus = [node for node in nodes if node[1].get("GPU", 0.0) >= 1]
    if device is DeviceType.CPU or (device is None and gpu_type is None and not with_gpus):
        return _answers([_Question(nodes=nodes, device=DeviceType.CPU, slots=slots)], adapters, check_alive)
    if not with_gpus:
        raise SweepError("The sweep needs 1 GPU, Ray offers 0.", hint="Pass --device cpu to tune on the CPU.")
    questions = []
    for chosen in measured_types([resources for _, resources in with_gpus], gpu_type):
        of_type = [node for node in with_gpus if chosen is None or gpu_type_of(node[1]) == chosen]
        largest_first = sorted(of_type, key=lambda node: -node[1]["GPU"])
        questions.append(_Question(nodes=largest_first, device=DeviceType.CUDA, gpu_type=chosen))
    return _answers(questions, adapters, check_alive)


def named_on_node(environment: Environment) -> Environment:
    """`environment` with the GPU's name as Ray has it, where NVML does not know it on this node."""
    if environment.driver_version is not None or visible_gpus(None):
        return environment
    import ray

    here = ray.get_runtime_context().get_node_id()
    types = (gpu_type_of(node["Resources"]) for node in ray.nodes() if node["NodeID"] == here)
    name = next((one for one in types if one is not None), None)
    return environment if name is None else replace(environment, device_name=name)


@dataclass(frozen=True, kw_only=True)
class _Question:
    """What is asked of the first of some nodes that are taken to be alike."""

    nodes: Sequence[tuple[str, Mapping[str, float]]]
    device: DeviceType
    gpu_type: str | None = None
    slots: int = 1

    def ask(self, adapters: Sequence[EngineAdapter]) -> Any:
        """Ray's reference to the answer."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node_id, resources = self.nodes[0]
        gpus = int(resources.get("GPU", 0.0)) if self.device is DeviceType.CUDA else 0
        task = ray.remote(_seen_here).options(
            num_cpus=0,
            num_gpus=_GPU_SHARE if gpus else 0,
            max_retries=1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        )
        return task.remote(tuple(adapters), self.device, gpus, wished_threads(), self.slots)


def _answers(
    questions: Sequence[_Question], adapters: Sequence[EngineAdapter], check_alive: Callable[[], None]
) -> tuple[NodeFacts, ...]:
    """What the nodes say. Those that cannot answer are left out while another one can."""
    import ray

    asked = [(question, question.ask(adapters)) for question in questions]
    answered = _wait_for([answer for _, answer in asked], check_alive)
    found, errors = [], []
    for question, answer in asked:
        try:
            if answer not in answered:
                ray.cancel(answer, force=True)
                raise SweepError(f"the node that was asked did not answer within {_LATEST_S:g} s of the others.")
            seen = ray.get(answer)
        except (SweepError, ray.exceptions.RayError) as error:
            errors.append((question.gpu_type, error))
            continue
        models = NodeModels([node_id for node_id, _ in question.nodes], check_alive)
        found.append(replace(seen, gpu_type=question.gpu_type, models=models))
    if not found:
        first = errors[0][1]
        raise SweepError(f"The node that was to measure could not say what it has: {sentence_of(first)}") from first
    for gpu_type, reason in errors:
        _logger.warning("Nothing is measured on GPUs of type %s: %s", gpu_type, sentence_of(reason))
    return tuple(found)


def _wait_for(answers: Sequence[Any], check_alive: Callable[[], None]) -> set[Any]:
    """The answers that have come: all, or those that are there `_LATEST_S` after the first."""
    import ray

    is_told, answered_s = False, None
    while True:
        ready, waiting = ray.wait(list(answers), num_returns=len(answers), timeout=_PATIENCE_S)
        if ready and answered_s is None:
            answered_s = time.monotonic()
        if not waiting or (answered_s is not None and time.monotonic() - answered_s > _LATEST_S):
            return set(ready)
        check_alive()
        if not is_told:
            _logger.warning(
                "Waiting for a node to say what it has: its GPUs are taken, or its first worker is starting."
            )
            is_told = True


def _seen_here(
    adapters: Sequence[EngineAdapter], device: DeviceType, gpus: int, wished: int | None, slots: int
) -> NodeFacts:
    """Runs on the node. `wished` are the threads that the user of the driver has asked for."""
    seen = [(one.name, capture_environment(device, libraries=one.libraries)) for one in adapters]
    environments = {name: one if device is DeviceType.CPU else named_on_node(one) for name, one in seen}
    threads = trial_threads(wished, slots)
    facts = _device_facts(device, gpus, environments[adapters[0].name].device_name, threads)
    return NodeFacts(
        device=facts,
        axes={one.name: tuple(one.axes(facts)) for one in adapters},
        environments=environments,
        rates=_known_rates(adapters, device, threads),
    )


def _known_rates(adapters: Sequence[EngineAdapter], device: DeviceType, threads: int | None) -> dict[str, Hardware]:
    """What was measured of this machine when it was the driver's own."""
    measured = [one for one in adapters if one.measures_hardware]
    keys = {one.name: HardwareKey.here(one.name, device, threads, libraries=one.libraries) for one in measured}
    known = {name: load_hardware(key) for name, key in keys.items()}
    return {name: rates for name, rates in known.items() if rates is not None}


def _device_facts(device: DeviceType, gpus: int, name: str, threads: int | None) -> DeviceFacts:
    if device is DeviceType.CPU:
        return DeviceFacts(device=device, device_name=cpu_name(), trial_threads=threads or 0)
    seen = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    return DeviceFacts(
        device=device,
        device_name=name,
        gpu_count=gpus,
        compute_capability=min((gpu.compute_capability for gpu in seen), default=None),
        gpu_memory_mib=min((gpu.memory_total_mib for gpu in seen), default=None),
    )
