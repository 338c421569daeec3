"""GGUF files: dequantised once into a safetensors folder in the cache, keyed by the file's hash.

`python -m kvray.engines.transformers.gguf FILE` does it in a process of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from kvray.config import cache_dir
from kvray.engines.transformers.gguf_header import check_gguf_file
from kvray.errors import KvrayError, ModelError, first_line

_HASH_BLOCK = 1 << 20


def converted_gguf(gguf: Path) -> Path:
    """The safetensors folder made from `gguf`, converted now if it was not before; keyed by the file's hash.

    Raises:
        ModelError: the file cannot be read or converted.
    """
    from filelock import FileLock

    target = _target(gguf)
    if _is_complete(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not _is_complete(target):
                _convert_gguf(gguf, target)
    except OSError as error:
        raise ModelError(
            f"GGUF file {str(gguf)!r} cannot be converted into {str(target.parent)!r} ({first_line(error)}).",
            hint="Set KVRAY_CACHE to a folder with room for the weights.",
        ) from error
    return target


def is_converted(gguf: Path) -> bool:
    """Whether `converted_gguf` would return at once."""
    return _is_complete(_target(gguf))


def _target(gguf: Path) -> Path:
    return cache_dir() / "gguf" / file_sha256(gguf)[:16]


def _is_complete(target: Path) -> bool:
    return (target / "config.json").is_file()


def _convert_gguf(gguf: Path, target: Path) -> None:
    """Dequantise into a temporary folder beside `target`, then rename it: a half-made folder is never seen.

    The caller holds the lock, so what an interrupted conversion has left is nobody's and goes first.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for leftover in target.parent.glob(f".{target.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        check_gguf_file(gguf)
        model, found = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, output_loading_info=True)
        if missing := sorted(found["missing_keys"]):
            # Transformers would make them up at random and say so in its log only.
            raise ModelError(f"it lacks {len(missing)} tensors of the model: {missing[0]}, …")
        # A model read from GGUF refuses save_pretrained ("quantized with gguf and is not serializable") until both
        # traces of the quantizer are gone; its weights are plain tensors by now.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(staging)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(staging)
        staging.rename(target)
    except Exception as error:
        raise ModelError(f"GGUF file {str(gguf)!r} cannot be converted: {first_line(error)}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, remembered in the cache folder by path, size and modification time."""
    stat = path.stat()
    identity = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    memo = cache_dir() / "hashes" / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.json"
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        known = json.loads(memo.read_text(encoding="utf-8"))["sha256"]
        # It becomes the name of a folder: whatever else the memo may say by now is not followed.
        if re.fullmatch(r"[0-9a-f]{64}", known):
            return str(known)
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_HASH_BLOCK):
            digest.update(block)
    with contextlib.suppress(OSError):  # the memo saves seconds; a cache that cannot be written costs no more than them
        memo.parent.mkdir(parents=True, exist_ok=True)
        partial = memo.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({"path": str(path), "sha256": digest.hexdigest()}), encoding="utf-8")
        partial.replace(memo)
    return digest.hexdigest()


if __name__ == "__main__":
    try:
        converted_gguf(Path(sys.argv[1]))
    except KvrayError as error:
        sys.exit(str(error))
