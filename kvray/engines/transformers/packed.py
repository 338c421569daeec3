"""Checkpoints whose weights are packed (GPTQ, AWQ, FP8, …): how the config says so, and what becomes of them here.

`python -m kvray.engines.transformers.packed FOLDER DEVICE` asks the library in a process of its own: it may take a GPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import DeviceFacts, ModelInfo, ModelRequest
from kvray.engines.hugging_face.quiet import quiet_library
from kvray.errors import ModelError, sentence_of
from kvray.probes.gpu import visible_gpus
from kvray.search_paths import child_environment, python_command

_ONE_DTYPE = ("FP8", "MXFP8")
"""Packings of which Transformers leaves whatever is not packed in the dtype that it is stored in."""


def told_of_packing(request: ModelRequest, folder: Path, info: ModelInfo, device: DeviceFacts | None) -> ModelInfo:
    """`info` with a note of what is measured instead of packed weights, or with them.

    Args:
        device: of this machine; `None`: weights are loaded on others, of which nothing is known.

    Raises:
        ModelError: such weights cannot be loaded on this machine.
    """
    if info.packing is None:
        return info
    if info.random_weights:
        note = (
            f"The config describes weights that are packed with {info.packing}; random weights are plain numbers of "
            "the candidate's dtype, so speed and memory are not those of the packed model."
        )
    elif device is None:
        note = f"The weights are packed with {info.packing}; whether they stay so depends on the machine."
    elif _are_unpacked(request, folder, info, device.device):
        note = (
            f"The weights are packed with {info.packing}, and Transformers unpacks them when it loads them on "
            f"{_here(device.device)}: speed and memory are those of plain weights."
        )
    else:
        note = f"The weights stay packed with {info.packing}; a candidate's dtype is that of activations and cache."
    return replace(info, notes=(*info.notes, note))


def dtype_objection(candidate: Candidate, info: ModelInfo) -> str | None:
    """Why a candidate's dtype does not go with packed weights."""
    if info.random_weights or info.packing not in _ONE_DTYPE or candidate.dtype is info.native_dtype:
        return None
    return (
        f"the weights are packed with {info.packing}, and Transformers leaves the rest in the checkpoint's "
        f"{info.native_dtype}: {candidate.dtype} would be mixed with it"
    )


def _are_unpacked(request: ModelRequest, folder: Path, info: ModelInfo, device: DeviceType) -> bool:
    try:
        are_unpacked = _asked_apart(folder, device) if visible_gpus(None) else _asked_here(folder, device)
    except ModelError as error:
        raise ModelError(
            f"Model {request.model_id!r} has weights that are packed with {info.packing}, which cannot be loaded on "
            f"{_here(device)}: {error.message.rstrip('.')}.",
            hint=f"Install what Transformers needs for {info.packing}, or give the model with plain weights.",
        ) from error
    # On a CPU the library decides that later: it computes with MXFP4 only where use_kernels is set.
    return are_unpacked or (info.packing == "MXFP4" and device is DeviceType.CPU)


def _here(device: DeviceType) -> str:
    return "this CPU" if device is DeviceType.CPU else "this GPU"


def _asked_here(folder: Path, device: DeviceType) -> bool:
    """Whether the library unpacks the weights of the model in `folder` when it loads them on `device`.

    Raises:
        ModelError: it cannot load them; a fragment of a sentence, in the library's words.
    """
    from transformers.quantizers import AutoHfQuantizer

    packing = _quantization_config(folder)
    with quiet_library():
        if not AutoHfQuantizer.supports_quant_method(packing):
            return False  # `from_pretrained` takes them for plain ones, and finds other shapes
        try:
            quantizer = AutoHfQuantizer.from_config(packing, pre_quantized=True)
            quantizer.validate_environment(device_map={"": device.value}, weights_only=True)
        except (ImportError, RuntimeError, ValueError) as error:
            raise ModelError(sentence_of(error)) from error
    return bool(getattr(quantizer.quantization_config, "dequantize", False))


def _asked_apart(folder: Path, device: DeviceType) -> bool:
    """The same in a process that sees the GPUs of a trial on `device`, and takes its context on them away with it."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device is DeviceType.CPU else {}
    command = python_command("-m", __name__, str(folder), device.value)
    done = subprocess.run(command, env={**child_environment(), **hidden}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ModelError(lines[-1])
    return bool(json.loads(done.stdout))


def _quantization_config(folder: Path) -> Any:
    """As config.json has it: the library's configuration class may have changed it."""
    config = json.loads((folder / "config.json").read_bytes())
    text = config.get("text_config")
    return config.get("quantization_config") or (text if isinstance(text, dict) else {}).get("quantization_config")


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(_asked_here(Path(sys.argv[1]), DeviceType(sys.argv[2]))))
    except ModelError as error:
        sys.exit(str(error))
