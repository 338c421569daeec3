"""Environment variables by which libraries compute faster or slower, or choose other kernels."""

from __future__ import annotations

import os

LIST = 2
"""Number of the list below. What an older kvray wrote knows those of its own list alone."""
_FIRST = (
    "CUBLAS_WORKSPACE_CONFIG",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "LD_PRELOAD",
    "MALLOC_ARENA_MAX",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCHINDUCTOR_MAX_AUTOTUNE",
)
_THREADS = (
    "GOMP_CPU_AFFINITY",
    "GOMP_SPINCOUNT",
    "KMP_HW_SUBSET",
    "KMP_LIBRARY",
    "MKL_DOMAIN_NUM_THREADS",
    "MKL_DYNAMIC",
    "OMP_DYNAMIC",
    "OMP_PLACES",
    "OMP_SCHEDULE",
    "OMP_THREAD_LIMIT",
    "OMP_WAIT_POLICY",
    "VLLM_CPU_OMP_THREADS_BIND",
)
_CPU_KERNELS = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "GGML_CPU_DISABLE_FUSION",
    "GGML_CPU_TILED_MM",
    "GGML_CPU_TILED_MM_FORCE",
    "LLAMA_ATTN_ROT_DISABLE",
    "LLAMA_GRAPH_REUSE_DISABLE",
    "MKL_CBWR",
    "MKL_DISABLE_FAST_MM",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_NUM_STRIPES",
    "ONEDNN_CPU_ISA_HINTS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY",
    "TORCH_MKLDNN_MATMUL_MIN_DIM",
    "TORCH_MKLDNN_MATMUL_MIN_SIZE",
)
_GPU_KERNELS = (
    "CUBLASLT_WORKSPACE_SIZE",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_FORCE_PTX_JIT",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "GGML_CUDA_DISABLE_FUSION",
    "GGML_CUDA_DISABLE_GRAPHS",
    "GGML_CUDA_ENABLE_UNIFIED_MEMORY",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_BLAS_PREFER_CUBLASLT",
    "TORCH_CUDNN_V8_API_DISABLED",
    "VLLM_ATTENTION_BACKEND",
    "VLLM_FLASHINFER_FORCE_TENSOR_CORES",
    "VLLM_FLASH_ATTN_VERSION",
    "VLLM_FLOAT32_MATMUL_PRECISION",
    "VLLM_KV_CACHE_LAYOUT",
    "VLLM_USE_FLASHINFER_SAMPLER",
)
_COMPILERS = (
    "TORCHDYNAMO_DISABLE",
    "TORCHINDUCTOR_COORDINATE_DESCENT_TUNING",
    "TORCHINDUCTOR_CPP_WRAPPER",
    "TORCHINDUCTOR_FREEZING",
    "TORCHINDUCTOR_MAX_AUTOTUNE_GEMM",
    "TORCH_COMPILE_DISABLE",
)
_MEMORY = (
    "GLIBC_TUNABLES",
    "MALLOC_CONF",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "VLLM_CPU_KVCACHE_SPACE",
)
_COMMUNICATION = (
    "NCCL_ALGO",
    "NCCL_BUFFSIZE",
    "NCCL_IB_DISABLE",
    "NCCL_MAX_NCHANNELS",
    "NCCL_MIN_NCHANNELS",
    "NCCL_NTHREADS",
    "NCCL_NVLS_ENABLE",
    "NCCL_P2P_DISABLE",
    "NCCL_P2P_LEVEL",
    "NCCL_PROTO",
    "NCCL_SHM_DISABLE",
    "VLLM_ALL2ALL_BACKEND",
)
SPEED_VARIABLES = frozenset((*_FIRST, *_THREADS, *_CPU_KERNELS, *_GPU_KERNELS, *_COMPILERS, *_MEMORY, *_COMMUNICATION))

_ONLY_SPEED = frozenset(
    (
        "CUDA_LAUNCH_BLOCKING",
        "CUDA_MODULE_LOADING",
        "GOMP_SPINCOUNT",
        "KMP_BLOCKTIME",
        "MALLOC_ARENA_MAX",
        "MALLOC_CONF",
        "MALLOC_MMAP_THRESHOLD_",
        "MALLOC_TOP_PAD_",
        "MALLOC_TRIM_THRESHOLD_",
        "OMP_WAIT_POLICY",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY",
        "PYTORCH_ALLOC_CONF",
        "PYTORCH_CUDA_ALLOC_CONF",
        "PYTORCH_NO_CUDA_MEMORY_CACHING",
        "VLLM_CPU_KVCACHE_SPACE",
    )
)
"""How threads wait, when code is loaded, and from where memory comes: the same operations run in the same order."""
OUTPUT_VARIABLES = SPEED_VARIABLES - _ONLY_SPEED
"""Those that may change the last bits of an output too: how many threads share a sum, which instructions or kernels
compute it, in which precision, in which order ranks add up. `GLIBC_TUNABLES` is one of them, because it can hide
instructions of the CPU from the functions of libm, and `LD_PRELOAD`, because it can put another library in place."""


def names_in(number: int | None) -> frozenset[str]:
    """The variables that a kvray with this list looks at; `None`: one that did not number its list."""
    return SPEED_VARIABLES if number is not None and number >= LIST else frozenset(_FIRST)


def users_variables() -> dict[str, str]:
    """The variables of this process that make libraries faster or slower, without what Ray has put there."""
    from kvray.probes.cpu import threads_are_rays  # who only reads a fingerprint probes nothing

    found = {name: os.environ[name] for name in sorted(SPEED_VARIABLES) if name in os.environ}
    if threads_are_rays():
        found.pop("OMP_NUM_THREADS", None)
    return found
