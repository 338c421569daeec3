"""The generated program: llama.cpp with what was measured, by the functions of `llama-cpp-python` alone.

It is printed from the same `ContextSettings` that the measurement made its context with. The model's path enters
through `repr`, so it cannot leave its quotes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kvray.candidate import Candidate, DeviceType
from kvray.engines.llama_cpp import templates
from kvray.engines.llama_cpp.settings import ContextSettings, SplitMode, largest_settings
from kvray.workload import Cell

_TYPE_NUMBERS = {"bf16": "30"}
"""Numbers of types that the binding does not name."""
_SPLIT_MODES = tuple(SplitMode)


def render(model: str, candidate: Candidate, device: DeviceType, cells: Sequence[Cell]) -> str:
    """Python source with `load()` and `generate(model, context, prompts, max_new_tokens)`, runnable as a script.

    Args:
        model: path of the GGUF file.
        cells: the context holds each of them.
    """
    settings = largest_settings(candidate, cells, device=device)
    experts = templates.EXPERTS_ON_HOST.format(layers=settings.n_cpu_moe) if settings.n_cpu_moe else None
    parts = (
        templates.HEAD.format(model=_absolute(model)),
        *((experts,) if experts else ()),
        _load(settings),
        templates.THREADS.format(poll=settings.poll),
        templates.GENERATE,
        templates.TEXT,
        templates.MAIN.format(
            prompts=f'["The capital of France is"] * {settings.n_seq_max}', new_tokens=max(cells).output_tokens
        ),
    )
    return "\n\n\n".join(parts)


def _load(settings: ContextSettings) -> str:
    return templates.LOAD.format(
        model_settings=_assigned(
            n_gpu_layers=settings.n_gpu_layers,
            split_mode=_SPLIT_MODES.index(settings.split_mode),
            use_extra_bufts=settings.repack,
        ),
        experts=templates.TAKE_EXPERTS if settings.n_cpu_moe else "",
        context_settings=_assigned(
            n_ctx=settings.n_ctx,
            n_seq_max=settings.n_seq_max,
            n_batch=settings.n_batch,
            n_ubatch=settings.n_ubatch,
            n_threads=settings.threads,
            n_threads_batch=settings.threads_batch,
            type_k=_type(settings.type_k),
            type_v=_type(settings.type_v),
            flash_attn_type=int(settings.flash_attention),
            swa_full=settings.swa_full,
            kv_unified=settings.kv_unified,
            offload_kqv=settings.offload_kqv,
        ),
    )


def _assigned(**values: object) -> str:
    return "\n".join(f"    params.{name} = {value}" for name, value in values.items())


def _type(name: str) -> str:
    return _TYPE_NUMBERS.get(name, f"llama_cpp.GGML_TYPE_{name.upper()}")


def _absolute(model: str) -> str:
    """`repr` of a path: of a file that is here its absolute one."""
    try:
        path = Path(model).expanduser()
        return repr(str(path.resolve()) if path.exists() else model)
    except (OSError, RuntimeError, ValueError):
        return repr(model)
