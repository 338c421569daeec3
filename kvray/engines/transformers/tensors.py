"""Whether the tensors of a checkpoint are those of its model, by headers alone.

The library's own loading runs on the meta device with shapes in place of weights, so that tied, renamed, fused and
ignored tensors are what they are for `from_pretrained`. What else it refuses there is left to the trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvray.engines.hugging_face.quiet import quiet_library
from kvray.errors import ModelError
from kvray.models.foreign_files import MERGE
from kvray.models.headers import StoredTensor, read_header
from kvray.models.weight_files import WEIGHTS_INDEX, index_names, named_tensors, safetensors_files

MOST_IN_A_SECOND = 5_000
"""Tensors that the library matches with a model's in about a second."""
_AGAIN = "Download it again, or save it again with save_pretrained."
_WRAPPERS = {
    "base_model.model.": ("an adapter's training", MERGE),
    "_orig_mod.": ("torch.compile", "Save the model again from what was compiled: model._orig_mod.save_pretrained."),
    "module.": ("DataParallel", "Save the model again from what was wrapped: model.module.save_pretrained."),
    "_fsdp_wrapped_module.": ("FSDP", "Save the model again with its full state."),
}
"""What training puts before each name, and what takes it away."""


@dataclass(frozen=True, kw_only=True)
class Unmatched:
    """Where checkpoint and model differ.

    Attributes:
        missing: tensors of the model that the checkpoint lacks.
        left_over: tensors of the checkpoint, by the names that the library gives them, that the model does not have.
        resized: (name, shape in the checkpoint, shape in the model).
        head: tensors of the model that turn hidden states into the logits of tokens.
    """

    missing: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    resized: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    head: frozenset[str] = frozenset()


def check_tensors(folder: Path, config: Any, model_class: Any, *, quick: bool = False) -> None:
    """Refuse the checkpoint in `folder` if `model_class` cannot be loaded whole from it.

    Args:
        quick: leave out a checkpoint of so many tensors that it takes more than about a second.

    Raises:
        ModelError
    """
    stored = stored_tensors(folder)
    if quick and len(stored) > MOST_IN_A_SECOND:
        return
    found = unmatched(stored, config, model_class)
    if found.missing:
        raise _missing_error(folder, found, stored, config)
    if found.resized:
        raise _resized_error(folder, found, config)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of the safetensors files in `folder`."""
    return {name: tensor for file in safetensors_files(folder) for name, tensor in read_header(folder / file).items()}


def unmatched(stored: Mapping[str, StoredTensor], config: Any, model_class: Any) -> Unmatched:
    """Match `stored` with the tensors of a `model_class`; empty where the library does not come that far."""
    import torch

    dtypes = _dtypes(torch)
    tensors = {
        name: torch.empty(one.shape, dtype=dtypes.get(one.dtype, torch.uint8), device="meta")
        for name, one in stored.items()
    }
    with quiet_library():
        try:
            model, told = model_class.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                device_map="meta",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
            head = _head_names(model)
        except Exception:  # noqa: BLE001  (foreign code on shapes alone: no proof that loading fails)
            return Unmatched()
    return Unmatched(
        missing=tuple(sorted(told["missing_keys"])),
        left_over=tuple(sorted(told["unexpected_keys"])),
        resized=tuple((str(name), tuple(there), tuple(here)) for name, there, here in sorted(told["mismatched_keys"])),
        head=head,
    )


def _missing_error(folder: Path, found: Unmatched, stored: Mapping[str, StoredTensor], config: Any) -> ModelError:
    weights, lack = f"The weights in {str(folder)!r}", f"lack {named_tensors(found.missing)}"
    if set(found.missing) <= found.head:
        return ModelError(
            f"{weights} have no language model's head ({', '.join(found.missing)}){_saved_as(config)}.",
            hint="Give a model that was trained to write text.",
        )
    for prefix, (maker, cure) in _WRAPPERS.items():
        if any(name.startswith(prefix) for name in stored):
            return ModelError(f"{weights} {lack}: their names begin with {prefix!r}, which {maker} adds.", hint=cure)
    if found.left_over and not any(name in stored for name in found.missing) and len(found.missing) > len(stored) // 2:
        there = next(iter(sorted(stored)))
        return ModelError(f"{weights} {lack}: they have other names, such as {there}.", hint=_AGAIN)
    if (index := folder / WEIGHTS_INDEX).is_file() and (lost := sorted(set(index_names(index)) - set(stored))):
        return ModelError(
            f"{weights} {lack}. The index names tensors that no shard holds, such as {lost[0]}: index and shards "
            "are not of one model.",
            hint=_AGAIN,
        )
    return ModelError(f"{weights} {lack}.", hint=_AGAIN)


def _saved_as(config: Any) -> str:
    names = getattr(config, "architectures", None) or ()
    return f": they were saved as {names[0]}" if names and "CausalLM" not in str(names[0]) else ""


def _resized_error(folder: Path, found: Unmatched, config: Any) -> ModelError:
    name, there, here = found.resized[0]
    if getattr(config, "quantization", None):
        return ModelError(
            f"The weights in {str(folder)!r} are packed in the way of MLX, which Transformers does not read.",
            hint="Give the original model that they were made from.",
        )
    more = f", and {len(found.resized) - 1} more differ" if len(found.resized) > 1 else ""
    return ModelError(
        f"The weights in {str(folder)!r} have other shapes than its config.json says: {name} is {_shown(there)} there "
        f"and {_shown(here)} by the config{more}.",
        hint="Download the model again, or take the config.json that belongs to these weights.",
    )


def _shown(shape: Sequence[int]) -> str:
    return " × ".join(f"{size:,}" for size in shape) or "a single number"


def _head_names(model: Any) -> frozenset[str]:
    head = model.get_output_embeddings()
    if head is None:
        return frozenset()
    place = next((name for name, module in model.named_modules() if module is head), None)
    return frozenset(f"{place}.{name}" for name, _ in head.named_parameters())


def _dtypes(torch: Any) -> dict[str, Any]:
    return {short: getattr(torch, name) for short, name in _DTYPES.items() if hasattr(torch, name)}


_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "BOOL": "bool",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}
"""torch's names by those of safetensors."""
