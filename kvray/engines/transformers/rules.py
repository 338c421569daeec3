"""What cannot be combined, or would not be what it says, each with the reason that a user reads."""

from __future__ import annotations

from collections.abc import Callable

from kvray.candidate import TRUSTED_KERNELS, AttentionBackend, CacheStrategy, Candidate, CompileMode, DeviceType, DType
from kvray.engines.base import ModelInfo, ModelRequest
from kvray.engines.transformers.arguments import Split, settings_objection, split_of
from kvray.engines.transformers.packed import dtype_objection
from kvray.space.constraints import Constraint, SpaceFacts
from kvray.workload import Cell, WorkloadProfile

FULL_ATTENTION = "full_attention"
_PAGED_KINDS = {"full_attention", "sliding_attention", "chunked_attention"}
_PAGED_ATTENTION = (
    AttentionBackend.EAGER,
    AttentionBackend.SDPA,
    AttentionBackend.FLASH_ATTENTION_2,
    AttentionBackend.FLASH_ATTENTION_3,
)


def rules(request: ModelRequest, model: ModelInfo, profile: WorkloadProfile) -> tuple[Constraint, ...]:
    """The rules for one model and workload."""
    return (
        Constraint(name="kernel-on-device", check=_kernel_on_device),
        Constraint(name="flash-half-precision", check=_flash_needs_half_precision_on_gpu),
        Constraint(name="cache-settings", check=_ignoring_facts(settings_objection)),
        Constraint(name="model-attention", check=_ignoring_facts(lambda one: _attention_of_model(one, model))),
        Constraint(name="packed-weights", check=_ignoring_facts(lambda one: dtype_objection(one, model))),
        Constraint(name="cache-of-model", check=_ignoring_facts(lambda one: _cache_of_model(one, model))),
        Constraint(name="cache-of-workload", check=_ignoring_facts(lambda one: _cache_of_workload(one, profile))),
        Constraint(name="compile-needs-static-cache", check=_ignoring_facts(_compile_needs_static_cache)),
        Constraint(name="flex-needs-growing-cache", check=_ignoring_facts(_flex_needs_growing_cache)),
        Constraint(name="paged-schedules-itself", check=_ignoring_facts(_paged_schedules_itself)),
        Constraint(name="prefill-chunk", check=_ignoring_facts(lambda one: _chunk_of_workload(one, profile))),
        Constraint(name="several-gpus", check=lambda one, facts: _over_several_gpus(one, facts, request, model)),
        Constraint(name="weights-limit", check=lambda one, facts: _weights_limit(one, facts, model)),
        Constraint(name="trusted-kernels", check=_ignoring_facts(lambda one: _trusted_kernel(one, request))),
    )


def longest_tokens(profile: WorkloadProfile) -> int:
    """Prompt and output of the longest cell."""
    return max(_tokens(cell) for cell in profile.cells(1, rung=2))


def _ignoring_facts(check: Callable[[Candidate], str | None]) -> Callable[[Candidate, SpaceFacts], str | None]:
    return lambda candidate, facts: check(candidate)  # noqa: ARG005


def _tokens(cell: Cell) -> int:
    return cell.context_tokens + cell.output_tokens


def _kernel_on_device(candidate: Candidate, facts: SpaceFacts) -> str | None:
    cuda_only = (AttentionBackend.SDPA_EFFICIENT, AttentionBackend.SDPA_CUDNN)
    if facts.device is DeviceType.CPU and candidate.attention in cuda_only:
        return f"PyTorch has no {candidate.attention.removeprefix('sdpa_')} attention kernel for the CPU"
    return None


def _flash_needs_half_precision_on_gpu(candidate: Candidate, facts: SpaceFacts) -> str | None:
    half_only = (AttentionBackend.SDPA_FLASH, AttentionBackend.SDPA_CUDNN)
    if (
        facts.device is DeviceType.CUDA
        and candidate.attention in half_only
        and candidate.dtype not in (DType.FLOAT16, DType.BFLOAT16)
    ):
        return f"the CUDA {candidate.attention.removeprefix('sdpa_')} kernel takes float16 and bfloat16 only"
    return None


def _attention_of_model(candidate: Candidate, model: ModelInfo) -> str | None:
    if candidate.attention in model.missing_attentions:
        return f"Transformers has no {candidate.attention} for {model.architecture}"
    return None


def _cache_of_model(candidate: Candidate, model: ModelInfo) -> str | None:
    kinds = set(model.layer_kinds)
    if not kinds:
        return None
    if candidate.cache is CacheStrategy.PAGED and not kinds <= _PAGED_KINDS:
        return f"continuous batching pages keys and values only, this model has {_named(kinds - _PAGED_KINDS)}"
    if candidate.cache is CacheStrategy.PAGED and _has_unlike_sizes(model):
        return f"continuous batching pages keys and values of one size, those of {model.architecture} differ"
    if candidate.cache is CacheStrategy.QUANTIZED and kinds != {FULL_ATTENTION}:
        return f"QuantizedCache takes models with full attention only, this one has {_named(kinds - {FULL_ATTENTION})}"
    if candidate.cache is CacheStrategy.SLIDING_WINDOW and FULL_ATTENTION not in kinds:
        return f"every layer is {_named(kinds)}: none is left to put a window on, and dynamic keeps no more"
    return None


def _has_unlike_sizes(model: ModelInfo) -> bool:
    layers = model.shape.layers if model.shape is not None else ()
    return any(layer.key_dim != layer.value_dim for layer in layers)


def _named(kinds: set[str]) -> str:
    return " and ".join(kind.replace("_", " ") for kind in sorted(kinds))


def _cache_of_workload(candidate: Candidate, profile: WorkloadProfile) -> str | None:
    params, longest = dict(candidate.cache_params), longest_tokens(profile)
    if candidate.cache is CacheStrategy.SLIDING_WINDOW and int(params.get("window", 0)) >= longest:
        return f"the longest sequence has {longest} tokens: a window of {params['window']} would drop nothing"
    if candidate.cache.has_fixed_size and int(params.get("max_cache_len", longest)) < longest:
        return f"the longest sequence has {longest} tokens, more than max_cache_len={params['max_cache_len']}"
    return None


def _compile_needs_static_cache(candidate: Candidate) -> str | None:
    if candidate.compile is CompileMode.OFF or candidate.cache is CacheStrategy.STATIC:
        return None
    return f"generate() compiles the decode step only with a static cache, not with {candidate.cache}"


def _flex_needs_growing_cache(candidate: Candidate) -> str | None:
    if candidate.attention is not AttentionBackend.FLEX_ATTENTION or not candidate.cache.has_fixed_size:
        return None
    return "flex_attention's block masks do not work with a cache of fixed size in Transformers"


def _paged_schedules_itself(candidate: Candidate) -> str | None:
    if candidate.cache is not CacheStrategy.PAGED:
        return None
    if candidate.attention not in _PAGED_ATTENTION:
        return f"continuous batching runs attention in a thread of its own, where {candidate.attention} cannot be had"
    if candidate.prefill_chunk is not None:
        return "continuous batching cuts prompts by itself"
    return None


def _over_several_gpus(candidate: Candidate, facts: SpaceFacts, request: ModelRequest, model: ModelInfo) -> str | None:
    split = split_of(candidate)
    if split is None:
        return None
    if candidate.weights_limit_mib is not None:
        return "a weights limit keeps the model on one GPU"
    if split is Split.DEVICE_MAP:
        is_cpu = facts.device is DeviceType.CPU
        return "device_map spreads layers over several devices: needs CUDA GPUs" if is_cpu else None
    if candidate.cache is CacheStrategy.PAGED:
        return "continuous batching schedules by itself, so the processes of tp would not stay in step"
    if not model.tensor_parallel:
        return f"Transformers has no tensor parallel plan for {model.architecture}"
    if model.packing is not None:
        return f"weights that are packed with {model.packing} are not split by tp"
    if request.model_id.lower().endswith(".gguf"):
        return "Transformers does not split the weights of a GGUF file by tp"
    return _indivisible(candidate.parallelism, model)


def _indivisible(gpus: int, model: ModelInfo) -> str | None:
    if model.shape is None:
        return None
    if model.shape.heads % gpus:
        return f"{model.shape.heads} heads cannot be divided among {gpus} GPUs"
    shared = {layer.kv_heads for layer in model.shape.layers if layer.kv_heads % gpus and not layer.is_latent}
    return f"{min(shared)} heads of keys and values cannot be divided among {gpus} GPUs" if shared else None


def _chunk_of_workload(candidate: Candidate, profile: WorkloadProfile) -> str | None:
    longest = max(profile.context_lengths)
    if candidate.prefill_chunk is None or candidate.prefill_chunk < longest:
        return None
    return f"the longest prompt has {longest} tokens: pieces of {candidate.prefill_chunk} would not cut it"


def _weights_limit(candidate: Candidate, facts: SpaceFacts, model: ModelInfo) -> str | None:
    if candidate.weights_limit_mib is None:
        return None
    if facts.device is DeviceType.CPU:
        return "weights are in host memory anyway on a CPU"
    if model.random_weights:
        return "random weights are made on the device and not placed by a limit"
    if candidate.compile is not CompileMode.OFF:
        return "generate() does not compile a model with weights in host memory"
    return None


def _trusted_kernel(candidate: Candidate, request: ModelRequest) -> str | None:
    kernel = candidate.foreign_kernel
    if kernel is None or request.trust_remote_code:
        return None
    return f"kernel {kernel} is code by others than {TRUSTED_KERNELS.rstrip('/')}: it needs --trust-remote-code"
