"""GGUF files: dequantised once into a safetensors folder in the cache, keyed by the file's hash.

`python -m kvray.engines.hugging_face.gguf FILE` does it in a process of its own.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from kvray.config import cache_dir
from kvray.errors import KvrayError, ModelError, sentence_of
from kvray.files.file_systems import NO_RENAME
from kvray.models.gguf_header import check_gguf_file
from kvray.models.hashes import file_sha256, known_sha256
from kvray.models.weight_files import named_tensors
from kvray.probes.holds import exclusively

_LAST = "config.json"
"""The file of a converted model that says that all of its files are there."""


def converted_gguf(gguf: Path) -> Path:
    """The safetensors folder made from `gguf`, converted now if it was not before; keyed by the file's hash.

    Raises:
        ModelError: the file cannot be read or converted.
    """
    if not is_converted(gguf):
        check_gguf(gguf)
        _check_architecture(gguf)
    target = _folder(file_sha256(gguf))
    if _is_complete(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with exclusively(target.with_name(f"{target.name}.lock")) as alone:
            if not _is_complete(target):
                _convert_gguf(gguf, target, alone=alone)
    except OSError as error:
        raise ModelError(
            f"GGUF file {str(gguf)!r} cannot be converted into {str(target.parent)!r} ({sentence_of(error)}).",
            hint="Set KVRAY_CACHE to a folder with room for the weights.",
        ) from error
    return target


def check_gguf(gguf: Path) -> None:
    """Refuse a file whose header shows that it cannot be converted; takes no time.

    Raises:
        ModelError
    """
    try:
        check_gguf_file(gguf)
    except (OSError, ModelError) as error:
        raise _cannot_be_converted(gguf, error) from error


def is_converted(gguf: Path) -> bool:
    """Whether `converted_gguf` would return at once: the file's hash is known, and so is its folder."""
    known = known_sha256(gguf)
    return known is not None and _is_complete(_folder(known))


def _folder(sha256: str) -> Path:
    return cache_dir() / "gguf" / sha256[:16]


def _check_architecture(gguf: Path) -> None:
    """Refuse what Transformers does not read, before the whole file is hashed.

    Raises:
        ModelError
    """
    import transformers

    try:
        transformers.AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except Exception as error:
        if "not supported" not in str(error):
            raise _cannot_be_converted(gguf, error) from error
        raise ModelError(
            f"GGUF file {str(gguf)!r} cannot be converted: Transformers {transformers.__version__} does not read its "
            f"architecture ({sentence_of(error)})",
            hint="Take the original model instead of its GGUF file, or update transformers.",
        ) from error


def _cannot_be_converted(gguf: Path, error: BaseException) -> ModelError:
    return ModelError(f"GGUF file {str(gguf)!r} cannot be converted: {sentence_of(error)}")


def _is_complete(target: Path) -> bool:
    return (target / _LAST).is_file()


def _convert_gguf(gguf: Path, target: Path, *, alone: bool) -> None:
    """Dequantise into a temporary folder beside `target`, then rename it: a half-made folder is never seen.

    Args:
        alone: no other process converts this file, so what an interrupted conversion has left is nobody's and goes.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for leftover in target.parent.glob(f".{target.name}-*") if alone else ():
        shutil.rmtree(leftover, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, output_loading_info=True, **_dense()
        )
        if missing := sorted(found["missing_keys"]):
            # Transformers would make them up at random and say so in its log only.
            raise ModelError(f"it lacks {named_tensors(missing)}.")
        # A model read from GGUF refuses save_pretrained ("quantized with gguf and is not serializable") until both
        # traces of the quantizer are gone; its weights are plain tensors by now.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(staging)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(staging)
        _publish(staging, target)
    except Exception as error:
        raise _cannot_be_converted(gguf, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _dense() -> dict[str, Any]:
    """Have Transformers unpack the weights, which it may keep packed where it has kernels for them."""
    try:
        from transformers import GgufConfig
    except ImportError:  # an older Transformers, which always unpacks them
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _publish(staging: Path, target: Path) -> None:
    """Rename the folder; where the file system renames none, copy what makes it complete last."""
    try:
        staging.rename(target)
    except OSError as error:
        if _is_complete(target):  # without locks another process may have been faster
            return
        if error.errno not in NO_RENAME:
            raise
        shutil.copytree(staging, target, ignore=shutil.ignore_patterns(_LAST), dirs_exist_ok=True)
        shutil.copyfile(staging / _LAST, target / _LAST)


if __name__ == "__main__":
    try:
        converted_gguf(Path(sys.argv[1]))
    except KvrayError as error:
        sys.exit(str(error))
