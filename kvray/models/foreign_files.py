"""What lies in a folder or repository that is no Transformers model: told by the names of its files, with the cure."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence
from dataclasses import dataclass

MOST_NAMED = 4


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found instead of a model, as the end of a sentence, and the next step."""

    what: str
    cure: str


MERGE = "Merge it into its base model: load both with peft, call merge_and_unload(), then save_pretrained."
_TAKE_ORIGINAL = "Give the original model that they were made from."
_TAKE_TRANSFORMERS_FILES = (
    "Take the files that Transformers reads (config.json, model*.safetensors) from the same repository, or convert it."
)
_KINDS = (
    (("model_index.json",), "a pipeline of diffusers, which is no language model", "Give a language model."),
    (
        ("consolidated*.safetensors", "consolidated*.pth"),
        "weights in their maker's own format",
        _TAKE_TRANSFORMERS_FILES,
    ),
    (("*.onnx", "*.onnx_data"), "an export to ONNX", _TAKE_ORIGINAL),
    (("openvino*.xml", "openvino*.bin"), "an export to OpenVINO", _TAKE_ORIGINAL),
    (("*.engine", "*.plan", "*.tflite", "*.mlmodel", "*.mlpackage/*"), "an export for another runtime", _TAKE_ORIGINAL),
    (("*.npz",), "weights of MLX", _TAKE_ORIGINAL),
    (
        ("tf_model*.h5", "flax_model*.msgpack", "*.ckpt.index"),
        "weights of TensorFlow or Flax, which Transformers 5 does not read",
        "Load it with Transformers 4 (from_tf=True or from_flax=True) and save it with save_pretrained.",
    ),
)


def foreign(names: Collection[str]) -> Finding | None:
    """What `names` are files of, where that is no model for Transformers; `None` where they tell nothing."""
    if matching(names, ("adapter_config.json", "adapter_model.*")):
        return Finding(what="is an adapter, which only changes another model", cure=MERGE)
    for patterns, what, cure in _KINDS:
        if found := matching(names, patterns):
            return Finding(what=f"holds {what} ({listed(found)})", cure=cure)
    return None


def gguf_files(names: Collection[str]) -> list[str]:
    """The GGUF files among `names`, those first that by their names hold a whole language model."""
    return sorted(matching(names, ("*.gguf",)), key=lambda name: any(part in name.lower() for part in _NO_MODEL))


_NO_MODEL = ("mmproj", "vocab", "imatrix", "-of-")


def matching(names: Collection[str], patterns: Sequence[str]) -> list[str]:
    """The `names`, sorted, whose last part matches one of `patterns`."""
    return sorted(name for name in names if any(_matches(name, pattern) for pattern in patterns))


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name if "/" in pattern else name.rpartition("/")[2], pattern)


def listed(names: Sequence[str]) -> str:
    """E.g. `a, b, c and 12 more`."""
    if len(names) <= MOST_NAMED:
        return ", ".join(names)
    return f"{', '.join(names[: MOST_NAMED - 1])} and {len(names) - MOST_NAMED + 1} more"
