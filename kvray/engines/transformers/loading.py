"""From a folder to a model."""

from __future__ import annotations

import contextlib
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import save_model
from transformers import AutoConfig

from kvray.engines.base import ModelRequest, UnsupportedError
from kvray.engines.transformers import xformers_attention
from kvray.engines.transformers.arguments import RANDOM_WEIGHTS_SEED, XFORMERS, CallArguments, Split
from kvray.engines.transformers.code_source import check_code_source
from kvray.engines.transformers.model_class import architecture_of, auto_class_name
from kvray.errors import ModelError, sentence_of
from kvray.models.weight_files import named_tensors, safetensors_files
from kvray.probes.cpu import total_memory_mib
from kvray.record import RANDOM_PREFIX


def load_model(request: ModelRequest, folder: Path, arguments: CallArguments, device: torch.device) -> Any:
    """The model on `device`, as `arguments` say.

    Raises:
        ModelError: weights are damaged or of a kind that may not be loaded, or some are missing. Anything else that the
            library raises passes as it is.
    """
    check_code_source(request, folder)
    options = {
        "dtype": getattr(torch, arguments.dtype),
        "attn_implementation": arguments.attn_implementation,
        "trust_remote_code": request.trust_remote_code,
    }
    if arguments.attn_implementation == XFORMERS:
        xformers_attention.register()
    if "/" in arguments.attn_implementation and request.trust_remote_code:
        options["allow_all_kernels"] = True
    config = AutoConfig.from_pretrained(folder, trust_remote_code=request.trust_remote_code)
    auto_class = getattr(transformers, auto_class_name(architecture_of(config)))
    if request.model_id.startswith(RANDOM_PREFIX):
        torch.manual_seed(RANDOM_WEIGHTS_SEED)
        with device:
            made = auto_class.from_config(config, **options)
        if arguments.split is None:
            return made
        with tempfile.TemporaryDirectory(prefix="kvray-random-") as written:
            # The model's own `save_pretrained` writes everything on the first rank only.
            config.save_pretrained(written)
            save_model(made, str(Path(written, "model.safetensors")), metadata={"format": "pt"})
            del made
            return auto_class.from_pretrained(written, **options, **_spread(arguments, config, device))
    if arguments.split is not None:
        options |= _spread(arguments, config, device)
    elif arguments.weights_limit_mib is not None:
        options |= {"device_map": "auto", "max_memory": max_memory(arguments.weights_limit_mib)}
    elif device.type == "cuda":
        options["device_map"] = {"": device}
    has_safetensors = all((folder / name).is_file() for name in safetensors_files(folder))
    options["use_safetensors"] = has_safetensors or not request.allow_pickle
    try:
        with contextlib.nullcontext() if request.allow_pickle else pickle_refused():
            model, found = auto_class.from_pretrained(folder, output_loading_info=True, **options)
    except (
        OSError,
        SafetensorError,
        pickle.UnpicklingError,
        TypeError,
        LookupError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise ModelError(f"The weights in {str(folder)!r} cannot be read: {sentence_of(error)}") from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ModelError(
            f"The weights in {str(folder)!r} have other shapes than its config.json says.",
            hint="Download or save the model again.",
        ) from error
    if missing := sorted(found["missing_keys"]):
        # Transformers would make them up at random and say so in its log only.
        raise ModelError(f"The weights in {str(folder)!r} lack {named_tensors(missing)}.")
    return model


def _spread(arguments: CallArguments, config: Any, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` takes for a model on several GPUs. Tensor parallelism needs its process group."""
    if arguments.split is Split.DEVICE_MAP:
        if device.type != "cuda":
            raise UnsupportedError("device_map spreads layers over several devices: needs CUDA GPUs")
        return {"device_map": "auto", "max_memory": free_gpu_memory(arguments.gpus)}
    from transformers.distributed import DistributedConfig

    text = config.get_text_config(decoder=True)
    heads = (text.num_attention_heads, getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
    if any(number % arguments.gpus for number in heads):
        raise UnsupportedError(f"{heads[0]} heads and {heads[1]} of keys cannot be divided among {arguments.gpus} GPUs")
    return {"distributed_config": DistributedConfig(tp_size=arguments.gpus)}


def free_gpu_memory(gpus: int) -> dict[int | str, int]:
    """Bytes that `device_map="auto"` may use of each of the first `gpus` GPUs, over which it spreads evenly. Without an
    entry for the host's memory nothing is put there."""
    return {gpu: torch.cuda.mem_get_info(gpu)[0] for gpu in range(gpus)}


@contextlib.contextmanager
def pickle_refused() -> Iterator[None]:
    """`torch.load` refuses: a config may name weights of its own, or an adapter, by ways that no option closes."""
    real = torch.load
    torch.load = _refuse_pickle
    try:
        yield
    finally:
        torch.load = real


def _refuse_pickle(file: object, *arguments: object, **options: object) -> NoReturn:
    del arguments, options
    raise ModelError(
        f"The model wants {str(file)!r} loaded, which is a pickle: kvray loads safetensors weights only.",
        hint="If you trust whoever made it, pass --allow-pickle.",
    )


def max_memory(weights_limit_mib: int) -> dict[int | str, str]:
    """Where `device_map="auto"` may put weights: so much on the first GPU, the rest in host memory, none on disk."""
    return {0: f"{weights_limit_mib}MiB", "cpu": f"{int(total_memory_mib())}MiB"}
