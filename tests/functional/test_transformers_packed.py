"""Checkpoints with packed weights: measured as what they are, with a note, or refused with the library's reason."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from transformers_samples import change_config, load, make_candidate, save_fp8_model, save_tiny_model

from kvray.candidate import DeviceType, DType
from kvray.config import TuneConfig
from kvray.engines.base import DeviceFacts, ModelRequest, UnsupportedError
from kvray.engines.hugging_face.packing import packing_of
from kvray.engines.transformers import TransformersAdapter
from kvray.errors import ModelError
from kvray.probes.gpu import visible_gpus
from kvray.tuning.preview import Preview, preview_sweep
from kvray.tuning.resolved import check_request, resolve
from kvray.workload import Cell, create_custom_profile

PROFILE = create_custom_profile(
    "packed", context_lengths=(24,), output_lengths=(4,), weight_ttft=0.4, weight_throughput=0.4, weight_memory=0.2
)
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}


def preview(model_id: object, **values: Any) -> Preview:
    config = TuneConfig(model_id=str(model_id), profile=PROFILE, device=DeviceType.CPU, offline=True, **values)
    return preview_sweep(resolve(check_request(config, TransformersAdapter())))


def pack(folder: Path, packing: dict[str, Any]) -> Path:
    return change_config(folder, quantization_config=packing)


def test_random_weights_of_a_packed_model_are_said_to_be_plain_ones(tmp_path: Path) -> None:
    folder = pack(save_tiny_model(tmp_path / "model"), GPTQ)
    model = preview(f"random:{folder}").model
    assert (model.packing, model.shape) == ("GPTQ", None)
    (note,) = model.notes
    assert note.startswith("The config describes weights that are packed with GPTQ; random weights are plain numbers")


def test_a_plain_model_has_no_such_note(tmp_path: Path) -> None:
    model = preview(save_tiny_model(tmp_path / "model")).model
    assert (model.packing, model.notes) == (None, ())


@pytest.mark.skipif(bool(visible_gpus(None)), reason="a GPU may compute with FP8")
def test_fp8_that_a_cpu_unpacks_is_said_to_be_unpacked_and_takes_its_own_dtype_alone(tmp_path: Path) -> None:
    found = preview(save_fp8_model(tmp_path / "model"), dtypes=(DType.BFLOAT16, DType.FLOAT32, DType.FLOAT16))
    (note,) = found.model.notes
    assert "packed with FP8, and Transformers unpacks them when it loads them on this CPU" in note
    assert {one.dtype for one in found.space.candidates} == {DType.BFLOAT16}
    reasons = {one.candidate.dtype: one.reason for one in found.space.rejected}
    assert (
        "leaves the rest in the checkpoint's bfloat16: float32 would be mixed with it (packed-weights)"
        in (reasons[DType.FLOAT32])
    )
    TransformersAdapter().check_weights(ModelRequest(model_id=found.model.model_id))


@pytest.mark.skipif(bool(visible_gpus(None)), reason="a GPU may compute with FP8")
def test_what_the_rule_of_dtypes_says_is_what_the_library_does(tmp_path: Path) -> None:
    folder = save_fp8_model(tmp_path / "model")
    for dtype in ("bfloat16", "float32"):
        try:
            model = load(folder, make_candidate(dtype=dtype))
        except UnsupportedError as error:
            pytest.skip(f"this version of Transformers does not load it: {error}")
        model.prepare(Cell(24, 4, 1))
        if dtype == "bfloat16":
            assert len(model.generate(4).tokens[0]) == 4
        else:
            with pytest.raises(RuntimeError, match="same dtype"):
                model.generate(4)


def test_on_other_machines_nothing_is_known_of_packed_weights(tmp_path: Path) -> None:
    folder = pack(save_tiny_model(tmp_path / "model"), AWQ)
    engine, request = TransformersAdapter(), ModelRequest(model_id=str(folder))
    told = engine.adapt_to_device(request, engine.describe_model(request), None)
    assert told.notes == ("The weights are packed with AWQ; whether they stay so depends on the machine.",)


@pytest.mark.skipif(importlib.util.find_spec("gptqmodel") is not None, reason="its package is here")
@pytest.mark.parametrize(("packing", "missing"), [(GPTQ, "optimum"), (AWQ, "gptqmodel")])
def test_a_packing_whose_package_is_missing_is_one_error_before_the_sweep(
    packing: dict[str, Any], missing: str, tmp_path: Path
) -> None:
    folder = pack(save_tiny_model(tmp_path / "model"), packing)
    with pytest.raises(ModelError, match=rf"packed with \w+, which cannot be loaded on this CPU: .*{missing}"):
        preview(folder)


@pytest.mark.slow  # an interpreter of its own
def test_the_same_is_told_by_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with a GPU."""
    monkeypatch.setattr("kvray.engines.transformers.packed.visible_gpus", lambda visible: ("a GPU",))
    engine, cpu = TransformersAdapter(), DeviceFacts(device=DeviceType.CPU, device_name="CPU")
    folder = save_fp8_model(tmp_path / "model")
    request = ModelRequest(model_id=str(folder))
    (note,) = engine.adapt_to_device(request, engine.describe_model(request), cpu).notes
    assert "unpacks them when it loads them on this CPU" in note


@pytest.mark.parametrize(
    ("packing", "name"),
    [
        ({"quant_method": "mxfp4"}, "MXFP4"),
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "of_tomorrow"}, "of_tomorrow"),
    ],
)
def test_how_weights_are_packed_is_read_from_the_config(packing: dict[str, Any], name: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    folder = pack(save_tiny_model(tmp_path / "model"), packing)
    assert packing_of(AutoConfig.from_pretrained(folder)) == name


def test_a_packing_that_is_not_named_is_refused(tmp_path: Path) -> None:
    folder = pack(save_tiny_model(tmp_path / "model"), {"group_size": 64, "bits": 4})
    with pytest.raises(ModelError, match="not how"):
        preview(folder)
