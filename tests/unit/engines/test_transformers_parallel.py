"""Transformers over several GPUs: what can be asked for and is refused, what is forecast, and the code of it."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.accelerate import _get_device_map

from kvray.candidate import (
    AttentionBackend,
    CacheStrategy,
    Candidate,
    DeviceType,
    DType,
    ParallelChoice,
)
from kvray.engines.base import DeviceFacts, ModelInfo, ModelRequest, UnsupportedError
from kvray.engines.transformers import TransformersAdapter
from kvray.engines.transformers.arguments import Split, call_arguments
from kvray.engines.transformers.costs import TransformersCosts
from kvray.engines.transformers.loading import _spread
from kvray.engines.transformers.observed import _ranks_substitution, _weights_substitution
from kvray.engines.transformers.spaces import several_gpus
from kvray.errors import InvalidValueError
from kvray.forecast.memory import MIB
from kvray.forecast.prediction import does_not_fit, forecast
from kvray.forecast.shape import LayerShape, ModelShape
from kvray.space.axis import canonical_form
from kvray.space.constraints import RULES, SpaceFacts, first_objection
from kvray.space.menu import available_here
from kvray.workload import Cell, get_profile

TINY = Path(__file__).parents[2] / "assets" / "tiny_llama"
ADAPTER = TransformersAdapter()
PROFILE = get_profile("ci-micro")
CPU = DeviceFacts(device=DeviceType.CPU, device_name="a CPU")
LAYERS, PARAMETERS = 7, 8 * 10**9
SHAPE = ModelShape(
    total_parameters=PARAMETERS,
    lookup_parameters=0,
    vocab=32_000,
    hidden=4096,
    intermediate=14_336,
    heads=32,
    layers=(LayerShape(kv_heads=8, key_dim=128, value_dim=128),) * LAYERS,
)
MODEL = ModelInfo(
    model_id="o/m",
    revision="r",
    architecture="A",
    max_context=4096,
    native_dtype=DType.BFLOAT16,
    shape=SHAPE,
    tensor_parallel=True,
)


def gpus(count: int, memory_mib: float | None = 80_000.0) -> DeviceFacts:
    return DeviceFacts(
        device=DeviceType.CUDA,
        device_name="a GPU",
        gpu_count=count,
        compute_capability=(9, 0),
        gpu_memory_mib=memory_mib,
    )


def candidate(count: int = 2, split: str | None = "tp", **changes: object) -> Candidate:
    values: dict[str, object] = {
        "cache": CacheStrategy.DYNAMIC,
        "attention": AttentionBackend.SDPA,
        "dtype": DType.BFLOAT16,
        "parallelism": count,
        "settings": () if split is None else (("split", split),),
    }
    return Candidate(engine="transformers", **{**values, **changes})  # type: ignore[arg-type]


def objection(
    asked: Candidate, *, device: DeviceFacts | None = None, model: ModelInfo = MODEL, model_id: str = "o/m"
) -> str | None:
    device = device or gpus(4)
    facts = SpaceFacts(
        device=device.device,
        dtypes=frozenset(DType),
        gpu_count=device.gpu_count,
        cpu_processes=ADAPTER.cpu_processes,
    )
    rules = (
        *RULES,
        available_here(ADAPTER.axes(device)),
        *ADAPTER.rules(ModelRequest(model_id=model_id), model, PROFILE),
    )
    return first_objection(asked, facts, rules)


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("single", ParallelChoice()),
        (" tp = 4 ", ParallelChoice(4, "tp")),
        ("device_map=2", ParallelChoice(2, "device_map")),
        ("3", ParallelChoice(3)),
        ("tp=1", ParallelChoice()),
    ],
)
def test_a_choice_of_gpus_is_read_as_it_is_written(text: str, choice: ParallelChoice) -> None:
    assert ParallelChoice.parse(text) == choice
    assert ParallelChoice.parse(str(choice)) == choice


@pytest.mark.parametrize("text", ["", "tp", "tp=0", "tp=", "=2", "tp=2=2", "-1", "tp=99999"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidValueError, match="neither single nor a way and a number of GPUs") as caught:
        ParallelChoice.parse(text)
    assert caught.value.hint == "Write it like single,device_map=2,tp=2."


def test_on_one_gpu_there_is_nothing_to_split() -> None:
    assert canonical_form(candidate(1, "tp"), ADAPTER.axes(gpus(2)), PROFILE) == candidate(1, None)
    assert canonical_form(candidate(2, "tp"), ADAPTER.axes(gpus(2)), PROFILE) == candidate(2, "tp")


def test_what_can_be_spread_is_not_refused() -> None:
    assert objection(candidate(2, "tp")) is None
    assert objection(candidate(4, "tp", cache=CacheStrategy.STATIC)) is None
    assert objection(candidate(3, "device_map")) is None
    assert objection(candidate(2, "tp"), device=CPU) is None, "for trying it"


@pytest.mark.parametrize(
    ("asked", "given", "reason"),
    [
        (candidate(2, None), {}, "2 GPUs can be used in several ways: device_map=2 or tp=2 (cache-settings)"),
        (candidate(8, "tp"), {}, "needs 8 GPUs, 4 visible (parallelism)"),
        (candidate(3, "tp"), {}, "32 heads cannot be divided among 3 GPUs (several-gpus)"),
        (
            candidate(16, "tp"),
            {"device": gpus(16)},
            "8 heads of keys and values cannot be divided among 16 GPUs (several-gpus)",
        ),
        (
            candidate(2, "tp"),
            {"model": replace(MODEL, tensor_parallel=False)},
            "Transformers has no tensor parallel plan for A (several-gpus)",
        ),
        (
            candidate(2, "tp"),
            {"model": replace(MODEL, packing="GPTQ")},
            "weights that are packed with GPTQ are not split by tp (several-gpus)",
        ),
        (
            candidate(2, "tp"),
            {"model_id": "/a/model.gguf"},
            "Transformers does not split the weights of a GGUF file by tp (several-gpus)",
        ),
        (
            candidate(2, "tp", cache=CacheStrategy.PAGED),
            {},
            "continuous batching schedules by itself, so the processes of tp would not stay in step (several-gpus)",
        ),
        (
            candidate(2, "device_map", weights_limit_mib=100),
            {},
            "a weights limit keeps the model on one GPU (several-gpus)",
        ),
        (
            candidate(2, "device_map"),
            {"device": CPU},
            "split device_map: spreads layers over several devices: needs CUDA GPUs (available-here)",
        ),
        (candidate(9, "tp"), {"device": CPU}, "at most 8 processes share a CPU (parallelism)"),
    ],
)
def test_what_cannot_be_spread_is_refused_with_the_reason(
    asked: Candidate, given: dict[str, object], reason: str
) -> None:
    assert objection(asked, **given) == reason  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (CPU, []),
        (gpus(1), []),
        (gpus(2), ["tp=2"]),
        (gpus(4), ["tp=2", "tp=4"]),
        (gpus(4, 12_000.0), ["device_map=2", "tp=2", "tp=4"]),
        (gpus(4, 6_000.0), ["device_map=4", "tp=4"]),
        (gpus(2, 4_000.0), []),
        (gpus(2, None), ["tp=2"]),
    ],
)
def test_the_default_space_spreads_where_that_may_help(device: DeviceFacts, expected: list[str]) -> None:
    assert [str(one) for one in several_gpus(MODEL, device, PROFILE)] == expected
    blocks = ADAPTER.default_space(MODEL, device, PROFILE)
    assert sorted({block.parallelisms[0] for block in blocks} - {1}) == sorted(
        {int(one.partition("=")[2]) for one in expected}
    )
    assert len([block for block in blocks if block.parallelisms != (1,)]) == len(expected)


@pytest.mark.parametrize(
    ("device", "count"),
    [
        (CPU, 1),
        (gpus(1, 4_000.0), 1),
        (gpus(2), 1),
        (gpus(4, 12_000.0), 2),
        (gpus(4, 6_000.0), 4),
        (gpus(2, 2_000.0), 1),
    ],
)
def test_the_baseline_is_spread_where_one_gpu_does_not_hold_the_weights(device: DeviceFacts, count: int) -> None:
    baseline = ADAPTER.baseline(MODEL, device, batch_size=1)
    assert baseline.parallelism == count
    assert baseline.setting("split") == ("device_map" if count > 1 else None)


def test_tensor_parallelism_halves_what_a_gpu_holds_and_reads() -> None:
    costs, cell = TransformersCosts(SHAPE), Cell(512, 32, 1)
    one = costs.memory(candidate(1, None), cell, DeviceType.CUDA)
    two = costs.memory(candidate(2, "tp"), cell, DeviceType.CUDA)
    assert (two.weights, two.cache, two.transient) == (one.weights, one.cache, 0)
    assert 0 < two.on_each_gpu < one.transient
    predicted = forecast(costs, candidate(2, "tp"), PROFILE, DeviceType.CUDA)
    assert predicted.gpus == 2
    assert does_not_fit(predicted, None, PARAMETERS * 2 / MIB * 0.6) is None
    assert does_not_fit(forecast(costs, candidate(1, None), PROFILE, DeviceType.CUDA), None, PARAMETERS * 2 / MIB * 0.6)


def test_a_latent_cache_is_whole_on_every_gpu() -> None:
    latent = LayerShape(kv_heads=1, key_dim=64, value_dim=512, expanded_key_dim=192, expanded_value_dim=128)
    costs, cell = TransformersCosts(replace(SHAPE, layers=(latent,) * LAYERS)), Cell(512, 32, 1)
    one = costs.memory(candidate(1, None), cell, DeviceType.CUDA)
    assert costs.memory(candidate(2, "tp"), cell, DeviceType.CUDA).cache == 2 * one.cache
    assert objection(candidate(2, "tp"), model=replace(MODEL, shape=replace(SHAPE, layers=(latent,) * LAYERS))) is None


def test_whole_layers_do_not_divide_evenly_and_each_gpu_needs_room_to_work() -> None:
    costs, cell = TransformersCosts(SHAPE), Cell(512, 32, 1)
    one = costs.memory(candidate(1, None), cell, DeviceType.CUDA)
    two = costs.memory(candidate(2, "device_map"), cell, DeviceType.CUDA)
    assert two.held == one.held
    fullest = two.peak_over(2) / 2
    assert fullest == pytest.approx(one.held * 4 / LAYERS + one.transient)


def test_processes_on_a_cpu_share_its_memory_and_its_speed() -> None:
    costs = TransformersCosts(SHAPE)
    predicted = forecast(costs, candidate(2, "tp"), PROFILE, DeviceType.CPU)
    assert predicted.gpus == 1
    assert predicted.peak_mib >= forecast(costs, candidate(1, None), PROFILE, DeviceType.CPU).cells[0].held_mib


def code(split: str, *, device: DeviceType = DeviceType.CUDA, **changes: object) -> str:
    return ADAPTER.render_snippet(
        ModelRequest(model_id=str(changes.pop("model_id", "org/name"))),
        loader=None,
        candidate=candidate(2, split, **changes),
        device=device,
        cells=(Cell(512, 64, 1),),
    )


def test_the_code_of_whole_layers_names_the_gpus_that_it_may_use() -> None:
    assert call_arguments(candidate(2, "device_map")).split is Split.DEVICE_MAP
    source = code("device_map")
    ast.parse(source)
    assert "GPUS = 2\n" in source
    assert 'device_map="auto",' in source
    assert "max_memory={gpu: torch.cuda.mem_get_info(gpu)[0] for gpu in range(GPUS)}," in source
    assert "torchrun" not in source


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_code_of_tensor_parallelism_says_how_it_is_started(batch_size: int) -> None:
    source = code("tp", batch_size=batch_size)
    ast.parse(source)
    assert "torchrun --standalone --nproc-per-node 2 FILE" in source
    assert "distributed_config=DistributedConfig(tp_size=RANKS)," in source
    assert "device_map" not in source
    assert 'os.environ["RANK"] != "0"' in source


def test_the_code_of_tensor_parallelism_on_a_cpu_hides_the_gpus_which_the_library_would_take() -> None:
    hidden = 'os.environ["CUDA_VISIBLE_DEVICES"] = ""'
    assert hidden in code("tp", device=DeviceType.CPU)
    assert hidden not in code("tp")


@pytest.mark.parametrize("split", list(Split))
def test_random_weights_are_written_once_so_that_they_can_be_spread(split: Split) -> None:
    source = code(split, model_id="random:org/name")
    ast.parse(source)
    assert "save_model(model," in source


def test_the_library_divides_whole_layers_over_the_gpus_that_are_named() -> None:
    """What it does with the memory of two GPUs, here without any."""
    config = AutoConfig.from_pretrained(TINY, num_hidden_layers=6)
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config)
    places = _get_device_map(made, "auto", {0: 10**9, 1: 10**9}, None)
    layers = [places[f"model.layers.{number}"] for number in range(6)]
    assert layers == sorted(layers)
    assert set(places.values()) == {0, 1}, "and nothing in host memory"


@pytest.mark.parametrize(
    ("weights_on", "told"),
    [
        ({"0", "1"}, None),
        ({"0"}, "asked for 2 GPUs, the weights are on 1"),
        (set[str](), "asked for 2 GPUs, the weights are on 1"),
        ({"0", "1", "cpu"}, "asked for 2 GPUs, some weights are on the cpu"),
    ],
)
def test_weights_that_are_elsewhere_than_asked_are_a_substitution(weights_on: set[str], told: str | None) -> None:
    asked = call_arguments(candidate(2, "device_map"))
    assert _weights_substitution(asked, frozenset(weights_on)) == told


def test_layers_that_were_not_divided_are_a_substitution() -> None:
    asked = call_arguments(candidate(2, "tp"))
    assert _ranks_substitution(asked, 2) is None
    assert _ranks_substitution(asked, 1) == "asked for tensor parallelism over 2, the layers are divided among 1"


def test_whole_layers_on_a_cpu_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UnsupportedError, match="device_map spreads layers over several devices: needs CUDA GPUs"):
        _spread(call_arguments(candidate(2, "device_map")), None, torch.device("cpu"))
